//! `lorikeet doctor --coordinator FILE --agent FILE`: what is wrong with this machine as a coordinator or a node, and what to do about it.

use crate::{
    args::Doctor as Args,
    failure::{Failure, chain},
    output::{Output, View},
};
use lorikeet_protocol::health::{Finding, State};
use lorikeet_worker::{Fence, Raised};
use std::path::Path;

impl View for Vec<Finding> {
    fn table(&self) -> String {
        let line = |finding: &Finding| {
            let state = match finding.state {
                State::Ok => "ok  ",
                State::Warning => "warn",
                State::Bad => "BAD ",
            };
            let advice = finding.advice.as_ref().map(|advice| format!("\n        do: {advice}")).unwrap_or_default();
            format!("{state}  {}: {}{advice}", finding.what, finding.found)
        };
        self.iter().map(line).collect::<Vec<_>>().join("\n")
    }
}

/// Looks, prints, and ends with 2 if something is bad.
pub(super) fn run(output: Output, args: &Args) -> Result<(), Failure> {
    let mut found = vec![landlock()];
    if let Some(path) = &args.coordinator {
        found.extend(coordinator(path)?);
    }
    if let Some(path) = &args.agent {
        found.extend(agent(path)?);
    }
    output.answer(&found)?;
    let bad = found.iter().filter(|finding| finding.state == State::Bad).count();
    match bad {
        0 => Ok(()),
        bad => Err(Failure::mistake(format!("{bad} of {} things are bad", found.len()))),
    }
}

fn coordinator(path: &Path) -> Result<Vec<Finding>, Failure> {
    match lorikeet_coordinator::config::Config::load(path) {
        Ok(config) => {
            let mut found = vec![Finding::ok("coordinator's config", path.display())];
            found.extend(crate::commands::runtime()?.block_on(lorikeet_coordinator::health::look(&config)));
            Ok(found)
        }
        Err(error) => Ok(vec![wrong("coordinator's config", &error)]),
    }
}

fn agent(path: &Path) -> Result<Vec<Finding>, Failure> {
    match lorikeet_agent::Config::load(path) {
        Ok(config) => {
            let mut found = vec![Finding::ok("agent's config", path.display())];
            found.extend(crate::commands::runtime()?.block_on(lorikeet_agent::health::look(&config)));
            Ok(found)
        }
        Err(error) => Ok(vec![wrong("agent's config", &error)]),
    }
}

fn wrong(what: &str, error: &(dyn std::error::Error + 'static)) -> Finding {
    Finding::bad(what, chain(error), "put it right: the commented example in configs/ names every key")
}

/// Tried on a thread of its own, which is all that it restricts.
fn landlock() -> Finding {
    let what = "landlock";
    let advice = "workers and inspections run, with their user's rights: use a kernel of 6.7 or later with Landlock on";
    match std::thread::spawn(|| Fence::new().raise()).join() {
        Ok(Ok(raised @ Raised::FilesAndTcp)) => Finding::ok(what, format!("a worker is left {raised}")),
        Ok(Ok(raised @ (Raised::Files | Raised::Nothing))) => {
            Finding::warning(what, format!("a worker is left {raised}"), advice)
        }
        Ok(Err(error)) => Finding::warning(what, chain(&error), advice),
        Err(_) => Finding::warning(what, "trying it failed", advice),
    }
}
