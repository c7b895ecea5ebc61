//! An inspection ends with whoever asked: its answer would reach nobody, and what it reads may never end.

use crate::failure::Failure;
use rustix::process::{Signal, set_parent_process_death_signal};

/// From here on this process is killed when its parent ends, however that ends.
pub(super) fn end_with() -> Result<(), Failure> {
    set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(|error| Failure::bug(format!("tie an inspection to whoever asked: {error}")))
}
