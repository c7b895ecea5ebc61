//! The built binary from outside: what it says of itself, what it answers, how it fails.

mod answers;
mod exit_codes;
mod help;
mod support;
