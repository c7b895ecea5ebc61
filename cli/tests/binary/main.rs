//! The built binary from outside: what it says of itself, what it answers, how it fails.

#![expect(clippy::unwrap_used, reason = "helpers of tests may fail as loudly as tests")]

mod answers;
mod complaint;
mod demo;
mod exit_codes;
mod help;
mod inspect;
mod local;
mod malformed;
mod named;
mod plan;
mod reference;
mod support;
mod train;
mod unusable;
