//! Disks without room: small file systems in memory, where this machine lets us mount one.

use crate::{assert_untouched, machine, numbers};
use lorikeet_tests::{Lab, lab::Machine, until};
use std::{
    path::{Path, PathBuf},
    process::Command,
};

const STEPS: u64 = 400;

/// A file system of so many MiB; gone when dropped.
struct Small(PathBuf);

impl Small {
    /// `None`: this machine does not let us; said, so that nobody takes it for a pass.
    fn mount(at: &Path, mebibytes: u32) -> Option<Self> {
        std::fs::create_dir_all(at).expect("the folder is ours");
        let size = format!("size={mebibytes}m,mode=0700");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(at).output();
        if mounted.as_ref().is_ok_and(|output| output.status.success()) {
            return Some(Self(at.to_owned()));
        }
        eprintln!("SKIPPED: a small file system needs the right to mount: {mounted:?}");
        None
    }

    /// Takes whatever room there is.
    fn fill(&self) -> PathBuf {
        let ballast = self.0.join("ballast");
        let mut file = std::fs::File::create(&ballast).expect("a name needs no room");
        let full = std::io::copy(&mut std::io::repeat(0), &mut file).expect_err("it is small");
        assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
        ballast
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_coordinator_without_room_refuses_what_is_new_and_takes_it_again_when_there_is_some() {
    let root = tempfile::tempdir().expect("a temporary folder");
    let Some(small) = Small::mount(&root.path().join("small"), 160) else { return };
    let lab = Lab::start_in(&small.0);
    let agent = lab.agent_on("only", &Machine { data: Some(root.path().join("agent")), ..machine(1, STEPS, 50) });
    let file = lab.job_file("room", STEPS, 1_000);
    let job = lab.submit(&file);
    lab.api.until_step(&job, 5);
    let ballast = small.fill();
    let body = serde_json::json!({ "base": "tiny", "dataset": "chats" });
    until("new work to be refused", || {
        let (status, body) = lab.api.post("/api/jobs", &body, None)?;
        (status == 507).then_some(body)
    });
    let seen = lab.api.job(&job);
    assert_eq!(seen["phase"], "running", "reads go on, and so do jobs: {seen:#}");
    std::fs::remove_file(ballast).expect("it was there");
    until("new work to be taken", || lab.api.post("/api/jobs", &body, None).filter(|(status, _)| *status == 201));
    assert_untouched(&lab, &job, STEPS);
    // The second one has the machine next.
    let second = lab.api.get("/api/jobs")[0]["id"].as_str().expect("an id").to_owned();
    lab.api.until_phase(&second, &["succeeded"]);
    until("the workers to be gone", || agent.workers().is_empty().then_some(()));
}

#[test]
fn an_agent_without_room_loses_no_step_and_reports_it_all_when_there_is_some() {
    let root = tempfile::tempdir().expect("a temporary folder");
    let Some(small) = Small::mount(&root.path().join("small"), 64) else { return };
    let lab = Lab::start();
    let agent = lab.agent_on("only", &Machine { data: Some(small.0.join("agent")), ..machine(1, STEPS, 20) });
    let job = lab.submit(&lab.job_file("room", STEPS, 1_000));
    lab.api.until_step(&job, 60);
    let ballast = small.fill();
    // Its worker cannot write either: the attempt ends, or nobody hears of it until there is room.
    until("the agent to notice", || {
        let log = std::fs::read_to_string(lab.root().join("only.log")).unwrap_or_default();
        log.contains("No space left").then_some(())
    });
    std::fs::remove_file(ballast).expect("it was there");
    let done = lab.api.until_phase(&job, &["succeeded", "failed"]);
    assert_eq!(done["phase"], "succeeded", "{done:#}");
    assert_eq!(numbers(&lab, &job), (1..=STEPS).collect::<Vec<_>>());
    until("the workers to be gone", || agent.workers().is_empty().then_some(()));
}
