//! B2 with HyperQueue in our place, on the same machine, if a Python is given that has its package (`pip install hyperqueue`).
//!
//! Not the same thing: its tasks are real processes, its state is in memory alone; ours are simulated, and every transition is durable.

use crate::{Size, report::Report};
use serde_json::Value;
use std::{io::Write, path::Path, process::Command};

const SCRIPT: &str = include_str!("dispatch_hyperqueue.py");

pub(crate) fn overhead(python: &Path, size: Size, report: &mut Report) {
    let tasks = size.of(200, 10_000);
    for slots in [64, 512] {
        let load = format!("{tasks} times `true`, {slots} slots");
        let measured = run(python, tasks, slots).unwrap_or_else(|error| error);
        report.row("B2, HyperQueue", &load, measured, "", "–".into());
    }
}

fn run(python: &Path, tasks: usize, slots: usize) -> Result<String, String> {
    let failed = |error: &dyn std::fmt::Display| format!("{} does not run it: {error}", python.display());
    let mut file = tempfile::NamedTempFile::new().map_err(|error| failed(&error))?;
    file.write_all(SCRIPT.as_bytes()).map_err(|error| failed(&error))?;
    // It leaves its folder wherever it is.
    let folder = tempfile::tempdir().map_err(|error| failed(&error))?;
    let mut command = Command::new(python);
    command.arg(file.path()).args([tasks, slots].map(|number| number.to_string())).current_dir(folder.path());
    let output = command.output().map_err(|error| failed(&error))?;
    let (said, complained) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let line = said.lines().last().and_then(|line| serde_json::from_str::<Value>(line).ok());
    let answer = line.filter(|_| output.status.success()).ok_or_else(|| failed(&complained.trim()))?;
    let each = |name: &str, scale: f64| answer[name].as_f64().unwrap_or(f64::NAN) * scale / tasks as f64;
    Ok(format!(
        "{:.3} ms per task, {:.0} µs of it CPU of server and worker, {:.0} µs of the tasks",
        each("seconds", 1e3),
        each("own_cpu", 1e6),
        each("task_cpu", 1e6),
    ))
}
