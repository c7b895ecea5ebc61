//! The two times the host is given.

use crate::host::Now;
use lorikeet_protocol::id::{BootId, UnixMillis};
use std::time::{Duration, Instant, SystemTime};

/// Time since the machine booted: it goes on over restarts of the agent, and over sleep.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    started: Instant,
    uptime: Duration,
}

impl Clock {
    /// Where `/proc` does not say how long the machine is up, time begins with the agent.
    pub(crate) fn new() -> Self {
        Self { started: Instant::now(), uptime: uptime().unwrap_or_default() }
    }

    pub(crate) fn now(&self) -> Now {
        Now { mono: self.uptime + self.started.elapsed(), wall: wall() }
    }

    /// A time of ours as the runtime knows it.
    pub(crate) fn instant(&self, mono: Duration) -> Instant {
        self.started + mono.saturating_sub(self.uptime)
    }
}

/// How long the machine is up, sleep included, as the kernel says.
pub(crate) fn uptime() -> Option<Duration> {
    let text = std::fs::read_to_string("/proc/uptime").ok()?;
    Duration::try_from_secs_f64(text.split_whitespace().next()?.parse().ok()?).ok()
}

/// The wall clock.
pub(crate) fn wall() -> UnixMillis {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    UnixMillis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// This start of the machine. Where the kernel does not say, every start of the agent is one: then nothing is taken for alive
/// that might not be.
pub(crate) fn boot_id() -> BootId {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok();
    let id = text.and_then(|text| uuid::Uuid::try_parse(text.trim()).ok());
    BootId(id.unwrap_or_else(uuid::Uuid::now_v7))
}
