//! `lorikeet inspect`, as the coordinator starts it: what it reads, what it tells, when it ends.

use crate::support::{lorikeet, run};
use std::{
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

#[test]
fn an_inspection_ends_with_whoever_asked() {
    // It waits for its question, on a pipe that stays open here.
    let script = "exec 3<&0; \"$0\" inspect job --base /nowhere --dataset /nowhere <&3 & echo $!; wait";
    let mut asking = Command::new("sh")
        .args(["-c", script, env!("CARGO_BIN_EXE_lorikeet")])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut pid = String::new();
    BufReader::new(asking.stdout.take().unwrap()).read_line(&mut pid).unwrap();
    let process = Path::new("/proc").join(pid.trim());
    // What it sets last, once it is tied to its parent.
    let limited = || {
        let limits = fs::read_to_string(process.join("limits")).unwrap_or_default();
        limits.lines().any(|line| line.starts_with("Max open files") && line.contains(" 512 "))
    };
    until("it begins", limited);
    asking.kill().unwrap();
    asking.wait().unwrap();
    let is_gone = || {
        let stat = fs::read_to_string(process.join("stat")).unwrap_or_default();
        stat.is_empty() || stat.rsplit(") ").next().is_some_and(|state| state.starts_with('Z'))
    };
    until("it ends", is_gone);
}

#[test]
fn a_pipe_in_a_base_is_named_and_never_waited_for() {
    for name in
        ["config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"]
    {
        let folder = tempfile::tempdir().unwrap();
        let base = folder.path().join("base");
        lorikeet_trainer_base(&base);
        fs::remove_file(base.join(name)).ok();
        assert!(Command::new("mkfifo").arg(base.join(name)).status().unwrap().success());
        let (code, answer, _) = run(lorikeet().args(["inspect", "base"]).arg(&base));
        assert_eq!(code, 0);
        assert!(answer.contains("not a regular file"), "{name}: {answer}");
    }
}

#[test]
fn what_is_told_of_a_file_does_not_tell_where_it_lies() {
    let folder = tempfile::tempdir().unwrap();
    let (file, base) = (folder.path().join("f00d"), folder.path().join("base"));
    fs::write(&file, "\n\n").unwrap();
    fs::create_dir(&base).unwrap();
    for (what, path) in [("dataset", &file), ("base", &base)] {
        let (code, answer, _) = run(lorikeet().args(["inspect", what]).arg(path));
        assert_eq!(code, 0);
        assert!(!answer.contains(&*folder.path().to_string_lossy()), "{answer}");
    }
    let (_, answer, _) = run(lorikeet().args(["inspect", "dataset"]).arg(&file));
    assert!(answer.contains("the file"), "{answer}");
}

fn until(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !holds() {
        assert!(Instant::now() < deadline, "waited 30 s until {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// A directory whose texts are sound enough for each to be read.
fn lorikeet_trainer_base(base: &Path) {
    fs::create_dir(base).unwrap();
    fs::write(base.join("config.json"), "{}").unwrap();
    lorikeet_dataset::write_byte_tokenizer(base).unwrap();
}
