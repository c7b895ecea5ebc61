//! `cargo xtask mutate`: do the trainer's tests notice a wrong sign? A line of the trainer that ends in `// mutate: flip`
//! is a place where a sign decides. In a scratch copy each such line becomes a branch on a number from the environment, so
//! that one build holds every flip. One round without any flip tells which tests come by which line; then, for each line,
//! those tests are run with its sign flipped, the quickest first, until one fails. A flip that none of them notices is an
//! error, and so is a line that no test comes by.

mod mark;
mod probe;
mod scratch;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Result, bail};

use crate::output::{say, seconds, table};
use crate::tree::Tree;
use mark::{MARK, Mark, SOURCES};
use probe::{Probe, Test};
use scratch::Scratch;

/// What the tests said to a flipped sign.
enum Verdict {
    /// By the test of this name.
    Killed(String),
    Survived,
    /// No test comes by this line.
    Unreached,
}

/// Flips the marked lines of files whose path contains `only`, `limit` of them at most, and fails when one goes unnoticed.
pub(crate) fn run(tree: &Tree, only: Option<&str>, limit: Option<usize>) -> Result<()> {
    let began = Instant::now();
    let marks = mark::find(tree)?;
    let wanted = |mark: &&Mark| only.is_none_or(|part| mark.file.contains(part));
    let chosen: Vec<&Mark> = marks.iter().filter(wanted).take(limit.unwrap_or(usize::MAX)).collect();
    if chosen.is_empty() {
        bail!("no line in {SOURCES} ends in `{MARK}`");
    }
    say(format!("{} lines in one build", marks.len()));
    let probe = Probe::of(Scratch::lay(tree, &marks)?.build()?)?;
    say(format!("{} built; now the tests as they are", seconds(began.elapsed()).trim_start()));
    let tests = probe.survey()?;
    say(format!("{} {} tests pass; now the flips", seconds(began.elapsed()).trim_start(), tests.len()));
    let verdicts = in_parallel(&chosen, |mark| judge(&probe, &tests, mark))?;
    say_table(&chosen, &verdicts);
    let lost = verdicts.iter().filter(|verdict| !matches!(verdict, Verdict::Killed(_))).count();
    if lost > 0 {
        bail!("{lost} of {} flipped signs went unnoticed", chosen.len());
    }
    say(format!("{} all {} flipped signs were noticed", seconds(began.elapsed()).trim_start(), chosen.len()));
    Ok(())
}

/// The tests that come by the line, the quickest first, until one fails.
fn judge(probe: &Probe, tests: &[Test], mark: &Mark) -> Result<Verdict> {
    let mut near: Vec<&Test> = tests.iter().filter(|test| test.reaches.contains(&mark.number)).collect();
    near.sort_by_key(|test| test.time);
    if near.is_empty() {
        return Ok(Verdict::Unreached);
    }
    let killer = near.into_iter().find(|test| !probe.passes(test, mark.number));
    let verdict = killer.map_or(Verdict::Survived, |test| Verdict::Killed(test.name.clone()));
    say(format!("{}:{} {}", mark.file, mark.line, verdict.words()));
    Ok(verdict)
}

/// As many at once as there are processors; the answers in the order of the questions.
pub(super) fn in_parallel<T: Sync, A: Send>(asked: &[T], answer: impl Fn(&T) -> Result<A> + Sync) -> Result<Vec<A>> {
    let next = AtomicUsize::new(0);
    let work = || {
        let mut answers = Vec::new();
        while let Some((index, question)) = {
            let index = next.fetch_add(1, Ordering::Relaxed);
            asked.get(index).map(|question| (index, question))
        } {
            answers.push((index, answer(question)));
        }
        answers
    };
    let mut answers: Vec<(usize, Result<A>)> = std::thread::scope(|scope| {
        let count = std::thread::available_parallelism().map_or(1, usize::from);
        let threads: Vec<_> = (0..count).map(|_| scope.spawn(work)).collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("what it asks returns its errors")).collect()
    });
    answers.sort_by_key(|(index, _)| *index);
    answers.into_iter().map(|(_, answer)| answer).collect()
}

fn say_table(marks: &[&Mark], verdicts: &[Verdict]) {
    let row = |(mark, verdict): (&&Mark, &Verdict)| vec![format!("{}:{}", mark.file, mark.line), verdict.words()];
    say("");
    table(&["line", "flipped"], &marks.iter().zip(verdicts).map(row).collect::<Vec<_>>());
}

impl Verdict {
    fn words(&self) -> String {
        match self {
            Self::Killed(test) => format!("noticed by {test}"),
            Self::Survived => "SURVIVED".to_owned(),
            Self::Unreached => "SURVIVED, no test comes by".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_come_in_the_order_of_the_questions_and_an_error_is_one() {
        let asked: Vec<u32> = (0..100).collect();
        assert_eq!(in_parallel(&asked, |n| Ok(n * 2)).unwrap(), asked.iter().map(|n| n * 2).collect::<Vec<_>>());
        assert!(in_parallel(&asked, |n| if *n == 57 { bail!("57") } else { Ok(()) }).is_err());
    }
}
