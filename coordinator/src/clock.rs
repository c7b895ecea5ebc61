//! The wall clock of this machine, in the unit of every record.

use lorikeet_protocol::id::UnixMillis;
use std::time::{SystemTime, UNIX_EPOCH};

/// This moment.
pub(crate) fn now() -> UnixMillis {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    UnixMillis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
