//! Outside programs: how a task starts one, shows it and judges how it ended.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::output::say;

/// How often a program with a deadline is looked at; short against any deadline, long against the look.
const LOOK: Duration = Duration::from_millis(100);

/// A program about to be started.
pub(crate) struct Program {
    command: Command,
    /// The command line as a person would type it.
    line: String,
}

impl Program {
    /// `line` split at spaces, run in `folder`.
    pub(crate) fn new(folder: &Path, line: &str) -> Self {
        let (program, arguments) = line.split_once(' ').unwrap_or((line, ""));
        Self::at(folder, Path::new(program)).words(arguments)
    }

    /// The program at `path`, or of that name, run in `folder`. What cargo told this very task about its own package is taken
    /// back, or build scripts that watch these variables would run again at every change between a task and a plain `cargo build`.
    pub(crate) fn at(folder: &Path, path: &Path) -> Self {
        let mut command = Command::new(path);
        command.current_dir(folder).stdin(Stdio::null());
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
                command.env_remove(&name);
            }
        }
        Self { command, line: path.display().to_string() }
    }

    /// More arguments, split at spaces.
    pub(crate) fn words(self, words: &str) -> Self {
        words.split_whitespace().fold(self, Self::word)
    }

    /// One more argument.
    pub(crate) fn word(self, word: &str) -> Self {
        self.args(&[word.to_owned()])
    }

    /// One more argument, a path.
    pub(crate) fn path(self, path: &Path) -> Self {
        self.word(&path.display().to_string())
    }

    /// More arguments, each passed on as it is.
    pub(crate) fn args(mut self, args: &[String]) -> Self {
        self.command.args(args);
        self.line = [&[self.line], args].concat().join(" ");
        self
    }

    /// One more variable of the environment.
    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.command.env(name, value);
        self.line = format!("{name}={value} {}", self.line);
        self
    }

    /// Runs in the open: command line first, output as it comes.
    pub(crate) fn run(mut self) -> Result<()> {
        say(format!("$ {}", self.line));
        let status = self.command.status().with_context(|| format!("start `{}`", self.line))?;
        if !status.success() {
            bail!("`{}` ended with {status}", self.line);
        }
        Ok(())
    }

    /// Runs out of sight; how it ended and what it printed are the caller's to judge.
    pub(crate) fn capture(mut self) -> Result<Output> {
        self.command.output().with_context(|| format!("start `{}`", self.line))
    }

    /// Runs out of sight for so long at most; false when it failed, is missing or had to be ended.
    pub(crate) fn succeeds_within(mut self, limit: Duration) -> bool {
        let Ok(mut child) = self.command.stdout(Stdio::null()).stderr(Stdio::null()).spawn() else { return false };
        let deadline = Instant::now() + limit;
        loop {
            match child.try_wait() {
                Ok(Some(status)) => return status.success(),
                Ok(None) if Instant::now() < deadline => std::thread::sleep(LOOK),
                Ok(None) | Err(_) => {
                    // Both may fail only because it has just ended by itself, which is what was wanted.
                    let _ = child.kill();
                    let _ = child.wait();
                    return false;
                }
            }
        }
    }
}

/// Whether a tool is there, judged by whether it can tell its version.
pub(crate) fn present(version_line: &str) -> bool {
    Program::new(Path::new("."), version_line).succeeds_within(Duration::from_secs(20))
}
