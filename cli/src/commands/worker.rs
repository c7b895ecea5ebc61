//! `lorikeet worker`: trains what attempt directories ask for. The exit code tells the supervisor how it ended.

use crate::{args::Worker, logging};
use lorikeet_worker::{Bond, Terms};
use std::process::ExitCode;

/// Blocks until every attempt has an outcome.
pub(crate) fn run(args: &Worker) -> ExitCode {
    logging::start("info");
    let bond = if args.until_eof { Bond::Stdin } else { Bond::None };
    lorikeet_worker::run(&args.directories, Terms { bond, memory_limit: args.memory_limit }).into()
}
