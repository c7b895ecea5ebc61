//! Where everything lies under the agent's data directory.
//!
//! ```text
//! <data>/
//!   agent.lock            held for life: one agent per data directory
//!   identity/             key, certificate, CA: see link/identity.rs
//!   outbox/               reports: see outbox.rs
//!   records/<attempt>.json  what of an attempt outlives the agent
//!   attempts/<attempt>/   the attempt directory, the worker's own
//!   inputs/<attempt>/     its base model and dataset: links into the cache
//!   uploads/<attempt>/    files named by their hash, kept from their upload until the report that names them is acknowledged
//!   cache/                files/, partial/, tokens/
//! ```

use lorikeet_protocol::id::AttemptId;
use std::path::{Path, PathBuf};

/// Its name.
pub(crate) const LOCK: &str = "agent.lock";

/// Builds paths; touches nothing.
#[derive(Debug, Clone)]
pub(crate) struct Places {
    data: PathBuf,
}

impl Places {
    pub(crate) fn new(data: &Path) -> Self {
        Self { data: data.to_owned() }
    }

    pub(crate) fn data(&self) -> &Path {
        &self.data
    }

    pub(crate) fn lock(&self) -> PathBuf {
        self.data.join(LOCK)
    }

    pub(crate) fn identity(&self) -> PathBuf {
        self.data.join("identity")
    }

    pub(crate) fn outbox(&self) -> PathBuf {
        self.data.join("outbox")
    }

    pub(crate) fn records(&self) -> PathBuf {
        self.data.join("records")
    }

    pub(crate) fn attempts(&self) -> PathBuf {
        self.data.join("attempts")
    }

    pub(crate) fn attempt(&self, id: AttemptId) -> PathBuf {
        self.attempts().join(id.to_string())
    }

    pub(crate) fn inputs(&self, id: AttemptId) -> PathBuf {
        self.data.join("inputs").join(id.to_string())
    }

    pub(crate) fn uploads(&self, id: AttemptId) -> PathBuf {
        self.data.join("uploads").join(id.to_string())
    }

    pub(crate) fn cache(&self) -> PathBuf {
        self.data.join("cache")
    }

    pub(crate) fn tokens(&self) -> PathBuf {
        self.cache().join("tokens")
    }
}
