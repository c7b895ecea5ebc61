//! A host, a clock, and the small builders of events.

use super::*;

/// A host and what the driver would keep for it.
pub(super) struct Scene {
    pub(super) host: Host,
    pub(super) rules: Rules,
    pub(super) now: Now,
    pub(super) records: BTreeMap<AttemptId, Record>,
    pub(super) accepted: usize,
    /// What its GPUs draw, where a test is about that.
    pub(super) watts: u64,
}

impl Scene {
    pub(super) fn new() -> Self {
        let rules = Rules::new(BootId(uuid::Uuid::from_u128(1)), &Worker::default(), &Devices::default());
        let now = Now { mono: Duration::from_secs(1000), wall: UnixMillis(1_000_000) };
        let (host, _) = Host::restore(rules.clone(), vec![], now);
        let mut scene = Self { host, rules, now, records: BTreeMap::new(), accepted: 0, watts: 0 };
        scene.event(Event::Looked(seen(&[])));
        scene
    }

    pub(super) fn running() -> Self {
        let mut scene = Self::new();
        scene.heard(offer(1));
        scene.event(Event::Prepared(id(1)));
        scene.news(1, News::Holds { pid: 42 });
        scene
    }

    pub(super) fn event(&mut self, event: Event) -> Vec<Action> {
        let out = self.host.handle(event, self.now);
        for action in &out {
            match action {
                Action::Keep(record) => drop(self.records.insert(record.id(), (**record).clone())),
                Action::Forget(id) => drop(self.records.remove(id)),
                Action::Prepare(_) => self.accepted += 1,
                _ => {}
            }
        }
        self.host.check_invariants();
        out
    }

    pub(super) fn restart(&mut self) -> Vec<Action> {
        let records = self.records.values().map(|record| serde_json::to_vec(record).unwrap());
        let records = records.map(|bytes| serde_json::from_slice(&bytes).unwrap()).collect();
        let (host, out) = Host::restore(self.rules.clone(), records, self.now);
        self.host = host;
        self.host.check_invariants();
        out
    }

    pub(super) fn heard(&mut self, message: ToAgent) -> Vec<Action> {
        self.event(Event::Heard(message))
    }

    pub(super) fn news(&mut self, number: u32, news: News) -> Vec<Action> {
        self.event(Event::Worker(id(number), news))
    }

    pub(super) fn line(&mut self, seq: u64, event: WorkerEvent) -> Vec<Action> {
        self.news(1, News::Event(Box::new(EventLine { seq, time: self.now.wall, event })))
    }

    pub(super) fn gone(&mut self, number: u32) -> Vec<Action> {
        self.news(number, News::Gone { how: "signal: 9 (SIGKILL)".into() })
    }

    pub(super) fn wait(&mut self, seconds: u64) -> Vec<Action> {
        self.now.mono += Duration::from_secs(seconds);
        self.event(Event::Tick)
    }

    pub(super) fn welcome(&mut self, verdicts: Vec<(AttemptId, Verdict)>) -> Vec<Action> {
        self.heard(ToAgent::Welcome(Box::new(Welcome {
            node: NodeId(uuid::Uuid::from_u128(3)),
            session: 1,
            heartbeat: Duration::from_secs(5),
            last_report: 0,
            verdicts,
            events: vec![],
        })))
    }

    pub(super) fn phase(&self, number: u32) -> AttemptPhase {
        self.host.known().iter().find(|known| known.id == id(number)).unwrap().phase
    }

    pub(super) fn any_event(&mut self, kind: u8, number: u64, seq: u64) -> Vec<Action> {
        let attempt = id(number as u32 % 3);
        let event = match kind {
            0 | 1 => return self.heard(offer(number as u32 % 3)),
            2 => Event::Prepared(attempt),
            3 => Event::Worker(attempt, News::Holds { pid: 42 }),
            4 => return self.line(seq, checkpoint_event(number, CheckpointKind::Periodic)),
            5 => Event::CheckpointUploaded(attempt, seq.saturating_sub(number), Box::new(checkpoint(number))),
            6 => return self.line(seq, WorkerEvent::Finished { step: number, files: vec![] }),
            7 => Event::AdapterUploaded(attempt, vec![], None),
            8 => return self.gone(number as u32 % 3),
            9 => return self.heard(ToAgent::Stop { attempt, how: StopHow::Discard, cause: StopCause::Cancel }),
            10 => return self.heard(ToAgent::Stop { attempt, how: StopHow::Save, cause: StopCause::Pause }),
            11 => return self.heard(ToAgent::Forget(attempt)),
            12 => Event::Delivered(attempt),
            13 => return self.wait(number * 20),
            14 => {
                return self
                    .welcome(vec![(attempt, [Verdict::Stop, Verdict::Adopt, Verdict::Report][number as usize % 3])]);
            }
            16 => return self.news(number as u32 % 3, News::Stuck { pid: 42 }),
            18 => {
                let class = FailureClass::Base;
                return self.line(seq, WorkerEvent::Failed { class, message: "no".into(), hint: None });
            }
            19 => Event::InputsRead(attempt, if number.is_multiple_of(2) { vec![] } else { vec!["model".into()] }),
            17 => {
                let faults = [(DeviceId::cpu(), "the driver reported error XID 79".to_owned())];
                Event::Looked(Seen { faults: faults.into(), ..seen(&[]) })
            }
            _ => return self.line(seq, checkpoint_event(number, CheckpointKind::Best)),
        };
        self.event(event)
    }
}

pub(super) fn job(number: u128) -> JobId {
    JobId(uuid::Uuid::from_u128(number))
}

pub(super) fn id(number: u32) -> AttemptId {
    AttemptId { job: job(7), token: AttemptToken { generation: 1, number } }
}

pub(super) fn other_job(number: u32) -> AttemptId {
    AttemptId { job: job(8), ..id(number) }
}

pub(super) fn offer(number: u32) -> ToAgent {
    ToAgent::Offer(Box::new(offer_on(id(number), "cpu")))
}

pub(super) fn stop(how: StopHow, cause: StopCause) -> ToAgent {
    ToAgent::Stop { attempt: id(1), how, cause }
}

/// The devices, and who holds memory of the first.
pub(super) fn seen(pids: &[u32]) -> Seen {
    Seen { devices: devices(), holders: [(DeviceId::cpu(), holding(pids))].into(), ..Seen::default() }
}

/// These processes hold memory, nobody knows how much.
pub(super) fn holding(pids: &[u32]) -> Holders {
    pids.iter().map(|pid| (*pid, None)).collect()
}

fn devices() -> Vec<Device> {
    let device = |id: &str, usable| Device {
        id: DeviceId(id.into()),
        name: id.into(),
        kind: DeviceKind::Cpu,
        memory_bytes: 1 << 34,
        free_bytes: 1 << 34,
        usable,
    };
    vec![device("cpu", Ok(())), device("spare", Ok(())), device("broken", Err("fell off the bus".into()))]
}

pub(super) fn file(path: &str) -> NamedFile {
    NamedFile { path: path.into(), manifest: FileManifest { size: 0, hash: Hash([0; 32]), chunks: vec![] } }
}

pub(super) fn step(step: u64) -> WorkerEvent {
    WorkerEvent::Step(Step {
        step,
        epoch: 0.5,
        loss: 1.0,
        lr: 1e-4,
        grad_norm: 1.0,
        tokens: 100,
        supervised_tokens: 50,
        seconds: 0.5,
    })
}

pub(super) fn plan(total_steps: u64) -> Plan {
    Plan {
        examples: 1,
        validation_examples: 0,
        conversations: 1,
        total_steps,
        epoch_tokens: 1,
        supervised_tokens: 1,
        longest_tokens: 1,
        cut_examples: 0,
        cut_tokens: 0,
        trainable_parameters: 1,
        base_parameters: 1,
        micro_tokens: 1,
        from_step: 0,
        ..Plan::default()
    }
}

pub(super) fn checkpoint_event(step: u64, kind: CheckpointKind) -> WorkerEvent {
    WorkerEvent::Checkpoint { step, loss: 1.0, kind, path: format!("checkpoints/step-{step:08}") }
}

pub(super) fn checkpoint(step: u64) -> Checkpoint {
    Checkpoint { step, loss: 1.0, kind: CheckpointKind::Periodic, files: vec![file("manifest.json")] }
}

pub(super) fn bodies(out: &[Action]) -> Vec<&ReportBody> {
    let reports = out.iter().filter_map(|action| if let Action::Report(_, body) = action { Some(body) } else { None });
    reports.filter(|body| !matches!(body, ReportBody::Progress(_))).collect()
}

pub(super) fn progress_steps(out: &[Action]) -> Vec<u64> {
    let step = |action: &Action| match action {
        Action::Report(_, ReportBody::Progress(progress)) => Some(progress.step),
        _ => None,
    };
    out.iter().filter_map(step).collect()
}

pub(super) fn ended(out: &[Action]) -> &Ended {
    let ended = out.iter().find_map(|action| match action {
        Action::Report(_, body) => body.end(),
        _ => None,
    });
    ended.unwrap_or_else(|| panic!("expected an end, found {out:?}"))
}

/// A job of which this layer reads nothing.
pub(crate) fn offer_on(attempt: AttemptId, device: &str) -> Offer {
    Offer {
        attempt,
        job: spec(),
        devices: vec![DeviceId(device.into())],
        planned_bytes: 1 << 30,
        base: vec![],
        dataset: file("dataset.jsonl"),
        validation: None,
        init_adapter: vec![],
        resume: None,
        time_left: Duration::from_secs(3600),
    }
}

pub(super) fn spec() -> JobSpec {
    let training = Training {
        method: Method::Lora,
        learning_rate: 1e-4,
        batch_size: 1,
        micro_tokens: MicroTokens::Auto,
        length: TrainingLength::Steps(10),
        max_seq_length: 64,
        schedule: Schedule::Constant,
        adam_beta1: 0.9,
        adam_beta2: 0.999,
        adam_epsilon: 1e-8,
        warmup_ratio: 0.0,
        weight_decay: 0.0,
        max_grad_norm: 1.0,
        shuffle: false,
        seed: 1,
        validation_fraction: 0.0,
        supervise: Supervise::All,
        eval_every: Every::Epoch,
        checkpoint_every: Every::Steps(5),
        base_dtype: BaseDtype::Auto,
        early_stopping: None,
        sample_prompts: Vec::new(),
        grad_norms: false,
    };
    let lora = Lora::plain(4, 8.0, 0.0);
    JobSpec {
        name: "test".into(),
        base: "base".into(),
        dataset: "data".into(),
        validation_dataset: None,
        init_adapter: None,
        preset: "standard".into(),
        priority: 50,
        task: Task::Train(Train { training, data: DataFilter::default(), lora }),
        resources: Resources {
            gpus: 1,
            gpu: GpuRequest::Any,
            labels: BTreeMap::new(),
            min_driver: None,
            prefer: Prefer::default(),
            exclusive: true,
            max_runtime: Duration::from_secs(3600),
        },
        policy: Policy {
            retries: 0,
            lost_after: Duration::from_secs(300),
            on_lost: OnLost::Requeue,
            max_cost_micros: None,
        },
    }
}
