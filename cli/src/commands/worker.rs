//! `lorikeet worker`: trains what attempt directories ask for. The exit code tells the supervisor how it ended.

use crate::{args::Worker, logging};
use lorikeet_worker::{Bond, Terms};
use std::{io::Write, process::ExitCode};

/// Blocks until every attempt has an outcome.
pub(crate) fn run(args: &Worker) -> ExitCode {
    if let Some(device) = &args.burn_in {
        return tested(device);
    }
    logging::start("info");
    if let Some(rank) = args.rank {
        let terms = Terms { bond: Bond::None, memory_limit: args.memory_limit, gpu: args.gpu };
        // clap has seen to it that there is one, and the leader names no other
        return lorikeet_worker::follow(&args.directories[0], rank, terms).into();
    }
    let bond = if args.until_eof { Bond::Stdin } else { Bond::None };
    lorikeet_worker::run(&args.directories, Terms { bond, memory_limit: args.memory_limit, gpu: args.gpu }).into()
}

/// The agent reads the last line of what is complained of.
fn tested(device: &str) -> ExitCode {
    match lorikeet_worker::burn_in(device) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            let _told = writeln!(std::io::stderr(), "{why}");
            ExitCode::FAILURE
        }
    }
}
