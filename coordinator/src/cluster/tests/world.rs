//! A cluster under test: builders, a clock, and everything it ever said.

use super::*;

pub(super) const ADMIN: UserId = UserId(uuid(1));
pub(super) const TOKEN: TokenId = TokenId(uuid(2));
pub(super) const NODE: NodeId = NodeId(uuid(10));
pub(super) const OTHER: NodeId = NodeId(uuid(11));
pub(super) const BASE: BaseId = BaseId(uuid(20));

pub(super) const fn uuid(n: u128) -> uuid::Uuid {
    uuid::Uuid::from_u128(n)
}

pub(super) fn boot(n: u128) -> BootId {
    BootId(uuid(n))
}

pub(super) fn hash(byte: u8) -> Hash {
    Hash([byte; 32])
}

pub(super) fn manifest() -> FileManifest {
    FileManifest { size: 10, hash: hash(31), chunks: vec![hash(31)] }
}

pub(super) fn admin() -> Actor {
    Actor::User { id: ADMIN, role: Role::Admin, token: TOKEN }
}

pub(super) fn user() -> Actor {
    Actor::User { id: UserId(uuid(3)), role: Role::User, token: TokenId(uuid(4)) }
}

pub(super) fn checkpoint(step: u64) -> Checkpoint {
    Checkpoint { step, loss: 1.0, kind: CheckpointKind::Periodic, files: vec![] }
}

pub(super) fn ended(outcome: Outcome) -> ReportBody {
    let files = vec![NamedFile { path: "adapter_model.safetensors".into(), manifest: manifest() }];
    ReportBody::Ended(Ended {
        outcome,
        class: None,
        message: None,
        step: 3,
        held: Duration::from_secs(5),
        files,
        summary: None,
        last_event: 9,
    })
}

pub(super) fn failed(class: FailureClass) -> ReportBody {
    ReportBody::Ended(Ended {
        outcome: class.outcome(),
        class: Some(class),
        message: None,
        step: 3,
        held: Duration::from_secs(5),
        files: vec![],
        summary: None,
        last_event: 9,
    })
}

pub(super) fn sent(out: &[Action]) -> impl Iterator<Item = &ToAgent> {
    out.iter().filter_map(|action| if let Action::Send { message, .. } = action { Some(message) } else { None })
}

pub(super) fn row(out: &[Action], wanted: impl Fn(&Record) -> bool) -> Option<&Record> {
    out.iter()
        .filter_map(|action| if let Action::Put(record) = action { Some(&**record) } else { None })
        .rfind(|record| wanted(record))
}

pub(super) fn audits(out: &[Action]) -> impl Iterator<Item = &Audit> {
    out.iter().filter_map(|action| {
        let Action::Put(record) = action else { return None };
        if let Record::Audit(audit) = &**record { Some(audit) } else { None }
    })
}

/// What was written down of a node: what was done, how it was, how it is.
pub(super) fn story(out: &[Action], node: NodeId) -> Vec<(&str, &str, &str)> {
    let of_it = audits(out).filter(|audit| audit.subject == node.to_string());
    of_it
        .map(|audit| {
            let (before, after) = (audit.before.as_deref(), audit.after.as_deref());
            (audit.action.as_str(), before.unwrap_or_default(), after.unwrap_or_default())
        })
        .collect()
}

pub(super) fn spec() -> JobSpec {
    JobSpec {
        name: "tone".into(),
        base: "b".into(),
        dataset: "d".into(),
        validation_dataset: None,
        init_adapter: None,
        preset: "balanced".into(),
        priority: 50,
        task: Task::Train(Train {
            training: Training {
                method: Method::Lora,
                learning_rate: 1e-4,
                batch_size: 4,
                micro_tokens: MicroTokens::Auto,
                length: TrainingLength::Epochs(1),
                max_seq_length: 512,
                schedule: Schedule::Cosine,
                adam_beta1: 0.9,
                adam_beta2: 0.999,
                adam_epsilon: 1e-8,
                warmup_ratio: 0.1,
                weight_decay: 0.0,
                max_grad_norm: 1.0,
                shuffle: true,
                seed: 42,
                validation_fraction: 0.1,
                supervise: Supervise::Assistant,
                eval_every: Every::Epoch,
                checkpoint_every: Every::Steps(100),
                base_dtype: BaseDtype::Auto,
                early_stopping: None,
                sample_prompts: Vec::new(),
                grad_norms: false,
            },
            data: DataFilter::default(),
            lora: Lora::plain(8, 16.0, 0.0),
        }),
        resources: Resources {
            gpus: 1,
            gpu: GpuRequest::Any,
            labels: Default::default(),
            min_driver: None,
            prefer: Prefer::default(),
            exclusive: true,
            max_runtime: Duration::from_secs(86_400),
        },
        policy: Policy {
            retries: 2,
            lost_after: Duration::from_secs(300),
            on_lost: OnLost::Requeue,
            max_cost_micros: None,
        },
    }
}

/// 80 GiB, nobody on it.
pub(super) fn gpu(index: usize) -> Device {
    Device {
        id: DeviceId(format!("GPU-{index}")),
        name: "NVIDIA H200".into(),
        kind: DeviceKind::Cuda { compute: (9, 0), driver: Some(Driver(580, 65, 6)) },
        memory_bytes: 80 << 30,
        free_bytes: 80 << 30,
        usable: Ok(()),
    }
}

/// A cluster, a clock, and everything it ever said.
pub(super) struct World {
    pub(super) cluster: Cluster,
    pub(super) now: Now,
    pub(super) history: Vec<Action>,
    pub(super) findings: JobFindings,
}

impl World {
    pub(super) fn new() -> Self {
        let now = Now { mono: Duration::from_secs(100), wall: UnixMillis(1_790_000_000_000) };
        let cluster = Cluster::new(Loaded { generation: 1, ..Loaded::default() }, Timers::default(), now);
        let findings = JobFindings {
            examples: 10,
            validation_examples: 1,
            total_steps: 1_000,
            epoch_tokens: 100,
            supervised_tokens: 50,
            longest_tokens: 20,
            cut_examples: 0,
            cut_tokens: 0,
            cpu_bytes: 1 << 30,
            cuda_bytes: 1 << 30,
            rendered: vec![],
        };
        let mut world = Self { cluster, now, history: vec![], findings };
        let admin =
            Command::CreateUser { id: ADMIN, email: "a@example.org".into(), name: "A".into(), role: Role::Admin };
        world.ask_as(Actor::System, None, admin).0.unwrap();
        world
            .ask_as(
                Actor::System,
                None,
                Command::CreateToken { id: TOKEN, user: ADMIN, name: "t".into(), hash: hash(8), expires: None },
            )
            .0
            .unwrap();
        world.pass(Duration::from_secs(6));
        world
    }

    pub(super) fn ready() -> Self {
        Self::ready_with(|_| {})
    }

    /// A dataset, a base and a node with so many GPUs of 80 GiB.
    pub(super) fn with_gpus(count: usize, rules: Rules) -> Self {
        let mut world = Self::new();
        world.cluster.rules = rules;
        world.prepare();
        world.join(NODE);
        let mut hello = world.hello_message(boot(1), boot(1), vec![]);
        hello.devices = (0..count).map(gpu).collect();
        world.handle(Event::SessionOpened { reply: 0, node: NODE, shown: shown("s"), hello: Box::new(hello) });
        world
    }

    /// A dataset, a base and an idle node.
    pub(super) fn ready_with(change: impl FnOnce(&mut JobFindings)) -> Self {
        let mut world = Self::new();
        change(&mut world.findings);
        world.prepare();
        world.join(NODE);
        world.hello(NODE, boot(1), vec![]);
        world
    }

    pub(super) fn prepare(&mut self) {
        let dataset = DatasetId(uuid(21));
        self.ask(Command::CreateDataset {
            id: dataset,
            name: "d".into(),
            description: None,
            file_name: "d.jsonl".into(),
            size: 10,
            format: None,
        })
        .0
        .unwrap();
        self.ask(Command::ConfirmDataset { id: dataset, manifest: manifest() }).0.unwrap();
        let found = DatasetFindings {
            format: None,
            conversations: 3,
            pairs: 3,
            trainable_pairs: 3,
            average_turns: 2.0,
            tokens: None,
            warnings: vec![],
            errors: vec![],
            error_count: 0,
            samples: vec![],
        };
        self.handle(Event::Inspected {
            subject: Subject::Dataset(dataset),
            result: Ok(Inspection::Dataset(found)),
            files: vec![],
        });
        self.ask(Command::RegisterBase { id: BASE, name: "b".into(), path: "/b".into() }).0.unwrap();
        self.base_found(30);
    }

    /// Its files are what this byte stands for.
    pub(super) fn base_found(&mut self, byte: u8) -> Vec<Action> {
        let found = lorikeet_protocol::inspect::BaseFindings {
            architecture: "LlamaForCausalLM".into(),
            parameters: 1,
            config_json: "{}".into(),
            dtype: "F32".into(),
            vocabulary: 256,
            chat_template: false,
            files: vec![],
        };
        let files = vec![NamedFile {
            path: "model.safetensors".into(),
            manifest: FileManifest { size: 10, hash: hash(byte), chunks: vec![hash(byte)] },
        }];
        self.handle(Event::Inspected { subject: Subject::Base(BASE), result: Ok(Inspection::Base(found)), files })
    }

    pub(super) fn join(&mut self, node: NodeId) {
        let joined = crate::record::Node::new(node, "n".into(), UnixMillis(1));
        let record = crate::record::Node { serials: vec!["s".into()], key: Some(KEY), ..joined };
        let now = self.now;
        self.cluster.nodes.insert(node, LiveNode::new(record, now));
    }

    pub(super) fn hello_message(&self, boot: BootId, instance: BootId, attempts: Vec<KnownAttempt>) -> Hello {
        let device = Device {
            id: DeviceId::cpu(),
            name: "cpu".into(),
            kind: DeviceKind::Cpu,
            memory_bytes: 16 << 30,
            free_bytes: 8 << 30,
            usable: Ok(()),
        };
        Hello {
            boot,
            instance,
            version: "0".into(),
            name: "n".into(),
            labels: Default::default(),
            devices: vec![device],
            attempts,
            cached: vec![],
            acknowledged: 0,
        }
    }

    pub(super) fn hello(&mut self, node: NodeId, boot: BootId, attempts: Vec<KnownAttempt>) -> Vec<Action> {
        let instance = self.cluster.nodes[&node].session.as_ref().map_or(BootId(boot.0), |_| BootId(boot.0));
        self.hello_as(node, boot, instance, attempts)
    }

    pub(super) fn hello_as(
        &mut self,
        node: NodeId,
        boot: BootId,
        instance: BootId,
        attempts: Vec<KnownAttempt>,
    ) -> Vec<Action> {
        let hello = self.hello_message(boot, instance, attempts);
        self.handle(Event::SessionOpened { reply: 0, node, shown: shown("s"), hello: Box::new(hello) })
    }

    pub(super) fn handle(&mut self, event: Event) -> Vec<Action> {
        let mut out = self.cluster.handle(event, self.now);
        out.extend(self.cluster.handle(Event::Ticked, self.now));
        self.cluster.check_invariants();
        self.history.extend(out.iter().cloned());
        out
    }

    /// The process starts anew with what was written down.
    pub(super) fn restart(&mut self) {
        let (mut jobs, mut attempts, mut sweeps) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        for action in &self.history {
            let Action::Put(record) = action else { continue };
            match &**record {
                Record::Job(job) => _ = jobs.insert(job.id, (**job).clone()),
                Record::Attempt(attempt) => _ = attempts.insert(attempt.id, attempt.clone()),
                Record::Sweep(sweep) => _ = sweeps.insert(sweep.id, (**sweep).clone()),
                _ => {}
            }
        }
        let old = &self.cluster;
        let loaded = Loaded {
            generation: old.generation,
            users: old.users.values().cloned().collect(),
            nodes: old.nodes.values().map(|node| node.record.clone()).collect(),
            datasets: old.datasets.values().cloned().collect(),
            bases: old.bases.values().cloned().collect(),
            jobs: jobs.into_values().collect(),
            attempts: attempts.into_values().collect(),
            sweeps: sweeps.into_values().collect(),
            ..Loaded::default()
        };
        self.cluster = Cluster::new(loaded, Settings { rules: old.rules.clone(), ..Settings::default() }, self.now);
        self.handle(Event::Booted);
    }

    pub(super) fn pass(&mut self, time: Duration) {
        self.now.mono += time;
        self.now.wall.0 += time.as_millis() as u64;
        self.handle(Event::Ticked);
    }

    /// Time passes while this process runs as it should.
    pub(super) fn pass_in_steps(&mut self, time: Duration) {
        for _ in 0..time.as_secs() / 5 {
            self.pass(Duration::from_secs(5));
        }
    }

    /// Time passes while the node goes on talking.
    pub(super) fn pass_talking(&mut self, time: Duration) {
        for _ in 0..time.as_secs() {
            self.pass(Duration::from_secs(1));
            self.heartbeat();
        }
    }

    /// Every connected node talks until the job is offered, for two minutes at most.
    pub(super) fn until_offered(&mut self, job: JobId) -> Option<AttemptId> {
        for _ in 0..120 {
            if let Some(offer) = self.offer_of(job) {
                return Some(offer.attempt);
            }
            self.pass(Duration::from_secs(1));
            let connected = self.cluster.nodes.iter().filter(|(_, node)| node.session.is_some());
            for node in connected.map(|(id, _)| *id).collect::<Vec<_>>() {
                self.hear_from(node, FromAgent::Heartbeat);
            }
        }
        None
    }

    pub(super) fn heartbeat(&mut self) {
        self.hear(FromAgent::Heartbeat);
    }

    pub(super) fn hear(&mut self, message: FromAgent) -> Vec<Action> {
        self.hear_from(NODE, message)
    }

    pub(super) fn hear_from(&mut self, node: NodeId, message: FromAgent) -> Vec<Action> {
        let session = self.cluster.nodes[&node].record.sessions;
        self.handle(Event::Heard { node, session, message })
    }

    pub(super) fn accept(&mut self, attempt: AttemptId) -> Vec<Action> {
        self.hear(FromAgent::Accepted(attempt))
    }

    pub(super) fn report(&mut self, attempt: AttemptId, body: ReportBody) -> Vec<Action> {
        self.report_from(NODE, attempt, body)
    }

    pub(super) fn report_from(&mut self, node: NodeId, attempt: AttemptId, body: ReportBody) -> Vec<Action> {
        let number = self.cluster.nodes[&node].record.last_report + 1;
        self.hear_from(node, FromAgent::Report(Report { number, attempt, time: self.now.wall, body }))
    }

    pub(super) fn ask(&mut self, command: Command) -> (Result<Receipt, Refusal>, Vec<Action>) {
        self.ask_as(admin(), None, command)
    }

    pub(super) fn ask_as(
        &mut self,
        actor: Actor,
        idempotency: Option<Idempotency>,
        command: Command,
    ) -> (Result<Receipt, Refusal>, Vec<Action>) {
        self.request(actor, idempotency, command, Rows::default())
    }

    pub(super) fn request(
        &mut self,
        actor: Actor,
        idempotency: Option<Idempotency>,
        command: Command,
        rows: Rows,
    ) -> (Result<Receipt, Refusal>, Vec<Action>) {
        let context = Context { actor, request: RequestId(uuid(5)), from: "test".into(), idempotency };
        let out = self.handle(Event::Requested { reply: 7, context, command, rows });
        let reply = out.iter().find_map(|action| {
            if let Action::Reply { reply: 7, result } = action { Some(result.clone()) } else { None }
        });
        let result = reply
            .expect("every request is answered")
            .map(|answer| if let Answer::Receipt(receipt) = answer { receipt } else { panic!("{answer:?}") });
        (result, out)
    }

    pub(super) fn submit(&mut self, n: u128) -> JobId {
        self.submit_with(n, |_| {})
    }

    pub(super) fn submit_with(&mut self, n: u128, change: impl FnOnce(&mut JobSpec)) -> JobId {
        self.submit_as(admin(), n, change)
    }

    pub(super) fn submit_as(&mut self, actor: Actor, n: u128, change: impl FnOnce(&mut JobSpec)) -> JobId {
        let id = JobId(uuid(100 + n));
        let mut spec = spec();
        change(&mut spec);
        self.now.wall.0 += 1;
        self.ask_as(actor, None, Command::SubmitJob { id, spec: Box::new(spec), start: Default::default() }).0.unwrap();
        let found = Inspection::Job(self.findings.clone());
        self.handle(Event::Inspected { subject: Subject::Job(id), result: Ok(found), files: vec![] });
        id
    }

    pub(super) fn running(&mut self, n: u128) -> (JobId, AttemptId) {
        let job = self.submit(n);
        let attempt = self.offer_of(job).unwrap().attempt;
        self.accept(attempt);
        self.report(attempt, ReportBody::Running { from_step: 0 });
        (job, attempt)
    }

    /// It holds devices, and trains.
    pub(super) fn is_placed(&self, job: JobId) -> bool {
        self.cluster.jobs.get(&job).is_some_and(|job| job.attempt.is_some())
    }

    /// Takes the offer that is on the table.
    pub(super) fn run(&mut self, job: JobId) -> AttemptId {
        let attempt = self.offer_of(job).unwrap().attempt;
        self.accept(attempt);
        self.report(attempt, ReportBody::Running { from_step: 0 });
        attempt
    }

    pub(super) fn why(&self, job: JobId) -> schedule::Why {
        match self.cluster.answer(admin(), Query::Why(job), self.now) {
            Ok(Answer::Why(Some(why))) => why,
            other => panic!("it does not wait: {other:?}"),
        }
    }

    /// The newest offer of a job that is still on the table.
    pub(super) fn offer_of(&self, job: JobId) -> Option<Offer> {
        let current = self.cluster.jobs.get(&job)?.record.current_attempt()?;
        self.history.iter().rev().find_map(|action| match action {
            Action::Send { message: ToAgent::Offer(offer), .. } if offer.attempt == current => Some((**offer).clone()),
            _ => None,
        })
    }

    pub(super) fn phase(&self, job: JobId) -> Option<Phase> {
        self.cluster.jobs.get(&job).map(|job| job.record.phase())
    }
}

/// The key of every node.
pub(super) const KEY: Hash = Hash([0x6b; 32]);

/// A certificate of a node.
pub(super) fn shown(serial: &str) -> Shown {
    Shown { serial: serial.to_owned(), key: KEY, is_newest: true }
}
