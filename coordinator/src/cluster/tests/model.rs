//! Scheduler and reconciler against a small model: machines that do what they are told, or not; and what is written down, read back by
//! rules that know nothing of queues, ledgers or deadlines.
//!
//! After every event: no device has two attempts of which one wants to be alone, nor more planned bytes than memory; an attempt's number
//! is its job's next; what is over stays over, with one model at most. Then the trouble ends, and every job has to.

use super::{world::*, *};
use crate::record::Attempt;
use lorikeet_api::jobfile::start::{After, Start, Wants};

const MACHINES: u128 = 3;
const DEVICES: usize = 2;
const MEMORY: u64 = 80 << 30;
/// More than half: two of them never fit on one device.
const LARGE: u64 = 50 << 30;
const SMALL: u64 = 20 << 30;

/// Something that happens; numbers choose among what is there.
#[derive(Debug, Clone)]
enum Happening {
    Submit {
        priority: u8,
        gpus: u8,
        alone: bool,
        large: bool,
        other_owner: bool,
        waits: bool,
        hold: bool,
    },
    Cancel(usize),
    Pause(usize),
    Resume(usize),
    Priority(usize, u8),
    /// A machine takes what it is offered.
    Accepts(usize),
    Declines(usize),
    /// One of a machine's attempts comes further.
    Works(usize),
    Ends(usize, Outcome),
    /// A machine does what it was told to stop.
    Obeys(usize),
    CutOff(usize),
    Back(usize),
    Reboots(usize),
    Cordon(usize),
    Drain(usize),
    Open(usize),
    Restart,
    Pass(u64),
}

fn happening() -> impl Strategy<Value = Happening> {
    use Happening::*;
    let submit =
        (0_u8..100, 1_u8..=2, any::<[bool; 5]>()).prop_map(|(priority, gpus, [alone, large, other, waits, hold])| {
            Submit { priority, gpus, alone, large, other_owner: other, waits, hold }
        });
    let ends = prop_oneof![
        4 => Just(Outcome::Ok),
        1 => Just(Outcome::Lost),
        1 => Just(Outcome::Hardware),
        1 => Just(Outcome::Oom),
        1 => Just(Outcome::UserError),
        1 => Just(Outcome::PrepareFailed),
    ];
    let n = || 0_usize..16;
    prop_oneof![
        6 => submit,
        1 => n().prop_map(Cancel),
        1 => n().prop_map(Pause),
        1 => n().prop_map(Resume),
        1 => (n(), 0_u8..100).prop_map(|(job, priority)| Priority(job, priority)),
        6 => n().prop_map(Accepts),
        1 => n().prop_map(Declines),
        4 => n().prop_map(Works),
        4 => (n(), ends).prop_map(|(attempt, outcome)| Ends(attempt, outcome)),
        3 => n().prop_map(Obeys),
        1 => n().prop_map(CutOff),
        2 => n().prop_map(Back),
        1 => n().prop_map(Reboots),
        1 => n().prop_map(Cordon),
        1 => n().prop_map(Drain),
        1 => n().prop_map(Open),
        1 => Just(Restart),
        3 => (1_u64..400).prop_map(Pass),
    ]
}

/// A machine with its agent, as far as the coordinator can tell.
#[derive(Debug, Default)]
struct Machine {
    connected: bool,
    starts: u128,
    offered: Vec<AttemptId>,
    runs: BTreeMap<AttemptId, AttemptPhase>,
    told_to_stop: BTreeSet<AttemptId>,
}

struct Model {
    world: World,
    machines: BTreeMap<NodeId, Machine>,
    jobs: Vec<JobId>,
    /// How much of the history was read.
    read: usize,
    held: BTreeMap<AttemptId, Attempt>,
    alone: BTreeMap<JobId, bool>,
    numbers: BTreeMap<JobId, u32>,
    over: BTreeMap<JobId, JobState>,
    models: BTreeSet<JobId>,
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_nothing_is_held_twice_and_in_the_end_every_job_ends(
        happenings in proptest::collection::vec(happening(), 1..120), margin in proptest::option::of(10_u8..60),
    ) {
        let mut model = Model::new(margin);
        for happening in happenings {
            model.apply(happening);
            model.check();
        }
        model.settle_down();
        prop_assert!(model.world.cluster.jobs.is_empty(), "these starve: {:?}", model.world.cluster.jobs.keys());
        prop_assert_eq!(model.over.len(), model.jobs.len());
    }
}

impl Model {
    fn new(margin: Option<u8>) -> Self {
        let mut world = World::new();
        world.cluster.rules = Rules { preemption_margin: margin, ..Rules::default() };
        world.prepare();
        world.shares_everything();
        let mut machines = BTreeMap::new();
        for n in 0..MACHINES {
            let node = NodeId(uuid(50 + n));
            world.join(node);
            machines.insert(node, Machine::default());
        }
        let read = world.history.len();
        let (held, alone, numbers) = Default::default();
        let (over, models) = Default::default();
        let mut model = Self { world, machines, jobs: vec![], read, held, alone, numbers, over, models };
        (0..MACHINES).for_each(|n| model.back(NodeId(uuid(50 + n))));
        model
    }

    fn apply(&mut self, happening: Happening) {
        match happening {
            Happening::Submit { priority, gpus, alone, large, other_owner, waits, hold } => {
                self.submit(priority, gpus, alone, large, other_owner, waits, hold);
            }
            Happening::Cancel(n) => self.order(n, |id| Command::CancelJob { id, reason: None }),
            Happening::Pause(n) => self.order(n, |id| Command::SetIntent { id, intent: Intent::Pause }),
            Happening::Resume(n) => self.order(n, |id| Command::SetIntent { id, intent: Intent::Run }),
            Happening::Priority(n, priority) => self.order(n, |id| Command::SetPriority { id, priority }),
            Happening::Accepts(n) => self.answer_offer(n, true),
            Happening::Declines(n) => self.answer_offer(n, false),
            Happening::Works(n) => self.work(n),
            Happening::Ends(n, outcome) => self.end(n, outcome),
            Happening::Obeys(n) => self.obey(n),
            Happening::CutOff(n) => self.cut_off(node(n)),
            Happening::Back(n) => self.back(node(n)),
            Happening::Reboots(n) => {
                self.cut_off(node(n));
                let machine = self.machines.get_mut(&node(n)).unwrap();
                (machine.runs, machine.told_to_stop) = Default::default();
                machine.starts += 1;
                self.back(node(n));
            }
            Happening::Cordon(n) => drop(self.world.ask(Command::CordonNode { id: node(n) })),
            Happening::Drain(n) => {
                drop(self.world.ask(Command::DrainNode { id: node(n), patience: Duration::from_secs(60) }));
            }
            Happening::Open(n) => drop(self.world.ask(Command::OpenNode { id: node(n) })),
            Happening::Restart => {
                self.world.restart();
                self.machines.values_mut().for_each(|machine| machine.connected = false);
                (0..MACHINES as usize).for_each(|n| self.back(node(n)));
            }
            Happening::Pass(seconds) => self.pass(seconds),
        }
        self.hear();
    }

    #[expect(clippy::too_many_arguments, reason = "a job is these choices")]
    fn submit(&mut self, priority: u8, gpus: u8, alone: bool, large: bool, other: bool, waits: bool, hold: bool) {
        let id = JobId(uuid(1_000 + self.jobs.len() as u128));
        let mut wanted = spec();
        (wanted.priority, wanted.resources.gpus, wanted.resources.exclusive) = (priority, gpus, alone);
        let owner = if other { user() } else { admin() };
        let live = self.jobs.iter().rev().find(|id| self.world.cluster.visible(owner, **id).is_ok());
        let after = live.filter(|_| waits).map(|job| After { job: job.to_string(), wants: Wants::Any });
        let start = Start { after: after.into_iter().collect(), hold, not_before: None };
        self.world.now.wall.0 += 1;
        self.world.ask_as(owner, None, Command::SubmitJob { id, spec: Box::new(wanted), start }).0.unwrap();
        let bytes = if large { LARGE } else { SMALL };
        let found = JobFindings { cuda_bytes: bytes, ..self.world.findings.clone() };
        let result = Ok(Inspection::Job(found));
        self.world.handle(Event::Inspected { subject: Subject::Job(id), result, files: vec![] });
        self.jobs.push(id);
        self.alone.insert(id, alone);
    }

    fn order(&mut self, n: usize, command: impl FnOnce(JobId) -> Command) {
        if let Some(job) = self.jobs.len().checked_sub(1).map(|last| self.jobs[n % (last + 1)]) {
            drop(self.world.ask(command(job)));
        }
    }

    /// What the coordinator said since the last time reaches those who are connected.
    fn hear(&mut self) {
        for action in &self.world.history[self.read..] {
            match action {
                Action::Put(record) => match &**record {
                    Record::Attempt(row) if row.end.is_some() => _ = self.held.remove(&row.id),
                    Record::Attempt(row) => {
                        let before = self.numbers.insert(row.id.job, row.id.token.number).unwrap_or(0);
                        assert!(row.id.token.number == before || row.id.token.number == before + 1, "{}", row.id);
                        self.held.insert(row.id, row.clone());
                    }
                    Record::Job(job) => {
                        let over = self.over.get(&job.id);
                        assert!(over.is_none_or(|state| *state == job.state), "{} left {over:?}", job.id);
                        if job.phase().is_terminal() {
                            self.over.insert(job.id, job.state.clone());
                        }
                    }
                    Record::Model(model) => assert!(self.models.insert(model.job), "{} has two models", model.job),
                    _ => {}
                },
                Action::Send { node, message } => {
                    let machine = self.machines.get_mut(node).unwrap();
                    match message {
                        _ if !machine.connected => {}
                        ToAgent::Offer(offer) => machine.offered.push(offer.attempt),
                        ToAgent::Stop { attempt, .. } => {
                            machine.offered.retain(|offered| offered != attempt);
                            machine.told_to_stop.insert(*attempt);
                        }
                        ToAgent::Forget(attempt) => _ = machine.runs.remove(attempt),
                        _ => {}
                    }
                }
                _ => {}
            }
        }
        self.read = self.world.history.len();
    }

    fn check(&self) {
        let mut devices: BTreeMap<(NodeId, &DeviceId), Vec<&Attempt>> = BTreeMap::new();
        for row in self.held.values() {
            let members = row.members.iter().flat_map(|member| member.devices.iter().map(|id| (member.node, id)));
            members.for_each(|device| devices.entry(device).or_default().push(row));
        }
        for ((node, device), rows) in devices {
            let alone = rows.iter().any(|row| self.alone[&row.id.job]);
            assert!(rows.len() == 1 || !alone, "{device} of {node} is held by {rows:?}");
            let planned: u64 = rows.iter().map(|row| row.planned_bytes).sum();
            assert!(planned <= MEMORY, "{device} of {node} has {planned} bytes planned");
        }
    }

    fn answer_offer(&mut self, n: usize, yes: bool) {
        let machine = self.machines.get_mut(&node(n)).unwrap();
        if !machine.connected || machine.offered.is_empty() {
            return;
        }
        let attempt = machine.offered.remove(0);
        if yes {
            machine.runs.insert(attempt, AttemptPhase::Accepted);
            self.world.hear_from(node(n), FromAgent::Accepted(attempt));
        } else {
            self.world.hear_from(node(n), FromAgent::Declined { attempt, reason: "no".into() });
        }
    }

    /// A live attempt of the connected machines, if there is one.
    fn living(&self, n: usize) -> Option<(NodeId, AttemptId)> {
        let connected = self.machines.iter().filter(|(_, machine)| machine.connected);
        let living: Vec<_> = connected
            .flat_map(|(node, machine)| machine.runs.iter().map(|run| (*node, run)))
            .filter(|(_, (_, phase))| **phase != AttemptPhase::Done)
            .map(|(node, (attempt, _))| (node, *attempt))
            .collect();
        living.get(n % living.len().max(1)).copied()
    }

    fn work(&mut self, n: usize) {
        let Some((node, attempt)) = self.living(n) else { return };
        let phase = self.machines.get_mut(&node).unwrap().runs.get_mut(&attempt).unwrap();
        let body = if *phase == AttemptPhase::Running {
            ReportBody::Checkpoint(checkpoint(5 + n as u64))
        } else {
            ReportBody::Running { from_step: 0 }
        };
        *phase = AttemptPhase::Running;
        self.world.report_from(node, attempt, body);
    }

    fn end(&mut self, n: usize, outcome: Outcome) {
        if let Some((node, attempt)) = self.living(n) {
            self.end_this(node, attempt, outcome);
        }
    }

    fn end_this(&mut self, node: NodeId, attempt: AttemptId, outcome: Outcome) {
        let machine = self.machines.get_mut(&node).unwrap();
        machine.runs.insert(attempt, AttemptPhase::Done);
        machine.told_to_stop.remove(&attempt);
        self.world.report_from(node, attempt, ended(outcome));
    }

    fn obey(&mut self, n: usize) {
        let machine = &self.machines[&node(n)];
        let told = machine
            .told_to_stop
            .iter()
            .find(|id| machine.runs.get(id).is_some_and(|phase| *phase != AttemptPhase::Done));
        if let Some(attempt) = told.copied().filter(|_| machine.connected) {
            self.end_this(node(n), attempt, Outcome::Preempted);
        }
    }

    fn cut_off(&mut self, id: NodeId) {
        let machine = self.machines.get_mut(&id).unwrap();
        machine.offered.clear();
        if std::mem::take(&mut machine.connected) {
            let session = self.world.cluster.nodes[&id].record.sessions;
            self.world.handle(Event::SessionClosed { node: id, session, nonsense: None });
        }
    }

    fn back(&mut self, id: NodeId) {
        let machine = self.machines.get_mut(&id).unwrap();
        if std::mem::replace(&mut machine.connected, true) {
            return;
        }
        machine.offered.clear();
        let start = boot(10_000 * id.0.as_u128() + machine.starts);
        let known = machine.runs.iter().map(|(id, phase)| KnownAttempt { id: *id, phase: *phase }).collect();
        let mut hello = self.world.hello_message(start, start, known);
        hello.devices = (0..DEVICES).map(gpu).collect();
        let out =
            self.world.handle(Event::SessionOpened { reply: 0, node: id, shown: shown("s"), hello: Box::new(hello) });
        self.hear();
        for message in sent(&out) {
            let ToAgent::Welcome(welcome) = message else { continue };
            let machine = self.machines.get_mut(&id).unwrap();
            for (attempt, verdict) in &welcome.verdicts {
                match verdict {
                    Verdict::Adopt | Verdict::Report => {}
                    Verdict::Stop => _ = machine.told_to_stop.insert(*attempt),
                    Verdict::Forget => _ = machine.runs.remove(attempt),
                }
            }
        }
    }

    fn pass(&mut self, seconds: u64) {
        for _ in 0..seconds.div_ceil(5) {
            self.world.pass(Duration::from_secs(5));
            let connected = self.machines.iter().filter(|(_, machine)| machine.connected);
            for node in connected.map(|(node, _)| *node).collect::<Vec<_>>() {
                self.world.hear_from(node, FromAgent::Heartbeat);
            }
            self.hear();
        }
    }

    /// No more trouble: machines are there and do what they are told, nobody holds or pauses anything.
    fn settle_down(&mut self) {
        for n in 0..MACHINES as usize {
            self.apply(Happening::Open(n));
            self.apply(Happening::Back(n));
        }
        for round in 0..400 {
            if self.world.cluster.jobs.is_empty() {
                return;
            }
            for id in self.world.cluster.jobs.keys().copied().collect::<Vec<_>>() {
                drop(self.world.ask(Command::ReleaseJob { id }));
                drop(self.world.ask(Command::SetIntent { id, intent: Intent::Run }));
            }
            for n in 0..MACHINES as usize {
                (0..8).for_each(|_| self.apply(Happening::Obeys(n)));
                (0..8).for_each(|_| self.apply(Happening::Accepts(n)));
            }
            self.apply(Happening::Ends(round, Outcome::Ok));
            self.apply(Happening::Pass(10));
            self.check();
        }
    }
}

fn node(n: usize) -> NodeId {
    NodeId(uuid(50 + n as u128 % MACHINES))
}
