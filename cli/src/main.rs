//! The program `lorikeet`: coordinator, agent, worker and the commands of people, in one binary.
//!
//! ```text
//! args ── commands::run ── client ──> a coordinator          output: every printed word
//!                      └── coordinator, agent, worker,       failure: every exit code
//!                          trainer, dataset as libraries
//! ```

mod args;
mod client;
mod commands;
mod failure;
mod file;
mod interrupt;
mod logging;
mod output;
mod profile;

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = args::Cli::parse();
    match commands::run(cli) {
        Ok(code) => code,
        Err(failure) => {
            output::failed(&failure);
            failure.exit_code()
        }
    }
}
