//! Libraries that end their thread at data which is not what it claims to be: a fault of the data, not of this program.

use std::fmt::Display;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// What a library answers, its error in words; `broken` where it panicked instead. Nobody uses again what `act` may have left half done.
pub(crate) fn guarded<T, E: Display>(broken: &str, act: impl FnOnce() -> Result<T, E>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(act)) {
        Ok(answer) => answer.map_err(|error| error.to_string()),
        Err(_) => Err(broken.into()),
    }
}
