//! One agent, its coordinator, and what they say to each other.

use super::*;

/// One machine.
pub(super) struct Scene {
    pub(super) folder: tempfile::TempDir,
    pub(super) config: Config,
    pub(super) coordinator: Coordinator,
    pub(super) agent: Option<Agent>,
}

/// One session, seen from the coordinator: it acknowledges every report and keeps what it heard.
pub(super) struct Talk {
    pub(super) peer: Peer,
    pub(super) known: Vec<(AttemptId, AttemptPhase)>,
    pub(super) reports: Vec<Report>,
    pub(super) lines: Vec<(AttemptId, EventLine)>,
    pub(super) declined: Vec<String>,
    pub(super) mute: bool,
}

impl Scene {
    pub(super) async fn new(script: &Script) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let coordinator = Coordinator::start();
        let device = |id: &str, unusable: Option<&str>| Fake {
            id: id.into(),
            name: id.into(),
            memory: 1 << 34,
            compute: None,
            unusable: unusable.map(str::to_owned),
            held_by: None,
            signs: None,
            power_watts: None,
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

    pub(super) async fn start(&mut self) -> Talk {
        self.start_with(|hello| Welcome { last_report: hello.acknowledged, ..welcome(hello) }).await
    }

    pub(super) async fn start_with(&mut self, answer: impl FnOnce(&Hello) -> Welcome) -> Talk {
        self.agent = Some(Agent::start(self.config.clone()).await.unwrap());
        Talk::new(self.coordinator.welcomed(answer).await)
    }

    pub(super) async fn shutdown(&mut self) {
        let agent = self.agent.take().expect("an agent runs");
        within(agent.shutdown()).await.unwrap();
    }

    pub(super) async fn crash_coordinator(&mut self) {
        let address = self.coordinator.address();
        let shelf = std::mem::take(&mut *self.coordinator.shelf.lock().unwrap());
        let spare = Coordinator::start();
        let authority = std::mem::replace(&mut self.coordinator, spare).stop().await;
        self.coordinator = Coordinator::with(authority, Manner::default(), address, shelf);
    }

    pub(super) fn shelf_is_lost(&self) {
        *self.coordinator.shelf.lock().unwrap() = Shelf::default();
    }

    pub(super) async fn restart_coordinator(&mut self, heard: u64) -> Talk {
        Talk::new(self.coordinator.welcomed(|hello| Welcome { last_report: heard, ..welcome(hello) }).await)
    }

    pub(super) fn places(&self) -> Places {
        Places::new(&self.config.data_dir)
    }

    pub(super) fn offer(&self, number: u32, resume: Option<Checkpoint>) -> Offer {
        Offer {
            base: vec![self.coordinator.shelve("config.json", b"{\"base\":1}")],
            dataset: self.coordinator.shelve("train.jsonl", b"[\"data\"]"),
            resume,
            ..offer_on(attempt(number), "cpu")
        }
    }

    pub(super) fn holder(&self, number: u32) -> Holder {
        let path = self.places().attempt(attempt(number)).join(HOLDER);
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
    }

    pub(super) fn kill(&self, number: u32) {
        let name = supervisor::group::Name::of_holder(&self.holder(number), clock::boot_id()).unwrap();
        assert!(name.signal(rustix::process::Signal::KILL));
    }

    /// A worker that waits at this step takes it.
    pub(super) fn lets_go(&self, number: u32, step: u64) {
        std::fs::write(self.places().attempt(attempt(number)).join(goes(step)), "").unwrap();
    }

    pub(super) fn holds_every_file(&self, reports: &[Report]) {
        let shelf = self.coordinator.shelf.lock().unwrap();
        for report in reports {
            for file in report.body.files() {
                assert!(shelf.files.contains_key(&file.manifest.hash), "a file of {report:?} is not there");
            }
        }
    }

    /// Until the worker has written its last line, whoever listens.
    pub(super) async fn until_outcome(&self, number: u32) {
        let path = self.places().attempt(attempt(number)).join("events.jsonl");
        until(|| std::fs::read_to_string(&path).is_ok_and(|text| text.contains("finished"))).await;
    }

    /// Until nothing of the attempt is left on the disk.
    pub(super) async fn until_gone(&self, number: u32) {
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

pub(super) fn kill_holder(directory: &Path) {
    let holder = std::fs::read(directory.join(HOLDER)).ok();
    let holder: Option<Holder> = holder.and_then(|json| serde_json::from_slice(&json).ok());
    if let Some(name) = holder.and_then(|holder| supervisor::group::Name::of_holder(&holder, clock::boot_id())) {
        name.signal(rustix::process::Signal::KILL);
    }
}

impl Talk {
    pub(super) fn new(peer: Peer) -> Self {
        let known = peer.hello.attempts.iter().map(|known| (known.id, known.phase)).collect();
        Self { peer, known, reports: vec![], lines: vec![], declined: vec![], mute: false }
    }

    pub(super) async fn say(&mut self, message: ToAgent) {
        self.peer.say(message).await;
    }

    pub(super) async fn offer(&mut self, scene: &Scene, number: u32, resume: Option<Checkpoint>) {
        self.say(ToAgent::Offer(Box::new(scene.offer(number, resume)))).await;
    }

    pub(super) async fn hear(&mut self) {
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
            FromAgent::Devices(_) => {}
            FromAgent::Accepted(_) => {}
            other => panic!("expected a report, found {other:?}"),
        }
    }

    pub(super) async fn until(&mut self, wanted: impl Fn(&Report) -> bool) -> Report {
        loop {
            let heard = self.reports.len();
            self.hear().await;
            if let Some(report) = self.reports[heard..].iter().find(|report| wanted(report)) {
                return report.clone();
            }
        }
    }

    pub(super) async fn until_ended(&mut self) -> Ended {
        let report = self.until(|report| matches!(report.body, ReportBody::Ended(_))).await;
        let ReportBody::Ended(ended) = report.body else { unreachable!() };
        ended
    }

    pub(super) async fn until_declined(&mut self) -> String {
        while self.declined.is_empty() {
            self.hear().await;
        }
        self.declined.remove(0)
    }

    /// Until a device is said to be so. What else is said on the way is of no interest any more.
    pub(super) async fn until_device(&mut self, id: &str, wanted: impl Fn(&Result<(), String>) -> bool) {
        within(async {
            loop {
                if let FromAgent::Devices(devices) = self.peer.hear().await
                    && devices.iter().any(|device| device.id.0 == id && wanted(&device.usable))
                {
                    return;
                }
            }
        })
        .await;
    }

    /// Every line of an attempt, up to its outcome.
    pub(super) async fn until_lines(&mut self, number: u32) -> Vec<EventLine> {
        loop {
            let of = self.lines.iter().filter(|(id, _)| *id == attempt(number)).map(|(_, line)| line.clone());
            let lines: Vec<_> = of.collect();
            if lines.last().is_some_and(|line| line.event.is_outcome()) {
                return lines;
            }
            self.hear().await;
        }
    }

    pub(super) fn phases(&self) -> Vec<String> {
        let word = |report: &Report| match &report.body {
            ReportBody::Preparing => Some("preparing".to_owned()),
            ReportBody::Running { .. } => Some("running".to_owned()),
            ReportBody::Checkpoint(checkpoint) => Some(format!("checkpoint {}", checkpoint.step)),
            ReportBody::Finalizing => Some("finalizing".to_owned()),
            ReportBody::Ended(_) | ReportBody::Metered(_) => Some("ended".to_owned()),
            ReportBody::Progress(_) => None,
        };
        self.reports.iter().filter_map(word).collect()
    }

    pub(super) fn numbers_have_no_gaps(&self) -> bool {
        self.reports.windows(2).all(|pair| pair[1].number == pair[0].number + 1)
    }
}

pub(super) async fn until(holds: impl Fn() -> bool) {
    within(async {
        while !holds() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}
