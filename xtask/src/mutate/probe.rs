//! The trainer's tests one by one, each in a process of its own: how long it takes, which marked lines it comes by, and
//! whether it still passes with one of them flipped.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::in_parallel;
use super::scratch::Built;
use crate::program::Program;

/// What a test with a wrong sign may take beyond twenty times its own time; one that goes on for ever has noticed too.
const PATIENCE: Duration = Duration::from_secs(60);

/// One test.
pub(super) struct Test {
    pub(super) name: String,
    program: PathBuf,
    /// In the round without any flip.
    pub(super) time: Duration,
    /// The numbers of the marked lines it came by then.
    pub(super) reaches: BTreeSet<usize>,
}

/// Runs tests.
pub(super) struct Probe {
    built: Built,
    /// Of each test its program and its name.
    tests: Vec<(PathBuf, String)>,
}

impl Probe {
    /// Finds the tests in what was built.
    pub(super) fn of(built: Built) -> Result<Self> {
        let mut tests = Vec::new();
        for program in &built.programs {
            let output = Program::at(&built.package, program).args(&words("--list --format terse")).capture()?;
            let text = String::from_utf8(output.stdout).context("a test's name is UTF-8")?;
            let names = text.lines().filter_map(|line| line.strip_suffix(": test"));
            tests.extend(names.map(|name| (program.clone(), name.to_owned())));
        }
        Ok(Self { built, tests })
    }

    /// Runs every test without any flip.
    pub(super) fn survey(&self) -> Result<Vec<Test>> {
        let numbered: Vec<(usize, &(PathBuf, String))> = self.tests.iter().enumerate().collect();
        in_parallel(&numbered, |(index, (program, name))| {
            let reached = self.built.notes.join(format!("{index}"));
            drop(std::fs::remove_file(&reached));
            let began = Instant::now();
            let path = reached.to_str().context("the path of the tree is not UTF-8")?;
            let output = self.program(program, name).env("LORIKEET_REACHED", path).capture()?;
            if !output.status.success() {
                bail!("the test {name} fails without any flip; mend it first");
            }
            let reaches = match std::fs::read_to_string(&reached) {
                Ok(text) => text.lines().map(str::parse).collect::<Result<_, _>>().context("a number for each line")?,
                Err(_) => BTreeSet::new(),
            };
            Ok(Test { name: name.clone(), program: program.clone(), time: began.elapsed(), reaches })
        })
    }

    /// Whether a test passes with the sign of line `number` flipped.
    pub(super) fn passes(&self, test: &Test, number: usize) -> bool {
        let program = self.program(&test.program, &test.name).env("LORIKEET_MUTANT", &number.to_string());
        program.succeeds_within(test.time * 20 + PATIENCE)
    }

    fn program(&self, program: &std::path::Path, name: &str) -> Program {
        Program::at(&self.built.package, program).args(&[name.to_owned()]).args(&words("--exact --test-threads 1"))
    }
}

fn words(line: &str) -> Vec<String> {
    line.split_whitespace().map(str::to_owned).collect()
}
