//! The two times the host is given.

use crate::host::Now;
use lorikeet_protocol::id::{BootId, UnixMillis};
use rustix::time::{ClockId, clock_gettime};
use std::time::{Duration, Instant, SystemTime};

/// The time since the machine booted goes on over restarts of the agent, and over sleep, which an [`Instant`] does not count.
pub(crate) fn now() -> Now {
    Now { mono: uptime(), wall: wall() }
}

/// A time of [`now`]'s as the runtime knows it. A machine that sleeps until then is late by that, or until its next look at the devices, which is
/// an event like others.
pub(crate) fn instant(mono: Duration) -> Instant {
    let rest = mono.saturating_sub(uptime());
    Instant::now() + rest
}

/// How long the machine is up, sleep included, as the kernel says.
pub(crate) fn uptime() -> Duration {
    Duration::try_from(clock_gettime(ClockId::Boottime)).expect("the kernel counts from the start of the machine on")
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
