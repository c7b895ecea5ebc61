//! One started program: its output in a file, killed for real, gone when dropped.

use std::{
    fs::File,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
};

/// The binary under test, built with the tests themselves.
pub fn lorikeet() -> PathBuf {
    let test = std::env::current_exe().expect("a running test has an executable");
    let folder = test.ancestors().find(|folder| folder.join("lorikeet").is_file());
    folder.expect("build it first: cargo build").join("lorikeet")
}

/// A running program.
#[derive(Debug)]
pub struct Process {
    child: Child,
    name: String,
}

impl Process {
    /// Starts `lorikeet` with these words; what it prints goes to `<folder>/<name>.log`.
    pub fn start(folder: &Path, name: &str, words: &[&str]) -> Self {
        Self::start_inside(None, folder, name, words)
    }

    /// The same in a network of its own.
    pub fn start_inside(network: Option<&str>, folder: &Path, name: &str, words: &[&str]) -> Self {
        let log = File::options()
            .create(true)
            .append(true)
            .open(folder.join(format!("{name}.log")))
            .expect("the folder is ours");
        let second = log.try_clone().expect("a file can be shared");
        let mut command = program(network);
        command.args(words).stdin(Stdio::null()).stdout(log).stderr(second).env("NO_COLOR", "1");
        Self { child: command.spawn().expect("the binary starts"), name: name.into() }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// SIGKILL, and waits until it is gone.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// SIGTERM, and waits until it has left in its own way.
    pub fn stop(&mut self) -> ExitStatus {
        signal(self.pid(), rustix::process::Signal::TERM);
        crate::until(format!("{} to leave", self.name), || self.child.try_wait().expect("it is our child"))
    }

    /// Whether it still runs.
    pub fn runs(&mut self) -> bool {
        self.child.try_wait().expect("it is our child").is_none()
    }

    /// Waits for its end.
    pub fn finish(&mut self) -> ExitStatus {
        let name = self.name.clone();
        crate::until(format!("{name} to end"), || self.child.try_wait().expect("it is our child"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Sends a signal to a process that may be gone already.
pub fn signal(pid: u32, signal: rustix::process::Signal) {
    let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw).expect("a process id");
    let _ = rustix::process::kill_process(pid, signal);
}

/// `lorikeet`, in this network or in another, where it takes the place of `ip`.
fn program(network: Option<&str>) -> Command {
    let Some(network) = network else { return Command::new(lorikeet()) };
    let mut command = Command::new("ip");
    command.args(["netns", "exec", network]).arg(lorikeet());
    command
}

/// Runs `lorikeet` to its end and gives what it printed; fails unless it ends with 0.
pub fn run(words: &[&str]) -> String {
    run_inside(None, words)
}

/// The same in a network of its own.
pub fn run_inside(network: Option<&str>, words: &[&str]) -> String {
    let output = program(network).args(words).stdin(Stdio::null()).output().expect("the binary starts");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "lorikeet {words:?} ended with {:?} {:?}: {told}",
        output.status.code(),
        output.status.signal()
    );
    String::from_utf8(output.stdout).expect("it prints text")
}

/// Processes of this machine that were started with a path below `folder`: workers, whoever their parent is now.
pub fn workers_below(folder: &Path) -> Vec<u32> {
    let Ok(all) = procfs::process::all_processes() else { return vec![] };
    let below = |process: &procfs::process::Process| {
        let words = process.cmdline().unwrap_or_default();
        let alive = process.stat().is_ok_and(|stat| stat.state != 'Z');
        alive
            && words.get(1).is_some_and(|word| word == "worker" || word == crate::stand_in::TEST)
            && words.iter().any(|word| Path::new(word).starts_with(folder))
    };
    all.flatten().filter(below).map(|process| process.pid().cast_unsigned()).collect()
}
