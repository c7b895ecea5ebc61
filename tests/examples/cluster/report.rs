//! The table: what was measured, what it should be, on which machine.

use std::{fmt, path::Path, time::Duration};

/// Rows in the order in which they were measured.
#[derive(Debug)]
pub(crate) struct Report {
    machine: String,
    rows: Vec<[String; 5]>,
    printed: usize,
}

impl Report {
    pub(crate) fn new() -> Self {
        Self { machine: machine(), rows: vec![], printed: 0 }
    }

    /// One measurement: which, under which load, what, its target if it has one, and what it cost.
    pub(crate) fn row(&mut self, name: &str, load: &str, measured: String, target: &str, cost: String) {
        self.rows.push([name.into(), load.into(), measured, target.into(), cost]);
    }

    /// What came since the last time, at once: a benchmark takes minutes.
    pub(crate) fn print_last(&mut self) {
        for row in &self.rows[self.printed..] {
            eprintln!("   {}", row.join(" | "));
        }
        self.printed = self.rows.len();
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.machine)?;
        writeln!(f, "\n| # | load | measured | target | coordinator |\n|---|---|---|---|---|")?;
        self.rows.iter().try_for_each(|row| writeln!(f, "| {} |", row.join(" | ")))
    }
}

/// Everything that makes a number here another one elsewhere.
fn machine() -> String {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = text.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
    let model = model.trim_start_matches([' ', '\t', ':']);
    let memory = <procfs::Meminfo as procfs::Current>::current().map_or(0, |memory| memory.mem_total >> 30);
    let (system, sync) = (file_system(&std::env::temp_dir()), one_sync());
    let built = if cfg!(debug_assertions) { "with debug assertions" } else { "optimised" };
    let commit = commit();
    format!(
        "{cores} cores of {model}, {memory} GiB; {system}, one fdatasync {sync:.2?}; load generator {built}; {commit}"
    )
}

/// Of the mount with the longest path above this folder.
fn file_system(folder: &Path) -> String {
    let mounts = procfs::process::Process::myself().and_then(|process| process.mountinfo());
    let above = mounts.into_iter().flatten().filter(|mount| folder.starts_with(&mount.mount_point));
    let deepest = above.max_by_key(|mount| mount.mount_point.as_os_str().len());
    deepest.map_or_else(|| "unknown file system".into(), |mount| mount.fs_type)
}

/// What is measured: the commit, and whether anything was changed since.
fn commit() -> String {
    let git = |words: &[&str]| {
        let output =
            std::process::Command::new("git").args(words).output().ok().filter(|output| output.status.success());
        output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    match (git(&["rev-parse", "--short", "HEAD"]), git(&["status", "--porcelain"])) {
        (Some(commit), Some(changed)) if changed.is_empty() => format!("commit {commit}"),
        (Some(commit), _) => format!("commit {commit} with changes"),
        (None, _) => "no commit".into(),
    }
}

/// The middle of some, on the disk that the benchmarks use.
fn one_sync() -> Duration {
    let file = tempfile::tempfile().expect("a temporary file");
    let sync = |_| {
        use std::io::Write;
        (&file).write_all(&[1; 4_096]).expect("the disk takes a page");
        let began = std::time::Instant::now();
        file.sync_data().expect("the disk syncs");
        began.elapsed()
    };
    let mut times: Vec<_> = (0..50).map(sync).collect();
    times.sort();
    times[25]
}

/// `p50 p95 p99` of some durations.
pub(crate) fn percentiles(mut times: Vec<Duration>) -> String {
    times.sort();
    let at = |part: f64| times.get(((times.len() as f64 * part) as usize).min(times.len().saturating_sub(1))).copied();
    let show = |part| at(part).map_or("–".into(), millis);
    format!("p50 {} p95 {} p99 {} ms", show(0.50), show(0.95), show(0.99))
}

/// In milliseconds, without their unit.
pub(crate) fn millis(time: Duration) -> String {
    format!("{:.1}", time.as_secs_f64() * 1e3)
}
