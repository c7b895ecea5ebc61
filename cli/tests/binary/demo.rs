//! `lorikeet demo` and `lorikeet dev` on a tiny base: everything is real but the size. Nothing may be left running, ever.

use crate::{
    support::{file, lorikeet, run},
    train::{Place, interrupt},
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::{
    fs,
    io::{BufRead, BufReader, Read},
    path::Path,
    process::{Child, ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};

#[test]
fn the_demo_ends_with_an_adapter_and_nothing_running() {
    let place = Place::new();
    let (code, answer, notes) = run(demo(&place).args(["--output", "json"]));
    assert_eq!(code, 0, "{notes}");
    let report: Value = serde_json::from_str(&answer).unwrap();
    let loss = &report["held_out_loss"];
    assert!(loss["after"].as_f64() < loss["before"].as_f64(), "{report}");
    assert!(report["samples"][0]["prompt"].as_str().unwrap().starts_with("what is "), "{report}");
    assert!(report["exact_match"].is_null(), "it is counted for our own task alone: {report}");
    let folder = place.path("demo");
    for name in ["adapter/adapter_model.safetensors", "adapter/adapter_config.json", "job.toml", "coordinator.log"] {
        assert!(folder.join(name).exists(), "{name}");
    }
    for name in ["coordinator", "agent"] {
        assert!(!folder.join(name).exists(), "{name} is kept only when asked for");
    }
    assert_eq!(running(&folder), [""; 0]);
    let (code, _, complaint) = run(&mut demo(&place));
    assert!(code == 2 && complaint.contains("is not empty"), "{complaint}");
}

#[test]
fn the_demo_teaches_its_base_what_it_could_not_do() {
    let place = Place::new();
    let mut demo = lorikeet();
    demo.args(["demo", "--output", "json", "--dir"]).arg(place.path("demo"));
    let (code, answer, notes) = run(&mut demo);
    assert_eq!(code, 0, "{notes}");
    let report: Value = serde_json::from_str(&answer).unwrap();
    let share = |when: &str| {
        let count = &report["exact_match"][when];
        assert_eq!(count["asked"], 100, "{report}");
        count["right"].as_u64().unwrap()
    };
    assert!(share("before") <= 5 && share("after") >= 90, "{report}");
    assert_eq!(report["samples"].as_array().unwrap().len(), 3, "{report}");
    let base = place.path("demo/base");
    assert!(base.join("README.md").exists() && base.join("model.safetensors").exists());
}

#[test]
fn ctrl_c_in_the_demo_stops_everything() {
    let place = Place::new();
    let mut demo = demo(&place).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let notes = BufReader::new(demo.stderr.take().unwrap()).lines().map_while(Result::ok);
    assert!(notes.into_iter().any(|line| line.starts_with("submitted")), "it came as far as the job");
    assert!(!running(&place.path("demo")).is_empty());
    interrupt(&demo);
    assert_eq!(demo.wait().unwrap().code(), Some(130));
    assert_eq!(running(&place.path("demo")), [""; 0]);
    assert!(!place.path("demo").exists(), "the same command works again");
}

#[test]
fn a_terminal_that_is_closed_stops_everything_as_ctrl_c_does() {
    let place = Place::new();
    let mut demo = demo(&place).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let mut notes = BufReader::new(demo.stderr.take().unwrap()).lines().map_while(Result::ok);
    assert!(notes.any(|line| line.starts_with("submitted")), "it came as far as the job");
    kill_process(Pid::from_child(&demo), Signal::HUP).unwrap();
    assert!(notes.any(|line| line == "stopping"));
    // a shell tells of it, and then the kernel; and nobody reads any more
    kill_process(Pid::from_child(&demo), Signal::HUP).unwrap();
    drop(notes);
    assert_eq!(demo.wait().unwrap().code(), Some(130));
    assert_eq!(running(&place.path("demo")), [""; 0]);
    assert!(!place.path("demo").exists());
}

#[test]
fn a_second_ctrl_c_in_the_demo_leaves_nothing_running_either() {
    let place = Place::new();
    let mut demo = demo(&place).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let mut notes = BufReader::new(demo.stderr.take().unwrap()).lines().map_while(Result::ok);
    assert!(notes.any(|line| line.starts_with("submitted")), "it came as far as the job");
    interrupt(&demo);
    assert!(notes.any(|line| line == "stopping"));
    interrupt(&demo);
    assert_eq!(demo.wait().unwrap().code(), Some(130));
    until_nothing_runs(&place.path("demo"));
}

#[test]
fn a_demo_on_a_faulty_file_says_what_is_wrong_and_leaves_nothing() {
    let place = Place::new();
    let bad = file(&place.path(""), "bad.jsonl", "{\"messages\": 3}\nnot json\n");
    let mut demo = lorikeet();
    demo.arg("demo").arg("--dir").arg(place.path("demo")).arg("--dataset").arg(&bad);
    let (code, _, complaint) = run(&mut demo);
    assert!(code == 2 && complaint.contains("bad.jsonl") && complaint.contains("line 2"), "{complaint}");
    assert!(!place.path("demo").exists());
}

#[test]
fn a_demo_that_fails_keeps_its_logs_and_no_keys() {
    let place = Place::new();
    fs::write(place.path("base/model.safetensors"), "no weights").unwrap();
    let (code, _, notes) = run(&mut demo(&place));
    let folder = place.path("demo");
    assert!(code == 2 && notes.contains("logs and configs are left in"), "{code} {notes}");
    assert!(folder.join("coordinator.log").exists() && !folder.join("coordinator").exists(), "{notes}");
}

#[test]
fn a_demo_that_is_killed_takes_everything_along() {
    let place = Place::new();
    let mut demo = demo(&place).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let notes = BufReader::new(demo.stderr.take().unwrap()).lines().map_while(Result::ok);
    assert!(notes.into_iter().any(|line| line.starts_with("submitted")), "it came as far as the job");
    demo.kill().unwrap();
    demo.wait().unwrap();
    until_nothing_runs(&place.path("demo"));
}

#[test]
fn a_dev_that_is_killed_takes_its_worker_along() {
    let place = Place::new();
    let mut dev = Dev::start(&place);
    let node = dev.online_node();
    assert_eq!(node["status"], "ONLINE");
    dev.train_for_ever(&place);
    let folder = place.path("dev");
    until("a worker", || running(&folder).iter().any(|line| line.contains(" worker ")));
    dev.process.kill().unwrap();
    dev.process.wait().unwrap();
    until_nothing_runs(&folder);
    let attempts = fs::read_dir(folder.join("agent/attempts")).unwrap();
    let events = attempts.map(|attempt| fs::read_to_string(attempt.unwrap().path().join("events.jsonl")).unwrap());
    let last = |text: String| text.lines().last().unwrap().to_owned();
    let last: Vec<String> = events.map(last).collect();
    assert!(matches!(&last[..], [one] if one.contains("\"type\":\"stopped\"")), "it left in order: {last:?}");
}

#[test]
fn a_follower_says_why_its_job_waits_and_leaves_it_be() {
    let place = Place::new();
    let dev = Dev::start(&place);
    dev.online_node();
    let job = dev.submit(&place, "[resources]\nlabels = { rack = \"none\" }\n");
    let mut follower = lorikeet();
    follower.args(["--server", &dev.server, "--token", &dev.token, "job", "follow", &job]);
    let mut follower = follower.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut notes = BufReader::new(follower.stderr.take().unwrap()).lines().map_while(Result::ok);
    let mut hear = |words: &str| assert!(notes.any(|line| line.contains(words)), "it never said {words}");
    hear("queued: never, as the machines are: dev lacks the label rack=none");
    let told = |expected: i32, words: &[&str]| {
        let (code, table, complaint) =
            run(lorikeet().args(["--server", &dev.server, "--token", &dev.token]).args(words));
        assert_eq!(code, expected, "{complaint}");
        assert!(table.contains("never, as the machines are: dev lacks the label rack=none"), "{table}");
        assert!(table.contains("fair share") && table.contains("weight 1"), "{table}");
    };
    let mut reader = lorikeet();
    reader.args(["--server", &dev.server, "--token", &dev.token, "job", "logs", &job, "--follow"]);
    let mut reader = reader.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut said = BufReader::new(reader.stderr.take().unwrap()).lines().map_while(Result::ok);
    assert!(said.any(|line| line.contains("queued: never, as the machines are")), "logs that wait say nothing");
    reader.kill().unwrap();
    reader.wait().unwrap();
    told(0, &["job", "why", &job]);
    told(3, &["submit", place.path("job.toml").to_str().unwrap(), "--dry-run"]);
    dev.client(&["job", "pause", &job]);
    hear("paused: `lorikeet job resume job_");
    dev.client(&["job", "resume", &job]);
    hear("it was resumed");
    interrupt(&follower);
    hear("the job goes on: `lorikeet job follow job_");
    assert_eq!(follower.wait().unwrap().code(), Some(130));
    assert!(dev.client(&["job", "show", &job]).contains("QUEUED"));
}

#[test]
fn dev_runs_a_node_and_finds_its_data_again() {
    let place = Place::new();
    let node = Dev::ask(&place, |dev| dev.online_node()["id"].clone());
    assert_eq!(Dev::ask(&place, |dev| dev.online_node()["id"].clone()), node, "the machine stays the node it was");
    assert_eq!(running(&place.path("dev")), [""; 0]);
}

fn demo(place: &Place) -> Command {
    let mut command = lorikeet();
    command.arg("demo").arg("--dir").arg(place.path("demo"));
    command.arg("--base").arg(place.path("base")).arg("--dataset").arg(place.path("data.jsonl"));
    command
}

/// A running `lorikeet dev`.
struct Dev {
    process: Child,
    /// Held open: whom nobody reads any more need not go on.
    _words: BufReader<ChildStdout>,
    server: String,
    token: String,
}

impl Dev {
    fn start(place: &Place) -> Self {
        let mut command = lorikeet();
        command.arg("dev").arg("--dir").arg(place.path("dev")).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut process = command.spawn().unwrap();
        let mut words = BufReader::new(process.stdout.take().unwrap());
        let server = |line: String| line.trim().strip_prefix("export LORIKEET_SERVER=").map(str::to_owned);
        let server = words.by_ref().lines().map_while(Result::ok).find_map(server).unwrap();
        let token = fs::read_to_string(place.path("dev/coordinator/admin.token")).unwrap().trim().to_owned();
        Self { process, _words: words, server, token }
    }

    /// Starts it, asks, and stops it with SIGTERM, of which it makes no words.
    fn ask<T>(place: &Place, question: impl FnOnce(&Self) -> T) -> T {
        let mut dev = Self::start(place);
        let answer = question(&dev);
        kill_process(Pid::from_child(&dev.process), Signal::TERM).unwrap();
        assert_eq!(dev.process.wait().unwrap().code(), Some(0));
        let mut notes = String::new();
        dev.process.stderr.take().unwrap().read_to_string(&mut notes).unwrap();
        assert_eq!(notes, "stopping\n", "a clean end is nothing to warn of");
        answer
    }

    fn client(&self, words: &[&str]) -> String {
        let (code, answer, complaint) =
            run(lorikeet().args(["--server", &self.server, "--token", &self.token, "--output", "json"]).args(words));
        assert_eq!(code, 0, "{complaint}");
        answer
    }

    fn online_node(&self) -> Value {
        let mut node = Value::Null;
        until("the node to be online", || {
            node = serde_json::from_str::<Value>(&self.client(&["nodes"])).unwrap()[0].take();
            node["status"] == "ONLINE"
        });
        node
    }

    /// Submits a job that does not end by itself.
    fn train_for_ever(&self, place: &Place) {
        self.submit(place, "");
    }

    /// Its id.
    fn submit(&self, place: &Place, more: &str) -> String {
        let (base, data) = (place.path("base"), place.path("data.jsonl"));
        self.client(&["base", "add", "tiny", base.to_str().unwrap()]);
        self.client(&["dataset", "add", data.to_str().unwrap(), "--name", "chats"]);
        let job = "base = \"tiny\"\ndataset = \"chats\"\n[training]\nmax_steps = 100000\ncheckpoint_every = 10000\n";
        let job = file(&place.path(""), "job.toml", &format!("{job}{more}"));
        let job: Value = serde_json::from_str(&self.client(&["submit", job.to_str().unwrap()])).unwrap();
        job["id"].as_str().unwrap().to_owned()
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn until_nothing_runs(folder: &Path) {
    until(&format!("nothing to run in {}", folder.display()), || running(folder).is_empty());
}

/// Looks again and again; each look costs a few milliseconds itself.
fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(Instant::now() < deadline, "waited a minute for {what}");
    }
}

/// Command lines of processes that name this folder.
fn running(folder: &Path) -> Vec<String> {
    let folder = folder.to_str().unwrap();
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let lines = processes.filter_map(|process| fs::read(process.path().join("cmdline")).ok());
    let lines = lines.map(|line| String::from_utf8_lossy(&line).replace('\0', " "));
    lines.filter(|line| line.contains(folder)).collect()
}
