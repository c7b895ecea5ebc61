//! One child of the demo: this program with other arguments, in a process group of its own, its words in a log file.
//!
//! Its standard input is a pipe of which only this process holds the other end. When the demo is killed and can stop nobody any
//! more, the pipe ends with it, and a child that was told `--until-eof` leaves in order.

use crate::failure::Failure;
use rustix::process::{Pid, Signal, kill_process_group};
use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child as Process, ChildStdin, Command},
    time::timeout,
};

/// A coordinator or an agent that starts takes far less, even on a machine that does something else.
const START: Duration = Duration::from_secs(60);

/// A running child; dropped, it is killed with everything in its group.
pub(super) struct Child {
    name: &'static str,
    process: Process,
    /// Taken out of `process`, which would close it as soon as it is waited for.
    _tie: Option<ChildStdin>,
    log: PathBuf,
}

impl Child {
    /// Starts `lorikeet ARGS`.
    pub(super) fn start(name: &'static str, args: &[&str], folder: &Path) -> Result<Self, Failure> {
        let log = folder.join(format!("{name}.log"));
        let file = File::options().create(true).append(true).open(&log);
        let file = file.map_err(|error| Failure::file("write", &log, &error))?;
        let program = std::env::current_exe().map_err(|error| Failure::bug(format!("find this program: {error}")))?;
        let mut command = Command::new(program);
        command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(file);
        // Of its own, so that Ctrl-C reaches the demo alone, which stops its children in order.
        command.process_group(0).kill_on_drop(true);
        for name in ["LORIKEET_SERVER", "LORIKEET_TOKEN", "LORIKEET_PROFILE", "NOTIFY_SOCKET"] {
            command.env_remove(name);
        }
        let mut process = command.spawn().map_err(|error| Failure::bug(format!("start the {name}: {error}")))?;
        let tie = process.stdin.take();
        Ok(Self { name, process, _tie: tie, log })
    }

    /// Until it says `ready …`.
    pub(super) async fn ready(&mut self) -> Result<(), Failure> {
        let stdout = self.process.stdout.take().ok_or_else(|| Failure::bug("a child is waited for once"))?;
        let mut lines = BufReader::new(stdout).lines();
        match timeout(START, lines.next_line()).await {
            Ok(Ok(Some(line))) if line.starts_with("ready") => Ok(()),
            Ok(_) => Err(self.failed("ended before it was ready")),
            Err(_) => Err(self.failed("was not ready in a minute")),
        }
    }

    /// Until it has done its work.
    pub(super) async fn done(mut self) -> Result<(), Failure> {
        match timeout(START, self.process.wait()).await {
            Ok(Ok(status)) if status.success() => Ok(()),
            Ok(_) => Err(self.failed("failed")),
            Err(_) => Err(self.failed("took longer than a minute")),
        }
    }

    /// Until it ends by itself, which it should not.
    pub(super) async fn died(&mut self) -> Failure {
        let status = self.process.wait().await;
        let words = status.map_or_else(|error| error.to_string(), |status: ExitStatus| status.to_string());
        self.failed(&format!("ended by itself ({words})"))
    }

    /// Asks it to end; what has not ended after `patience` is killed.
    pub(super) async fn stop(mut self, patience: Duration) {
        self.signal(Signal::TERM);
        if timeout(patience, self.process.wait()).await.is_err() {
            self.signal(Signal::KILL);
            // It cannot refuse; only the kernel can be slow.
            drop(self.process.wait().await);
        }
    }

    fn signal(&self, signal: Signal) {
        let group = self.process.id().and_then(|id| Pid::from_raw(id.cast_signed()));
        if let Some(group) = group {
            // It may have ended in this moment.
            let _ = kill_process_group(group, signal);
        }
    }

    fn failed(&self, what: &str) -> Failure {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = log.lines().rev().take(5).collect();
        let tail: String = lines.into_iter().rev().map(|line| format!("\n  {line}")).collect();
        Failure::bug(format!("the {} {what}; {} ends with:{tail}", self.name, self.log.display()))
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
    }
}
