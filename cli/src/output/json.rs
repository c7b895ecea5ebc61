//! Answers for programs.

use crate::failure::Failure;
use serde::Serialize;

/// A whole answer.
pub(super) fn pretty<T: Serialize + ?Sized>(answer: &T) -> Result<String, Failure> {
    serde_json::to_string_pretty(answer).map_err(Failure::bug)
}

/// A line of many.
pub(super) fn compact<T: Serialize + ?Sized>(answer: &T) -> Result<String, Failure> {
    serde_json::to_string(answer).map_err(Failure::bug)
}
