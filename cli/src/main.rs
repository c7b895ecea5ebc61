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
use failure::Failure;
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    process::ExitCode,
};

fn main() -> ExitCode {
    interrupt::outlive_file_limits();
    let cli = args::Cli::parse();
    end(|| commands::run(cli))
}

/// Every way in which a command ends, as an exit code. A panic has said what and where by itself; it is a bug, and ends as one.
fn end(command: impl FnOnce() -> Result<ExitCode, Failure>) -> ExitCode {
    // nothing of it is used afterwards
    let ended = catch_unwind(AssertUnwindSafe(command));
    match ended.unwrap_or_else(|_| Err(Failure::bug("the command panicked"))) {
        Ok(code) => code,
        Err(failure) => {
            output::failed(&failure);
            failure.exit_code()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_ends_as_every_other_bug() {
        let code = |code| format!("{:?}", ExitCode::from(code));
        assert_eq!(format!("{:?}", end(|| panic!("on purpose"))), code(70));
        assert_eq!(format!("{:?}", end(|| Err(Failure::mistake("on purpose")))), code(2));
        assert_eq!(format!("{:?}", end(|| Ok(ExitCode::SUCCESS))), code(0));
    }
}
