//! How soon things begin, for somebody who waits: a coordinator, and a job whose base and data are on the node already.
//!
//! The demo runs once and leaves its folder. Then its coordinator and its agent are started again, as services would be, and
//! its job is submitted a few times; each is watched until its first step is told, and cancelled. Both end with the pipe on
//! their standard input, however this ends.

use std::io::{BufRead, BufReader, Lines};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::output::{say, table};
use crate::program::Program;
use crate::tree::Tree;

/// Jobs measured; the middle one counts.
const ROUNDS: usize = 5;
/// For anything that is waited for.
const PATIENCE: Duration = Duration::from_secs(120);
/// Between two questions to the coordinator.
const LOOK: Duration = Duration::from_millis(100);

/// Measures the program in `rest`, or builds the one of this tree.
pub(crate) fn run(tree: &Tree, rest: &[String]) -> Result<()> {
    let program = match rest {
        [] => build(tree)?,
        [program] => PathBuf::from(program),
        [..] => bail!("expected at most one argument, the program to measure"),
    };
    let folder = tree.target().join("bench-start");
    if folder.exists() {
        std::fs::remove_dir_all(&folder).with_context(|| format!("remove {}", folder.display()))?;
    }
    let place = Place { program, folder };
    place.client(&["demo", "--keep", "--dir"], &[&place.folder])?;
    let began = Instant::now();
    let coordinator = place.service("coordinator", &place.folder.join("coordinator.toml"))?;
    let ready = began.elapsed();
    let _agent = place.service("agent", &place.agent_config(coordinator.ready.as_str())?)?;
    place.until_online()?;
    let resident = resident_mib(&coordinator.process)?;
    let mut waits = (0..ROUNDS).map(|_| place.first_step(&["--set", "training.validation_fraction=0"]));
    let mut waits = waits.by_ref().collect::<Result<Vec<_>>>()?;
    waits.sort();
    let evaluated = place.first_step(&[])?;
    let millis = |time: Duration| format!("{} ms", time.as_millis());
    say("");
    table(
        &["what", "measured"],
        &[
            vec!["coordinator, start to ready".into(), millis(ready)],
            vec!["coordinator with one idle node, resident".into(), format!("{resident} MiB")],
            vec![format!("submit to first step, middle of {ROUNDS}"), millis(waits[ROUNDS / 2])],
            vec!["the slowest of them".into(), millis(waits[ROUNDS - 1])],
            vec!["with the held-out split evaluated before it".into(), millis(evaluated)],
        ],
    );
    // The agent goes first, then the coordinator: the other way round from how they came.
    Ok(())
}

fn build(tree: &Tree) -> Result<PathBuf> {
    Program::new(tree.root(), "cargo build --release --package lorikeet").run()?;
    Ok(tree.target().join("release/lorikeet"))
}

/// A program and the demo's folder.
struct Place {
    program: PathBuf,
    folder: PathBuf,
}

/// A service that said it is ready; it leaves when this goes.
struct Service {
    process: Child,
    tie: Option<std::process::ChildStdin>,
    ready: String,
}

impl Drop for Service {
    fn drop(&mut self) {
        drop(self.tie.take());
        // It leaves by itself; there is nothing to be done about one that does not.
        let _ = self.process.wait();
    }
}

impl Place {
    fn service(&self, what: &str, config: &Path) -> Result<Service> {
        let mut command = Command::new(&self.program);
        command.args([what, "--until-eof", "--config"]).arg(config).env("LORIKEET_LOG", "error");
        let mut process = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("start {}", self.program.display()))?;
        let tie = process.stdin.take();
        let ready = lines(&mut process).next().with_context(|| format!("the {what} ended before it was ready"))??;
        Ok(Service { process, tie, ready })
    }

    /// The demo's, with the port on which the coordinator listens now.
    fn agent_config(&self, ready: &str) -> Result<PathBuf> {
        let link = ready.split_once("link=").context("the coordinator names its link")?.1;
        let path = self.folder.join("agent.toml");
        let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        let again = self.folder.join("agent-again.toml");
        std::fs::write(&again, format!("coordinator = \"{link}\"\n{text}")).context("write the agent's config")?;
        Ok(again)
    }

    fn until_online(&self) -> Result<()> {
        self.until("the node is online", || Ok(self.ask(&["nodes"])?[0]["status"] == "ONLINE"))
    }

    /// From the command line to the first step that the follower sees; the job is over afterwards.
    fn first_step(&self, more: &[&str]) -> Result<Duration> {
        let began = Instant::now();
        let job = self.folder.join("job.toml");
        let mut command = self.command(&["submit", "--follow"])?;
        let mut follower = command.arg(&job).args(more).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
        let mut waited = None;
        for line in lines(&mut follower) {
            let event: Value = serde_json::from_str(&line?).unwrap_or_default();
            if event["type"] == "metrics" && event["trainingLoss"].is_number() {
                waited = Some(began.elapsed());
                break;
            }
        }
        // Whoever follows may leave: the job does not need them.
        follower.kill().and_then(|()| follower.wait()).context("end the follower")?;
        let newest = self.ask(&["jobs"])?[0]["id"].as_str().context("a job was submitted")?.to_owned();
        self.ask(&["job", "cancel", &newest])?;
        self.until("the job is cancelled", || Ok(self.ask(&["job", "show", &newest])?["status"] == "CANCELLED"))?;
        waited.context("the job ended before its first step")
    }

    fn until(&self, what: &str, holds: impl Fn() -> Result<bool>) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !holds()? {
            if Instant::now() > deadline {
                bail!("waited in vain: {what}");
            }
            std::thread::sleep(LOOK);
        }
        Ok(())
    }

    fn ask(&self, words: &[&str]) -> Result<Value> {
        let output = self.command(words)?.output().context("start the client")?;
        if !output.status.success() {
            bail!("lorikeet {}: {}", words.join(" "), String::from_utf8_lossy(&output.stderr).trim());
        }
        serde_json::from_slice(&output.stdout).with_context(|| format!("read what `lorikeet {}` says", words.join(" ")))
    }

    fn command(&self, words: &[&str]) -> Result<Command> {
        let read = |name: &str| {
            let path = self.folder.join("coordinator").join(name);
            std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
        };
        let addresses: Value = serde_json::from_str(&read("addresses.json")?).context("read the addresses")?;
        let server = addresses["http"].as_str().context("the coordinator has an address")?;
        let mut command = Command::new(&self.program);
        command.args(["--server", server, "--token", read("admin.token")?.trim(), "--output", "json"]).args(words);
        Ok(command)
    }

    fn client(&self, words: &[&str], paths: &[&Path]) -> Result<()> {
        let status = Command::new(&self.program).args(words).args(paths).stdin(Stdio::null()).status();
        let status = status.with_context(|| format!("start {}", self.program.display()))?;
        if !status.success() {
            bail!("`lorikeet {}` ended with {status}", words.join(" "));
        }
        Ok(())
    }
}

fn lines(process: &mut Child) -> Lines<BufReader<ChildStdout>> {
    BufReader::new(process.stdout.take().expect("its output is a pipe that nobody has taken")).lines()
}

fn resident_mib(process: &Child) -> Result<u64> {
    let path = format!("/proc/{}/status", process.id());
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let line =
        text.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("the kernel tells what is resident")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? / 1024)
}
