//! The parts of this program and, for several, a process of each: what one breaks or hangs in is its own. Ends in one table.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, ExitCode, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// Something that is asked of a card.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// Every operation at small sizes.
    Check,
    /// Every operation at the sizes of a model.
    Large,
    /// How fast each is.
    Bench,
    /// The decoder and whole runs.
    Goldens,
}

impl Part {
    /// What matters most first: a machine may be lent for minutes only.
    pub(crate) const ALL: [Part; 4] = [Part::Check, Part::Bench, Part::Large, Part::Goldens];

    pub(crate) fn named(word: &str) -> Option<Part> {
        Part::ALL.into_iter().find(|part| part.name() == word)
    }

    fn name(self) -> &'static str {
        match self {
            Part::Check => "check",
            Part::Large => "large",
            Part::Bench => "bench",
            Part::Goldens => "goldens",
        }
    }

    /// Several times what it takes; a kernel that waits for itself waits for ever.
    fn limit(self) -> Duration {
        Duration::from_secs(match self {
            Part::Check | Part::Bench => 120,
            Part::Large => 180,
            Part::Goldens => 360,
        })
    }
}

const LOOK: Duration = Duration::from_millis(50);

/// Runs them one after another; success when all held.
pub(crate) fn run(parts: &[Part], options: &[String]) -> ExitCode {
    let mut rows = vec![format!("{:<10} {:<8} {:>7}  {}", "part", "result", "s", "in its own words")];
    let mut held = true;
    for part in parts {
        tell(&format!("\n== {}", part.name()));
        let start = Instant::now();
        let (code, words) = one(*part, options);
        // from the second on it is a card that was there, and the first has a row
        if code == Some(NO_GPU) && part == &parts[0] {
            return ExitCode::from(NO_GPU as u8);
        }
        let holds = code == Some(0);
        held &= holds;
        let (result, seconds) = (if holds { "holds" } else { "FAILS" }, start.elapsed().as_secs_f64());
        rows.push(format!("{:<10} {result:<8} {seconds:>7.1}  {words}", part.name()));
    }
    tell(&format!("\n== all\n{}", rows.join("\n")));
    if held { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// What a part ends with where no GPU can be used. The first has said why, and the others would say the same.
const NO_GPU: i32 = 3;

/// Its exit code, and the last that it said.
fn one(part: Part, options: &[String]) -> (Option<i32>, String) {
    let started = std::env::current_exe().and_then(|program| {
        Command::new(program).arg(part.name()).args(options).stdin(Stdio::null()).stdout(Stdio::piped()).spawn()
    });
    let mut child = match started {
        Ok(child) => child,
        Err(error) => return (None, format!("cannot be started: {error}")),
    };
    let heard = child.stdout.take().map(|out| thread::spawn(move || echo(BufReader::new(out))));
    let ended = wait(&mut child, part.limit());
    let last = heard.and_then(|heard| heard.join().ok()).unwrap_or_default();
    match ended {
        Some(status) if status.code().is_some_and(|code| code < 2) => (status.code(), last),
        Some(status) => (status.code(), format!("ended with {status}; last said: {last}")),
        None => (None, format!("ended by force after {} s; last said: {last}", part.limit().as_secs())),
    }
}

/// How it ended; none where it had to be ended.
fn wait(child: &mut Child, limit: Duration) -> Option<std::process::ExitStatus> {
    let deadline = Instant::now() + limit;
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Some(status),
            Ok(None) if Instant::now() < deadline => thread::sleep(LOOK),
            Ok(None) | Err(_) => {
                // both fail only where it has just ended by itself
                let _ = child.kill();
                let _ = child.wait();
                return None;
            }
        }
    }
}

/// Repeats every line as it comes; the last that is not empty.
fn echo(lines: impl BufRead) -> String {
    let mut last = String::new();
    for line in lines.lines().map_while(Result::ok) {
        tell(&line);
        if !line.trim().is_empty() {
            last = line;
        }
    }
    last
}

fn tell(text: &str) {
    // who is told has gone away: there is nobody left to tell that to
    let _ = writeln!(std::io::stdout(), "{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_called_by_their_names_and_nothing_else_is_one() {
        assert!(Part::ALL.into_iter().all(|part| Part::named(part.name()) == Some(part)));
        assert_eq!(Part::named("--seed"), None);
    }

    #[test]
    fn what_does_not_end_is_ended_and_the_last_line_is_kept() {
        let mut sleeper = Command::new("sleep").arg("60").spawn().unwrap();
        assert_eq!(wait(&mut sleeper, Duration::from_millis(100)), None);
        assert_eq!(echo(&b"one\nall hold\n\n"[..]), "all hold");
    }
}
