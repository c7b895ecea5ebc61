//! One attempt, from its offer to the day nobody wants it any more.
//!
//! ```text
//!  accept ─► Preparing ─► Starting ─► Running ─► Finalizing ─► Done ─► forgotten
//!               │            │           │           │
//!               │ files or   │ no lock   │ killed,   │ stop(discard): what is not
//!               │ disk fail, │ in time   │ vanished  │ uploaded stays here
//!               │ stop       ▼           ▼           │
//!               │            └─ gone ────┴─► Done ◄──┘
//!               └──────────────────────────► Done
//! ```
//! A process that cannot be killed holds up nothing but its devices: it is given up, and its attempt ends or, where the worker
//! had said its last word, goes on without it. Such an attempt stays here until the process is gone.
//!
//! `Finalizing` means that the worker said its last word. It lasts until the process is gone and every upload is through; only
//! then is the end reported, so that a checkpoint made on the way out counts before the attempt that made it ends.

mod orders;
mod worker;

use super::{
    Account, Action, Ask, Fault, Holders, Now, Rules,
    ending::{Adapter, Leave, Process, Word},
    energy::Gauges,
    meter::Meter,
    record::Record,
    uploads::Uploads,
};
use lorikeet_protocol::{
    agent::{Ended, Metered, Offer, ReportBody},
    id::{AttemptId, DeviceId, UnixMillis},
    job::{AttemptPhase, FailureClass, Outcome},
    worker::Exit,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

/// A worker that said its last word and stays is killed after this.
const LINGER: Duration = Duration::from_secs(30);
/// A forgotten attempt's last events get this long to be acknowledged: longer than a coordinator is ever away. They are what a
/// person reads, and a directory that nobody needs costs little.
const FORGET_GRACE: Duration = Duration::from_secs(24 * 3_600);

/// Of what is said of an end so much is reported: it has to fit into a report, and with those of all devices that are out for it into a hello.
const MESSAGE_BYTES: usize = 8 << 10;

/// What was drawn is kept so often, beside whatever else is.
const KEEP_CHARGE: Duration = Duration::from_secs(60);

/// One attempt.
#[derive(Debug)]
pub(crate) struct Attempt {
    record: Record,
    state: State,
    meter: Meter,
    uploads: Uploads,
    /// When that was, by the wall clock.
    last_event_wall: Option<UnixMillis>,
    /// Whether the record's times since boot mean something.
    same_boot: bool,
    /// The process that holds its lock, or held it last.
    pid: Option<u32>,
    /// Everybody who was seen in its worker's group, as far as this agent has looked.
    pids: BTreeSet<u32>,
    /// How that left, where it was our child and said one of its codes.
    exit: Option<Exit>,
    /// When what its devices drew was last kept.
    charged: Duration,
    /// Whether a device of its failed by its driver's own word, or a file that was given to it had rotted.
    innocent: bool,
    wanted: Wanted,
}

#[derive(Debug)]
enum State {
    /// Files are fetched, the directory is written.
    Preparing,
    /// The worker was started and does not hold its lock yet.
    Starting { lock_by: Duration, leave: Option<Leave> },
    /// It trains.
    Running { time_up: Duration, leave: Option<Leave> },
    /// It said its last word.
    Finalizing { word: Word, adapter: Adapter, process: Process },
    /// The end is reported; its process is gone, or cannot be killed.
    Done { stuck: bool },
}

/// Whether anybody still wants to hear of it.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Wanted {
    /// It stays until it is told to go.
    Yes,
    /// It goes as soon as its end is delivered.
    UntilDelivered,
    /// It goes as soon as it is done.
    No,
    /// It goes at this time, or when its last event is acknowledged.
    UntilEvents { latest: Duration },
    /// It is gone.
    Forgotten,
}

impl Attempt {
    /// An offer is taken.
    pub(super) fn accept(offer: Offer, rules: &Rules, now: Now, out: &mut Vec<Action>) -> Self {
        let record = Record {
            offer: Arc::new(offer),
            phase: AttemptPhase::Accepted,
            accepted_wall: now.wall,
            boot: rules.boot,
            accepted: now.mono,
            running: None,
            spawned: false,
            used_before: BTreeMap::new(),
            energy: Some(Account::default()),
            stop: None,
            device_fault: None,
            checkpoints_through: 0,
            events_through: 0,
            last_event: 0,
        };
        let mut attempt = Self::new(record, State::Preparing, rules);
        attempt.tell(AttemptPhase::Preparing, ReportBody::Preparing, out);
        out.push(Action::Prepare(attempt.offer()));
        attempt
    }

    /// What an earlier agent kept is taken up where it was left.
    pub(super) fn restore(mut record: Record, rules: &Rules, now: Now, out: &mut Vec<Action>) -> Self {
        let offer = Arc::clone(&record.offer);
        if record.boot != rules.boot {
            record.running = None;
        }
        record.energy = record.energy.map(|energy| energy.taken_up(record.boot == rules.boot));
        if record.phase != AttemptPhase::Done {
            // They are read again from the first.
            record.last_event = 0;
        }
        let state = if record.phase == AttemptPhase::Done {
            State::Done { stuck: false }
        } else if record.spawned {
            out.push(Action::Adopt(offer));
            // The agent may have died between writing the order down and giving it.
            let leave = if let Some(message) = &record.device_fault {
                out.push(Action::Kill(record.id()));
                Some(Leave::killed(Fault::new(Outcome::Hardware, message), now))
            } else {
                record.stop.map(|(how, cause)| {
                    out.push(Action::Ask(record.id(), Ask::Stop(how, cause)));
                    Leave::Asked { how, cause, kill_at: now.mono + rules.grace(how) }
                })
            };
            State::Starting { lock_by: now.mono + rules.start_grace, leave }
        } else {
            if record.boot != rules.boot {
                // Nothing of it was of the boot before: it begins in this one.
                (record.boot, record.accepted, record.accepted_wall) = (rules.boot, now.mono, now.wall);
                out.push(Action::Keep(Box::new(record.clone())));
            }
            out.push(Action::Prepare(offer));
            State::Preparing
        };
        Self::new(record, state, rules)
    }

    fn new(record: Record, state: State, rules: &Rules) -> Self {
        Self {
            same_boot: record.boot == rules.boot,
            innocent: record.device_fault.is_some(),
            record,
            state,
            meter: Meter::default(),
            uploads: Uploads::default(),
            last_event_wall: None,
            pid: None,
            pids: BTreeSet::new(),
            exit: None,
            charged: Duration::ZERO,
            wanted: Wanted::Yes,
        }
    }

    /// Which.
    pub(super) fn id(&self) -> AttemptId {
        self.record.id()
    }

    /// Where it is; never behind what an earlier agent reported of it.
    pub(super) fn phase(&self) -> AttemptPhase {
        self.record.phase.max(match self.state {
            State::Preparing | State::Starting { .. } => AttemptPhase::Preparing,
            State::Running { .. } => AttemptPhase::Running,
            State::Finalizing { .. } => AttemptPhase::Finalizing,
            State::Done { .. } => AttemptPhase::Done,
        })
    }

    /// Whether it is not over.
    pub(super) fn is_live(&self) -> bool {
        !matches!(self.state, State::Done { .. })
    }

    /// Whether its process cannot be killed.
    pub(super) fn is_stuck(&self) -> bool {
        matches!(self.state, State::Done { stuck: true } | State::Finalizing { process: Process::Stuck, .. })
    }

    /// Whether its worker may be alive.
    pub(super) fn has_worker(&self) -> bool {
        match &self.state {
            State::Starting { .. } | State::Running { .. } => true,
            State::Finalizing { process, .. } => !process.is_over(),
            State::Preparing | State::Done { .. } => false,
        }
    }

    /// Whether it may be dropped.
    pub(super) fn is_forgotten(&self) -> bool {
        self.wanted == Wanted::Forgotten
    }

    /// Whether a device is kept for it.
    pub(super) fn holds(&self, device: &DeviceId) -> bool {
        self.held().contains(device)
    }

    /// Whether it wants its devices for itself.
    pub(super) fn is_exclusive(&self) -> bool {
        self.record.offer.job.resources.exclusive
    }

    /// The devices kept for it.
    pub(super) fn held(&self) -> &[DeviceId] {
        if self.is_live() { self.devices() } else { &[] }
    }

    /// The devices it was offered.
    pub(super) fn devices(&self) -> &[DeviceId] {
        &self.record.offer.devices
    }

    /// What its plan allows it of a device and it has not taken, as far as anybody can tell.
    pub(super) fn untaken_bytes(&self, holders: Option<&Holders>) -> u64 {
        let planned = self.record.offer.planned_bytes;
        let of = |holders: &Holders| self.pids.iter().filter_map(|pid| holders.get(pid).copied().flatten()).collect();
        let taken: Vec<u64> = holders.map(of).unwrap_or_default();
        match taken.into_iter().reduce(u64::saturating_add) {
            Some(bytes) => planned.saturating_sub(bytes),
            // With its first step it has taken what it takes.
            None if self.meter.step() > 0 => 0,
            None => planned,
        }
    }

    /// Whether it began in this life of the machine.
    pub(super) fn is_of_this_boot(&self) -> bool {
        self.same_boot
    }

    /// Whether the driver names somebody of its worker's group on a device that is its.
    pub(super) fn is_named(&self, holders: &BTreeMap<DeviceId, Holders>) -> bool {
        let mut of_device = self.devices().iter().filter_map(|device| holders.get(device));
        self.has_worker() && of_device.any(|holders| self.pids.iter().any(|pid| holders.contains_key(pid)))
    }

    /// Everybody who was seen in its worker's group.
    pub(super) fn pids(&self) -> &BTreeSet<u32> {
        &self.pids
    }

    /// Bytes in use of a device before its worker was started.
    pub(super) fn used_before(&self, device: &DeviceId) -> Option<u64> {
        self.record.used_before.get(device).copied().filter(|_| self.same_boot)
    }

    /// What its devices drew is charged to it as long as it holds them. With the record another agent knows how far that is: the driver's
    /// counter goes on meanwhile, and what was shared, or measured by ourselves, is not lost by more than a minute.
    pub(super) fn charge(
        &mut self,
        gauges: &Gauges,
        sharers: &BTreeMap<DeviceId, u64>,
        now: Now,
        out: &mut Vec<Action>,
    ) {
        if !self.is_live() {
            return;
        }
        let among = |device: &DeviceId| sharers.get(device).copied().unwrap_or(1);
        let Some(energy) = &mut self.record.energy else { return };
        let before = energy.clone();
        let begins = energy.charge(&self.record.offer.devices, gauges, among, now.mono);
        let is_due = now.mono.saturating_sub(self.charged) >= KEEP_CHARGE && before != *energy;
        if begins || is_due {
            self.charged = now.mono;
            self.keep(out);
        }
    }

    /// Its worker's process, for people.
    pub(super) fn process(&self) -> String {
        self.pid.map_or("a process that did not say who it is".into(), |pid| format!("process {pid}"))
    }

    /// Files and directory are complete.
    pub(super) fn prepared(&mut self, used: BTreeMap<DeviceId, u64>, rules: &Rules, now: Now, out: &mut Vec<Action>) {
        if matches!(self.state, State::Preparing) {
            self.record.spawned = true;
            self.record.used_before = used;
            self.state = State::Starting { lock_by: now.mono + rules.start_grace, leave: None };
            self.keep(out);
            out.push(Action::Start(self.offer()));
        }
    }

    /// They never will be.
    pub(super) fn prepare_failed(&mut self, fault: Fault, now: Now, out: &mut Vec<Action>) {
        if matches!(self.state, State::Preparing) {
            self.end(Word::fault(fault, 0), Adapter::None, Process::Gone, now, out);
        }
    }

    /// The coordinator does not have them. That is nobody's time: an end that held nothing blames no node.
    pub(super) fn unprovided(&mut self, fault: Fault, class: FailureClass, out: &mut Vec<Action>) {
        if matches!(self.state, State::Preparing) {
            let word = Word { class: Some(class), ..Word::fault(fault, 0) };
            self.end_after(Duration::ZERO, word, Adapter::None, Process::Gone, out);
        }
    }

    /// A device of its failed: nobody waits for a worker that may compute anything, or that may not even be able to end. What went wrong
    /// before its driver said so went wrong on that device.
    pub(super) fn device_failed(&mut self, device: &DeviceId, fault: &str, now: Now, out: &mut Vec<Action>) {
        if self.record.device_fault.is_some() || !self.may_end_of_its_device() {
            return;
        }
        let message = format!("its device {device} failed: {fault}");
        self.innocent = true;
        self.record.device_fault = Some(message.clone());
        self.keep(out);
        let fault = Fault::new(Outcome::Hardware, message);
        match &mut self.state {
            State::Preparing => self.end(Word::fault(fault, 0), Adapter::None, Process::Gone, now, out),
            State::Starting { leave: Some(Leave::Killed { fault: earlier, .. }), .. }
            | State::Running { leave: Some(Leave::Killed { fault: earlier, .. }), .. } => *earlier = fault,
            State::Starting { .. } | State::Running { .. } => self.condemn(fault, now, out),
            State::Finalizing { word, adapter, .. } => {
                *word = Word::fault(fault, word.step);
                *adapter = Adapter::None;
                self.finish_if_through(now, out);
            }
            State::Done { .. } => {}
        }
    }

    /// Whether it has not ended yet for another reason that stands.
    fn may_end_of_its_device(&self) -> bool {
        let outcome = match &self.state {
            State::Starting { leave: Some(Leave::Killed { fault, .. }), .. }
            | State::Running { leave: Some(Leave::Killed { fault, .. }), .. } => fault.outcome,
            State::Finalizing { word, .. } => word.outcome,
            State::Preparing | State::Starting { .. } | State::Running { .. } => return true,
            State::Done { .. } => return false,
        };
        match outcome {
            Outcome::Lost | Outcome::Hardware | Outcome::Oom | Outcome::UserError => true,
            // It came through, or was asked to end, or it is the machine's fault already.
            Outcome::Ok
            | Outcome::Preempted
            | Outcome::PrepareFailed
            | Outcome::DiskFull
            | Outcome::TimedOut
            | Outcome::Cancelled
            | Outcome::Superseded
            | Outcome::Withdrawn => false,
        }
    }

    /// Whether an end for its device's sake is that of one device alone, which is known.
    pub(super) fn is_innocent(&self) -> bool {
        self.innocent
    }

    pub(super) fn check_invariants(&self) {
        let told = self.record.phase;
        assert_eq!(told == AttemptPhase::Done, !self.is_live(), "{told:?} was reported in {:?}", self.state);
        self.uploads.check_invariants();
        assert!(self.is_live() || self.uploads.is_idle());
    }

    fn offer(&self) -> Arc<Offer> {
        Arc::clone(&self.record.offer)
    }

    fn keep(&self, out: &mut Vec<Action>) {
        out.push(Action::Keep(Box::new(self.record.clone())));
    }

    /// Reports a phase once, over all lives of the agent.
    fn tell(&mut self, phase: AttemptPhase, body: ReportBody, out: &mut Vec<Action>) {
        if self.record.phase < phase {
            self.record.phase = phase;
            out.push(Action::Report(self.id(), body));
            self.keep(out);
        }
    }

    fn end(&mut self, word: Word, adapter: Adapter, process: Process, now: Now, out: &mut Vec<Action>) {
        // Nobody is charged or blamed for what a device did that is known to have failed, or a disk.
        let is_its_machines = self.innocent && matches!(word.outcome, Outcome::Hardware | Outcome::PrepareFailed);
        let held = if is_its_machines { Duration::ZERO } else { self.held_for(now) };
        self.end_after(held, word, adapter, process, out);
    }

    fn end_after(&mut self, held: Duration, word: Word, adapter: Adapter, process: Process, out: &mut Vec<Action>) {
        let ended = self.ended(word, adapter, held);
        self.uploads = Uploads::default();
        self.state = State::Done { stuck: process == Process::Stuck };
        out.push(Action::Abandon(self.id()));
        let energy = self.record.energy.as_ref().and_then(|energy| energy.joules(self.devices()));
        let body = match energy {
            Some(energy_joules) => ReportBody::Metered(Metered { ended, energy_joules }),
            None => ReportBody::Ended(ended),
        };
        self.tell(AttemptPhase::Done, body, out);
        if self.wanted == Wanted::No {
            self.wanted = Wanted::UntilEvents { latest: Duration::ZERO };
        }
    }

    fn ended(&self, word: Word, adapter: Adapter, held: Duration) -> Ended {
        let (files, summary) = match adapter {
            Adapter::Uploaded { files, summary } => (files, summary),
            Adapter::None | Adapter::Doubted | Adapter::Uploading => (Vec::new(), None),
        };
        let Word { outcome, class, message, step } = word;
        let message = message.map(shortened);
        Ended { outcome, class, message, step, held, files, summary, last_event: self.record.last_event }
    }

    /// How long its devices were kept. After a reboot only the wall clock knows, and only up to the last event.
    fn held_for(&self, now: Now) -> Duration {
        if self.same_boot {
            return now.mono.saturating_sub(self.record.accepted);
        }
        let last = self.last_event_wall.map_or(0, |wall| wall.0);
        Duration::from_millis(last.saturating_sub(self.record.accepted_wall.0))
    }
}

/// A message's beginning, where it is too long; all of it stands in the worker's events.
fn shortened(mut message: String) -> String {
    let length = message.len();
    if length > MESSAGE_BYTES {
        message.truncate(message.floor_char_boundary(MESSAGE_BYTES));
        message.push_str(&format!("… [{length} bytes in all]"));
    }
    message
}
