//! `lorikeet worker`: trains what attempt directories ask for. The exit code tells the supervisor how it ended.

use crate::{args::Worker, logging};
use std::process::ExitCode;

/// Blocks until every attempt has an outcome.
pub(crate) fn run(args: &Worker) -> ExitCode {
    logging::start("info");
    lorikeet_worker::run(&args.directories).into()
}
