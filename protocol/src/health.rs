//! What a look at a machine found: one finding per thing that can be wrong, with what to do about it.

use serde::{Deserialize, Serialize};
use std::fmt::Display;

/// How it stands with one thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// As it should be.
    Ok,
    /// It works, and may not for long, or not as well as it could.
    Warning,
    /// It does not work.
    Bad,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Which: `store`, `clock`, `identity`.
    pub what: String,
    /// How it stands.
    pub state: State,
    /// What was found.
    pub found: String,
    /// What to do, where something is to be done.
    pub advice: Option<String>,
}

impl Finding {
    /// As it should be.
    pub fn ok(what: &str, found: impl Display) -> Self {
        Self { what: what.into(), state: State::Ok, found: found.to_string(), advice: None }
    }

    /// It works, for now.
    pub fn warning(what: &str, found: impl Display, advice: impl Display) -> Self {
        let (found, advice) = (found.to_string(), Some(advice.to_string()));
        Self { what: what.into(), state: State::Warning, found, advice }
    }

    /// It does not work.
    pub fn bad(what: &str, found: impl Display, advice: impl Display) -> Self {
        Self { state: State::Bad, ..Self::warning(what, found, advice) }
    }
}
