//! `lorikeet demo` and `lorikeet dev` on a tiny base: everything is real but the size. Nothing may be left running, ever.

use crate::{
    support::{lorikeet, run},
    train::{Place, interrupt},
};
use serde_json::Value;
use std::{
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
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
    assert!(report["sample"]["prompt"].as_str().unwrap().starts_with("what is "), "{report}");
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
fn ctrl_c_in_the_demo_stops_everything() {
    let place = Place::new();
    let mut demo = demo(&place).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let notes = BufReader::new(demo.stderr.take().unwrap()).lines().map_while(Result::ok);
    assert!(notes.into_iter().any(|line| line.starts_with("submitted")), "it came as far as the job");
    assert!(!running(&place.path("demo")).is_empty());
    interrupt(&demo);
    assert_eq!(demo.wait().unwrap().code(), Some(130));
    assert_eq!(running(&place.path("demo")), [""; 0]);
}

#[test]
fn dev_runs_a_node_and_finds_its_data_again() {
    let place = Place::new();
    let node = with_dev(&place, |nodes| nodes["id"].clone());
    assert_eq!(with_dev(&place, |nodes| nodes["id"].clone()), node, "the machine stays the node it was");
    assert_eq!(running(&place.path("dev")), [""; 0]);
}

fn demo(place: &Place) -> Command {
    let mut command = lorikeet();
    command.arg("demo").arg("--dir").arg(place.path("demo"));
    command.arg("--base").arg(place.path("base")).arg("--dataset").arg(place.path("data.jsonl"));
    command
}

/// Starts `lorikeet dev`, waits until its node is online, asks, and stops it with SIGTERM.
fn with_dev<T>(place: &Place, ask: impl FnOnce(&Value) -> T) -> T {
    let mut dev = lorikeet().arg("dev").arg("--dir").arg(place.path("dev")).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(dev.stdout.take().unwrap()).lines().map_while(Result::ok);
    let server = lines.find_map(|line| line.trim().strip_prefix("export LORIKEET_SERVER=").map(str::to_owned)).unwrap();
    let token = fs::read_to_string(place.path("dev/coordinator/admin.token")).unwrap();
    let answer = ask(&online_node(&server, token.trim()));
    stop(&mut dev);
    answer
}

fn online_node(server: &str, token: &str) -> Value {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let (code, nodes, complaint) =
            run(lorikeet().args(["--server", server, "--token", token, "nodes", "--output", "json"]));
        assert_eq!(code, 0, "{complaint}");
        let nodes: Value = serde_json::from_str(&nodes).unwrap();
        if nodes[0]["status"] == "ONLINE" {
            return nodes[0].clone();
        }
        assert!(Instant::now() < deadline, "{nodes}");
    }
}

fn stop(dev: &mut Child) {
    let pid = rustix::process::Pid::from_raw(dev.id().cast_signed()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert_eq!(dev.wait().unwrap().code(), Some(0));
}

/// Command lines of processes that name this folder.
fn running(folder: &Path) -> Vec<String> {
    let folder = folder.to_str().unwrap();
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let lines = processes.filter_map(|process| fs::read(process.path().join("cmdline")).ok());
    let lines = lines.map(|line| String::from_utf8_lossy(&line).replace('\0', " "));
    lines.filter(|line| line.contains(folder)).collect()
}
