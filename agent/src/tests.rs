//! The whole agent against the stand-in coordinator and the stand-in worker: real sockets, real processes, a real disk.

#![expect(clippy::wildcard_enum_match_arm, reason = "a test names what it looks for")]

use super::*;
use crate::{
    config::{Choice, Devices, Fake},
    host::tests::offer_on,
    link::stand_in::{Coordinator, Manner, Peer, Shelf, attempt, welcome, within},
    supervisor::stand_in::{End, Script},
};
use lorikeet_protocol::{
    agent::{
        Checkpoint, CheckpointKind, Ended, FromAgent, Hello, Offer, Report, ReportBody, StopHow, ToAgent, Verdict,
        Welcome,
    },
    blob::Refusal,
    id::{AttemptId, Hash},
    job::{AttemptPhase, FailureClass, Outcome, StopCause},
    worker::{EventLine, HOLDER, Holder, WorkerEvent},
};
use std::{path::Path, time::Duration};

#[tokio::test(flavor = "multi_thread")]
async fn an_offer_becomes_an_adapter_at_the_coordinator() {
    let mut scene = Scene::new(&Script::new(12, 5)).await;
    let mut talk = scene.start().await;
    talk.offer(&scene, 1, None).await;
    let ended = talk.until_ended().await;
    assert_eq!((ended.outcome, ended.step), (Outcome::Ok, 12));
    assert_eq!(ended.summary.as_deref(), Some("{\"steps\":1}"));
    // A checkpoint may still be on its way when the worker says its last word.
    let mut phases = talk.phases();
    phases.retain(|phase| phase != "finalizing");
    assert_eq!(phases, ["preparing", "running", "checkpoint 5", "checkpoint 10", "ended"]);
    assert!(talk.numbers_have_no_gaps());
    assert!(talk.reports.iter().any(|report| matches!(report.body, ReportBody::Progress(_))));
    scene.holds_every_file(&talk.reports);

    let lines = talk.until_lines(1).await;
    assert!(matches!(lines.last().unwrap().event, WorkerEvent::Finished { .. }));
    assert!(lines.iter().map(|line| line.seq).eq(1..=lines.len() as u64));
    talk.say(ToAgent::EventsAcknowledged { attempt: attempt(1), through: lines.len() as u64 }).await;
    talk.say(ToAgent::Forget(attempt(1))).await;
    scene.until_gone(1).await;
    scene.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_goes_on_from_a_checkpoint_made_elsewhere() {
    let mut scene = Scene::new(&Script::new(12, 1)).await;
    let mut talk = scene.start().await;
    let files = vec![scene.coordinator.shelve("manifest.json", b"{}"), scene.coordinator.shelve("state.json", b"s")];
    let resume = Checkpoint { step: 10, loss: 1.0, kind: CheckpointKind::Periodic, files };
    talk.offer(&scene, 1, Some(resume)).await;
    talk.until_ended().await;
    assert!(talk.reports.iter().any(|report| report.body == ReportBody::Running { from_step: 10 }));
    let steps = talk.until_lines(1).await;
    let first =
        steps.iter().find_map(|line| if let WorkerEvent::Step(step) = &line.event { Some(step.step) } else { None });
    assert_eq!(first, Some(11));
    scene.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_agent_finds_its_running_worker_and_goes_on() {
    let mut scene = Scene::new(&Script::new(100_000, 5)).await;
    let mut talk = scene.start().await;
    talk.offer(&scene, 1, None).await;
    talk.until(|report| matches!(report.body, ReportBody::Checkpoint(_))).await;
    let worker = scene.holder(1);
    let heard = talk.reports.last().unwrap().number;
    scene.shutdown().await;
    assert_eq!(scene.holder(1), worker);

    let mut talk = scene.start_with(|hello| Welcome { last_report: heard, ..welcome(hello) }).await;
    assert_eq!(talk.known, [(attempt(1), AttemptPhase::Running)]);
    talk.until(|report| matches!(report.body, ReportBody::Progress(_))).await;
    talk.say(ToAgent::Stop { attempt: attempt(1), how: StopHow::Save, cause: StopCause::Pause }).await;
    let ended = talk.until_ended().await;
    assert_eq!(ended.outcome, Outcome::Preempted);
    assert_eq!(scene.holder(1), worker, "the same process to the end");
    let emergency =
        |report: &Report| matches!(&report.body, ReportBody::Checkpoint(one) if one.kind == CheckpointKind::Emergency);
    assert!(talk.reports.iter().any(emergency));
    assert!(!talk.phases().contains(&"running".to_owned()), "it was said before");
    scene.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_worker_is_gone_and_its_device_free_for_the_next() {
    let mut scene = Scene::new(&Script::new(100_000, 5)).await;
    let mut talk = scene.start().await;
    talk.offer(&scene, 1, None).await;
    talk.until(|report| matches!(report.body, ReportBody::Running { .. })).await;
    talk.say(ToAgent::Stop { attempt: attempt(1), how: StopHow::Discard, cause: StopCause::Cancel }).await;
    assert_eq!(talk.until_ended().await.outcome, Outcome::Cancelled);
    talk.offer(&scene, 2, None).await;
    talk.until(|report| report.attempt == attempt(2) && matches!(report.body, ReportBody::Running { .. })).await;
    talk.say(ToAgent::Stop { attempt: attempt(2), how: StopHow::Discard, cause: StopCause::Cancel }).await;
    talk.until_ended().await;
    scene.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_killed_in_mid_step_is_lost_with_its_last_checkpoint_counted() {
    let mut scene = Scene::new(&Script::new(100_000, 5)).await;
    let mut talk = scene.start().await;
    talk.offer(&scene, 1, None).await;
    talk.until(|report| matches!(report.body, ReportBody::Checkpoint(_))).await;
    scene.kill(1);
    let ended = talk.until_ended().await;
    assert_eq!(ended.outcome, Outcome::Lost);
    assert!(ended.message.unwrap().contains("signal: 9"));
    scene.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workers_own_failure_and_a_silent_end_are_told_apart() {
    for (end, outcome, class) in
        [(End::Fail, Outcome::UserError, Some(FailureClass::Dataset)), (End::Vanish, Outcome::Lost, None)]
    {
        let mut scene = Scene::new(&Script { end, ..Script::new(2, 1) }).await;
        let mut talk = scene.start().await;
        talk.offer(&scene, 1, None).await;
        let ended = talk.until_ended().await;
        assert_eq!((ended.outcome, ended.class), (outcome, class));
        scene.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_grows_too_large_is_killed_and_the_agent_lives() {
    let mut scene = Scene::new(&Script { grow_bytes: 200 << 20, ..Script::new(100_000, 5) }).await;
    scene.config.worker.memory_limit = Some(100 << 20);
    let mut talk = scene.start().await;
    talk.offer(&scene, 1, None).await;
    assert_eq!(talk.until_ended().await.outcome, Outcome::Oom);
    scene.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_time_limit_saves_and_ends_an_attempt() {
    let mut scene = Scene::new(&Script::new(100_000, 5)).await;
    let mut talk = scene.start().await;
    let mut offer = scene.offer(1, None);
    offer.time_left = Duration::from_millis(300);
    talk.say(ToAgent::Offer(Box::new(offer))).await;
    assert_eq!(talk.until_ended().await.outcome, Outcome::TimedOut);
    scene.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_are_not_ours_end_an_attempt_before_it_begins() {
    let mut scene = Scene::new(&Script::new(1, 1)).await;
    let mut talk = scene.start().await;
    let offer = scene.offer(1, None);
    scene.coordinator.shelf.lock().unwrap().files.remove(&offer.dataset.manifest.hash);
    talk.say(ToAgent::Offer(Box::new(offer))).await;
    let ended = talk.until_ended().await;
    assert_eq!(ended.outcome, Outcome::Superseded);
    scene.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hours_without_a_coordinator_cost_nothing() {
    let mut scene = Scene::new(&Script::new(40, 10)).await;
    let mut talk = scene.start().await;
    talk.offer(&scene, 1, None).await;
    talk.until(|report| matches!(report.body, ReportBody::Running { .. })).await;
    let heard = talk.reports.last().unwrap().number;
    drop(talk);
    scene.crash_coordinator().await;
    scene.until_outcome(1).await;

    let mut talk = scene.restart_coordinator(heard).await;
    let ended = talk.until_ended().await;
    assert_eq!((ended.outcome, ended.step), (Outcome::Ok, 40));
    assert!(talk.reports[0].number == heard + 1 && talk.numbers_have_no_gaps());
    let lines = talk.until_lines(1).await;
    assert!(lines.iter().map(|line| line.seq).eq(1..=lines.len() as u64));
    scene.holds_every_file(&talk.reports);
    scene.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_the_coordinator_lost_are_uploaded_again_before_their_report() {
    let mut scene = Scene::new(&Script::new(12, 5)).await;
    let mut talk = scene.start().await;
    talk.mute = true;
    talk.offer(&scene, 1, None).await;
    talk.until_ended().await;
    drop(talk);
    scene.crash_coordinator().await;
    scene.shelf_is_lost();
    let mut talk = scene.restart_coordinator(0).await;
    talk.until_ended().await;
    scene.holds_every_file(&talk.reports);
    scene.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_report_that_is_not_acknowledged_is_said_again() {
    let mut scene = Scene::new(&Script::new(1, 1)).await;
    scene.config.link.report_retry = Duration::from_millis(200);
    let mut talk = scene.start().await;
    talk.mute = true;
    talk.offer(&scene, 1, None).await;
    talk.until_ended().await;
    talk.until_ended().await;
    let firsts = talk.reports.iter().filter(|report| report.number == 1).count();
    assert!(firsts >= 2, "{:?}", talk.reports);
    talk.say(ToAgent::Acknowledged { through: talk.reports.last().unwrap().number }).await;
    scene.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_that_is_not_current_is_stopped_and_forgotten() {
    let mut scene = Scene::new(&Script::new(100_000, 5)).await;
    let mut talk = scene.start().await;
    talk.offer(&scene, 1, None).await;
    talk.until(|report| matches!(report.body, ReportBody::Running { .. })).await;
    let heard = talk.reports.last().unwrap().number;
    scene.shutdown().await;
    let mut talk = scene
        .start_with(|hello| Welcome {
            last_report: heard,
            verdicts: hello.attempts.iter().map(|known| (known.id, Verdict::Stop)).collect(),
            ..welcome(hello)
        })
        .await;
    assert_eq!(talk.until_ended().await.outcome, Outcome::Superseded);
    let through = talk.until_lines(1).await.len() as u64;
    talk.say(ToAgent::EventsAcknowledged { attempt: attempt(1), through }).await;
    scene.until_gone(1).await;
    scene.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_told_to_leave_no_work_behind_saves_it_first() {
    let mut scene = Scene::new(&Script::new(100_000, 5)).await;
    scene.config.stop_workers_on_exit = true;
    let mut talk = scene.start().await;
    talk.offer(&scene, 1, None).await;
    talk.until(|report| matches!(report.body, ReportBody::Running { .. })).await;
    scene.shutdown().await;
    let holder = scene.holder(1);
    assert!(procfs::process::Process::new(holder.pid as i32).is_err(), "the worker is still there");
    let events = std::fs::read_to_string(scene.places().attempt(attempt(1)).join("events.jsonl")).unwrap();
    assert!(events.lines().last().unwrap().contains("stopped"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_device_and_an_unusable_one_are_declined() {
    let mut scene = Scene::new(&Script::new(100_000, 5)).await;
    let mut talk = scene.start().await;
    talk.offer(&scene, 1, None).await;
    talk.until(|report| matches!(report.body, ReportBody::Running { .. })).await;
    let other = AttemptId { job: lorikeet_protocol::id::JobId(uuid::Uuid::from_u128(8)), ..attempt(1) };
    for (device, reason) in [("cpu", "held by"), ("broken", "no driver")] {
        let mut offer = scene.offer(1, None);
        offer.attempt = other;
        offer.devices = vec![lorikeet_protocol::id::DeviceId(device.into())];
        talk.say(ToAgent::Offer(Box::new(offer))).await;
        assert!(talk.until_declined().await.contains(reason));
    }
    talk.say(ToAgent::Stop { attempt: attempt(1), how: StopHow::Discard, cause: StopCause::Cancel }).await;
    talk.until_ended().await;
    scene.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_is_refused_for_good_ends_the_attempt_with_its_reason() {
    let mut scene = Scene::new(&Script::new(4, 100)).await;
    let mut talk = scene.start().await;
    talk.offer(&scene, 1, None).await;
    talk.until(|report| matches!(report.body, ReportBody::Running { .. })).await;
    scene.coordinator.shelf.lock().unwrap().refuse = vec![Refusal::TooLarge; 8];
    let ended = talk.until_ended().await;
    assert_eq!(ended.outcome, Outcome::UserError);
    assert!(ended.message.unwrap().contains("TooLarge"));
    scene.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_agents_on_one_data_directory_are_one_too_many() {
    let mut scene = Scene::new(&Script::new(1, 1)).await;
    let _talk = scene.start().await;
    let error = Agent::start(scene.config.clone()).await.unwrap_err();
    assert!(matches!(error, AgentError::Busy(_)), "{error}");
    assert_eq!(error.blame(), Blame::Person);
    scene.shutdown().await;
}

#[tokio::test]
async fn an_agent_that_never_joined_says_how_to() {
    let folder = tempfile::tempdir().unwrap();
    let error = Agent::start(Config { data_dir: folder.path().into(), ..Config::default() }).await.unwrap_err();
    assert!(error.to_string().contains("has not joined"), "{error}");
    assert!(error.hint().unwrap().contains("lorikeet agent join"));
}

#[tokio::test]
async fn a_data_directory_that_cannot_be_written_is_named() {
    let coordinator = Coordinator::start();
    let config = Config { data_dir: "/proc/nowhere".into(), ..Config::default() };
    let error = Agent::join(&coordinator.join_string(), &config).await.unwrap_err();
    assert!(error.to_string().contains("/proc/nowhere"), "{error}");
    assert_eq!(error.blame(), Blame::Machine);
    assert!(coordinator.joins.lock().unwrap().is_empty(), "a secret was spent on a machine that cannot keep its key");
}

struct Scene {
    folder: tempfile::TempDir,
    config: Config,
    coordinator: Coordinator,
    agent: Option<Agent>,
}

/// One session, seen from the coordinator: it acknowledges every report and keeps what it heard.
struct Talk {
    peer: Peer,
    known: Vec<(AttemptId, AttemptPhase)>,
    reports: Vec<Report>,
    lines: Vec<(AttemptId, EventLine)>,
    declined: Vec<String>,
    mute: bool,
}

impl Scene {
    async fn new(script: &Script) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let coordinator = Coordinator::start();
        let device = |id: &str, unusable: Option<&str>| Fake {
            id: id.into(),
            name: id.into(),
            memory: 1 << 34,
            compute: None,
            unusable: unusable.map(str::to_owned),
        };
        let config = Config {
            data_dir: folder.path().join("data"),
            name: Some("test".into()),
            devices: Devices {
                kind: Choice::Cpu,
                fake: vec![device("cpu", None), device("broken", Some("no driver"))],
                ..Devices::default()
            },
            worker: script.config(),
            link: config::Link {
                backoff_first: Duration::from_millis(10),
                backoff_longest: Duration::from_millis(100),
                keep_alive: Duration::from_millis(200),
                idle_timeout: Duration::from_secs(2),
                ..config::Link::default()
            },
            ..Config::default()
        };
        Agent::join(&coordinator.join_string(), &config).await.unwrap();
        Self { folder, config, coordinator, agent: None }
    }

    async fn start(&mut self) -> Talk {
        self.start_with(|hello| Welcome { last_report: hello.acknowledged, ..welcome(hello) }).await
    }

    async fn start_with(&mut self, answer: impl FnOnce(&Hello) -> Welcome) -> Talk {
        self.agent = Some(Agent::start(self.config.clone()).await.unwrap());
        Talk::new(self.coordinator.welcomed(answer).await)
    }

    async fn shutdown(&mut self) {
        let agent = self.agent.take().expect("an agent runs");
        within(agent.shutdown()).await.unwrap();
    }

    async fn crash_coordinator(&mut self) {
        let address = self.coordinator.address();
        let shelf = std::mem::take(&mut *self.coordinator.shelf.lock().unwrap());
        let spare = Coordinator::start();
        let authority = std::mem::replace(&mut self.coordinator, spare).stop().await;
        self.coordinator = Coordinator::with(authority, Manner::default(), address, shelf);
    }

    fn shelf_is_lost(&self) {
        *self.coordinator.shelf.lock().unwrap() = Shelf::default();
    }

    async fn restart_coordinator(&mut self, heard: u64) -> Talk {
        Talk::new(self.coordinator.welcomed(|hello| Welcome { last_report: heard, ..welcome(hello) }).await)
    }

    fn places(&self) -> Places {
        Places::new(&self.config.data_dir)
    }

    fn offer(&self, number: u32, resume: Option<Checkpoint>) -> Offer {
        Offer {
            base: vec![self.coordinator.shelve("config.json", b"{\"base\":1}")],
            dataset: self.coordinator.shelve("train.jsonl", b"[\"data\"]"),
            resume,
            ..offer_on(attempt(number), "cpu")
        }
    }

    fn holder(&self, number: u32) -> Holder {
        let path = self.places().attempt(attempt(number)).join(HOLDER);
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
    }

    fn kill(&self, number: u32) {
        let name = supervisor::group::Name::of_holder(&self.holder(number), clock::boot_id()).unwrap();
        assert!(name.signal(rustix::process::Signal::KILL));
    }

    fn holds_every_file(&self, reports: &[Report]) {
        let shelf = self.coordinator.shelf.lock().unwrap();
        for report in reports {
            let files: Vec<Hash> = match &report.body {
                ReportBody::Checkpoint(checkpoint) => checkpoint.files.iter().map(|file| file.manifest.hash).collect(),
                ReportBody::Ended(ended) => ended.files.iter().map(|file| file.manifest.hash).collect(),
                _ => vec![],
            };
            for hash in files {
                assert!(shelf.files.contains_key(&hash), "a file of {report:?} is not there");
            }
        }
    }

    /// Until the worker has written its last line, whoever listens.
    async fn until_outcome(&self, number: u32) {
        let path = self.places().attempt(attempt(number)).join("events.jsonl");
        until(|| std::fs::read_to_string(&path).is_ok_and(|text| text.contains("finished"))).await;
    }

    /// Until nothing of the attempt is left on the disk.
    async fn until_gone(&self, number: u32) {
        let places = self.places();
        let record = places.records().join(format!("{}.json", attempt(number)));
        until(|| !record.exists()).await;
        for path in [places.attempt(attempt(number)), places.inputs(attempt(number)), places.uploads(attempt(number))] {
            assert!(!path.exists(), "{} is still there", path.display());
        }
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        // A test that failed leaves nobody behind.
        let attempts = self.folder.path().join("data/attempts");
        for entry in std::fs::read_dir(attempts).into_iter().flatten().flatten() {
            kill_holder(&entry.path());
        }
    }
}

fn kill_holder(directory: &Path) {
    let holder = std::fs::read(directory.join(HOLDER)).ok();
    let holder: Option<Holder> = holder.and_then(|json| serde_json::from_slice(&json).ok());
    if let Some(name) = holder.and_then(|holder| supervisor::group::Name::of_holder(&holder, clock::boot_id())) {
        name.signal(rustix::process::Signal::KILL);
    }
}

impl Talk {
    fn new(peer: Peer) -> Self {
        let known = peer.hello.attempts.iter().map(|known| (known.id, known.phase)).collect();
        Self { peer, known, reports: vec![], lines: vec![], declined: vec![], mute: false }
    }

    async fn say(&mut self, message: ToAgent) {
        self.peer.say(message).await;
    }

    async fn offer(&mut self, scene: &Scene, number: u32, resume: Option<Checkpoint>) {
        self.say(ToAgent::Offer(Box::new(scene.offer(number, resume)))).await;
    }

    async fn hear(&mut self) {
        match self.peer.hear_news().await {
            FromAgent::Report(report) => {
                let through = report.number;
                self.reports.push(report);
                if !self.mute {
                    self.say(ToAgent::Acknowledged { through }).await;
                }
            }
            FromAgent::Events(events) => {
                for (line, seq) in events.lines.iter().zip(events.first..) {
                    let line: EventLine = serde_json::from_str(line).unwrap();
                    assert_eq!(line.seq, seq);
                    self.lines.push((events.attempt, line));
                }
            }
            FromAgent::Declined { reason, .. } => self.declined.push(reason),
            FromAgent::Accepted(_) => {}
            other => panic!("expected a report, found {other:?}"),
        }
    }

    async fn until(&mut self, wanted: impl Fn(&Report) -> bool) -> Report {
        loop {
            let heard = self.reports.len();
            self.hear().await;
            if let Some(report) = self.reports[heard..].iter().find(|report| wanted(report)) {
                return report.clone();
            }
        }
    }

    async fn until_ended(&mut self) -> Ended {
        let report = self.until(|report| matches!(report.body, ReportBody::Ended(_))).await;
        let ReportBody::Ended(ended) = report.body else { unreachable!() };
        ended
    }

    async fn until_declined(&mut self) -> String {
        while self.declined.is_empty() {
            self.hear().await;
        }
        self.declined.remove(0)
    }

    /// Every line of an attempt, up to its outcome.
    async fn until_lines(&mut self, number: u32) -> Vec<EventLine> {
        loop {
            let of = self.lines.iter().filter(|(id, _)| *id == attempt(number)).map(|(_, line)| line.clone());
            let lines: Vec<_> = of.collect();
            if lines.last().is_some_and(|line| line.event.is_outcome()) {
                return lines;
            }
            self.hear().await;
        }
    }

    fn phases(&self) -> Vec<String> {
        let word = |report: &Report| match &report.body {
            ReportBody::Preparing => Some("preparing".to_owned()),
            ReportBody::Running { .. } => Some("running".to_owned()),
            ReportBody::Checkpoint(checkpoint) => Some(format!("checkpoint {}", checkpoint.step)),
            ReportBody::Finalizing => Some("finalizing".to_owned()),
            ReportBody::Ended(_) => Some("ended".to_owned()),
            ReportBody::Progress(_) => None,
        };
        self.reports.iter().filter_map(word).collect()
    }

    fn numbers_have_no_gaps(&self) -> bool {
        self.reports.windows(2).all(|pair| pair[1].number == pair[0].number + 1)
    }
}

async fn until(holds: impl Fn() -> bool) {
    within(async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}
