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
//! `Finalizing` means that the worker said its last word. It lasts until the process is gone and every upload is through; only
//! then is the end reported, so that a checkpoint made on the way out counts before the attempt that made it ends.

use super::{
    Action, Ask, Fault, News, Now, Rules,
    ending::{Adapter, Leave, Process, Word},
    meter::Meter,
    record::Record,
    uploads::{CheckpointMade, Uploads},
};
use lorikeet_protocol::{
    agent::{Checkpoint, Ended, Offer, ReportBody, StopHow},
    file::NamedFile,
    id::{AttemptId, DeviceId, UnixMillis},
    job::{AttemptPhase, Outcome, StopCause},
    worker::{EventLine, WorkerEvent, WrittenFile},
};
use std::{sync::Arc, time::Duration};

/// A worker that said its last word and stays is killed after this.
const LINGER: Duration = Duration::from_secs(30);
/// A forgotten attempt's last events get this long to be acknowledged.
const FORGET_GRACE: Duration = Duration::from_secs(30);

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
    /// The end is reported.
    Done,
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
            stop: None,
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
        if record.phase != AttemptPhase::Done {
            // They are read again from the first.
            record.last_event = 0;
        }
        let state = if record.phase == AttemptPhase::Done {
            State::Done
        } else if record.spawned {
            out.push(Action::Adopt(offer));
            // The agent may have died between writing the order down and giving it.
            let leave = record.stop.map(|(how, cause)| {
                out.push(Action::Ask(record.id(), Ask::Stop(how, cause)));
                Leave::Asked { how, cause, kill_at: now.mono + rules.grace(how) }
            });
            State::Starting { lock_by: now.mono + rules.start_grace, leave }
        } else {
            out.push(Action::Prepare(offer));
            State::Preparing
        };
        Self::new(record, state, rules)
    }

    fn new(record: Record, state: State, rules: &Rules) -> Self {
        Self {
            same_boot: record.boot == rules.boot,
            record,
            state,
            meter: Meter::default(),
            uploads: Uploads::default(),
            last_event_wall: None,
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
            State::Done => AttemptPhase::Done,
        })
    }

    /// Whether it is not over.
    pub(super) fn is_live(&self) -> bool {
        !matches!(self.state, State::Done)
    }

    /// Whether its worker may be alive.
    pub(super) fn has_worker(&self) -> bool {
        match &self.state {
            State::Starting { .. } | State::Running { .. } => true,
            State::Finalizing { process, .. } => *process != Process::Gone,
            State::Preparing | State::Done => false,
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

    /// The devices kept for it.
    pub(super) fn held(&self) -> &[DeviceId] {
        if self.is_live() { &self.record.offer.devices } else { &[] }
    }

    /// Files and directory are complete.
    pub(super) fn prepared(&mut self, rules: &Rules, now: Now, out: &mut Vec<Action>) {
        if matches!(self.state, State::Preparing) {
            self.record.spawned = true;
            self.state = State::Starting { lock_by: now.mono + rules.start_grace, leave: None };
            self.keep(out);
            out.push(Action::Start(self.offer()));
        }
    }

    /// They never will be.
    pub(super) fn prepare_failed(&mut self, fault: Fault, now: Now, out: &mut Vec<Action>) {
        if matches!(self.state, State::Preparing) {
            self.end(Word::fault(fault, 0), Adapter::None, now, out);
        }
    }

    /// Somebody wants it to end.
    pub(super) fn stop(&mut self, how: StopHow, cause: StopCause, rules: &Rules, now: Now, out: &mut Vec<Action>) {
        match &mut self.state {
            State::Preparing => self.end(Word::cause(cause, self.meter.step()), Adapter::None, now, out),
            State::Starting { leave, .. } | State::Running { leave, .. } => {
                let kill_at = now.mono + rules.grace(how);
                if let Some(leaving) = Leave::urged(leave.as_ref(), how, cause, kill_at) {
                    *leave = Some(leaving);
                    self.record.stop = Some((how, cause));
                    self.keep(out);
                    out.push(Action::Ask(self.id(), Ask::Stop(how, cause)));
                }
            }
            State::Finalizing { word, adapter, .. } if how == StopHow::Discard => {
                *word = Word::cause(cause, word.step);
                *adapter = Adapter::None;
                self.uploads = Uploads::default();
                out.push(Action::Abandon(self.id()));
                self.finish_if_through(now, out);
            }
            // It is leaving anyway, with everything it made.
            State::Finalizing { .. } | State::Done => {}
        }
    }

    /// A checkpoint is wanted now.
    pub(super) fn save_now(&mut self, out: &mut Vec<Action>) {
        if matches!(self.state, State::Running { leave: None, .. }) {
            out.push(Action::Ask(self.id(), Ask::SaveNow));
        }
    }

    /// News of its worker.
    pub(super) fn news(&mut self, news: News, now: Now, out: &mut Vec<Action>) {
        match news {
            News::Holds => self.holds_lock(now, out),
            News::Event(line) => self.event(*line, now, out),
            News::TooLarge { resident, limit } => self.too_large(resident, limit, out),
            News::Gone { how } => self.gone(&how, now, out),
        }
    }

    /// A checkpoint is with the coordinator: now it counts.
    pub(super) fn checkpoint_uploaded(&mut self, seq: u64, checkpoint: Checkpoint, now: Now, out: &mut Vec<Action>) {
        let id = self.id();
        let next = &mut Vec::new();
        if self.uploads.through(id, seq, next) {
            out.push(Action::Report(id, ReportBody::Checkpoint(checkpoint)));
            self.checkpoint_through(seq, now, out);
        }
        out.append(next);
    }

    /// A checkpoint will never be with the coordinator.
    pub(super) fn checkpoint_given_up(&mut self, seq: u64, now: Now, out: &mut Vec<Action>) {
        if self.uploads.through(self.id(), seq, out) {
            self.checkpoint_through(seq, now, out);
        }
    }

    /// The result is with the coordinator.
    pub(super) fn adapter_uploaded(
        &mut self,
        files: Vec<NamedFile>,
        summary: Option<String>,
        now: Now,
        out: &mut Vec<Action>,
    ) {
        if let State::Finalizing { adapter: adapter @ Adapter::Uploading, .. } = &mut self.state {
            *adapter = Adapter::Uploaded { files, summary };
            self.finish_if_through(now, out);
        }
    }

    /// The result will never be with the coordinator.
    pub(super) fn adapter_given_up(&mut self, fault: Fault, now: Now, out: &mut Vec<Action>) {
        if let State::Finalizing { word, adapter: adapter @ Adapter::Uploading, .. } = &mut self.state {
            *word = Word::fault(fault, word.step);
            *adapter = Adapter::None;
            self.finish_if_through(now, out);
        }
    }

    /// The coordinator keeps its events up to `through`.
    pub(super) fn events_acknowledged(&mut self, through: u64) {
        self.record.events_through = self.record.events_through.max(through);
    }

    /// Every report of it is acknowledged.
    pub(super) fn delivered(&mut self, now: Now, out: &mut Vec<Action>) {
        if !self.is_live() && self.wanted == Wanted::UntilDelivered {
            self.forget(now, out);
        }
    }

    /// The coordinator has another attempt in its place, or none: how this one ends is still to be told.
    pub(super) fn disown(&mut self, rules: &Rules, now: Now, out: &mut Vec<Action>) {
        self.wanted = Wanted::UntilDelivered;
        self.stop(StopHow::Discard, StopCause::Superseded, rules, now, out);
    }

    /// Nobody wants to hear how it ends.
    pub(super) fn disown_silently(&mut self, rules: &Rules, now: Now, out: &mut Vec<Action>) {
        self.wanted = Wanted::No;
        self.stop(StopHow::Discard, StopCause::Superseded, rules, now, out);
        if !self.is_live() {
            self.drop_now(out);
        }
    }

    /// Its end is recorded: it may go, once its last events are there as well.
    pub(super) fn forget(&mut self, now: Now, out: &mut Vec<Action>) {
        if self.is_live() {
            // Only what is over is ever forgotten; an order that came too early is given again at the next welcome.
            tracing::warn!(attempt = %self.id(), "told to forget an attempt that is alive");
        } else if self.record.events_through >= self.record.last_event {
            self.drop_now(out);
        } else {
            self.wanted = Wanted::UntilEvents { latest: now.mono + FORGET_GRACE };
        }
    }

    /// Whatever is due.
    pub(super) fn tick(&mut self, rules: &Rules, now: Now, out: &mut Vec<Action>) {
        self.tick_wanted(now, out);
        if self.meter.due(rules.progress).is_some_and(|due| due <= now.mono) {
            self.report_progress(now, out);
        }
        let id = self.id();
        match &mut self.state {
            State::Starting { leave: Some(leave), .. } | State::Running { leave: Some(leave), .. } => {
                leave.kill_if_due(id, now, out);
            }
            State::Starting { lock_by, leave } if *lock_by <= now.mono => {
                let message = format!("the worker did not take its lock within {:?}", rules.start_grace);
                *leave = Some(Leave::Killed(Fault { outcome: Outcome::PrepareFailed, message }));
                out.push(Action::Kill(id));
            }
            State::Running { time_up, leave: None } if *time_up <= now.mono => {
                self.stop(StopHow::Save, StopCause::TimeLimit, rules, now, out);
            }
            State::Finalizing { process: Process::Alive { kill_at }, .. } if *kill_at <= now.mono => {
                *kill_at = now.mono + LINGER;
                out.push(Action::Kill(id));
            }
            State::Preparing
            | State::Starting { .. }
            | State::Running { .. }
            | State::Finalizing { .. }
            | State::Done => {}
        }
    }

    /// When `tick` has something to do.
    pub(super) fn deadline(&self, rules: &Rules) -> Option<Duration> {
        let own = match &self.state {
            State::Starting { leave: Some(leave), .. } | State::Running { leave: Some(leave), .. } => leave.deadline(),
            State::Starting { lock_by, leave: None } => Some(*lock_by),
            State::Running { time_up, leave: None } => Some(*time_up),
            State::Finalizing { process: Process::Alive { kill_at }, .. } => Some(*kill_at),
            State::Preparing | State::Finalizing { process: Process::Gone, .. } | State::Done => None,
        };
        let wanted = if let Wanted::UntilEvents { latest } = self.wanted { Some(latest) } else { None };
        [own, wanted, self.meter.due(rules.progress)].into_iter().flatten().min()
    }

    #[cfg(test)]
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

    fn holds_lock(&mut self, now: Now, out: &mut Vec<Action>) {
        let State::Starting { leave, .. } = &mut self.state else { return };
        let leave = leave.take();
        let since = *self.record.running.get_or_insert(now.mono);
        self.state = State::Running { time_up: since + self.record.offer.time_left, leave };
        let from_step = self.record.offer.resume.as_ref().map_or(0, |checkpoint| checkpoint.step);
        self.tell(AttemptPhase::Running, ReportBody::Running { from_step }, out);
    }

    fn event(&mut self, line: EventLine, now: Now, out: &mut Vec<Action>) {
        if line.seq <= self.record.last_event {
            return;
        }
        self.record.last_event = line.seq;
        self.last_event_wall = Some(line.time);
        match line.event {
            WorkerEvent::Plan(plan) => self.meter.planned(plan.total_steps),
            WorkerEvent::Step(step) => self.meter.stepped(step),
            WorkerEvent::Eval { loss, .. } => self.meter.evaluated(loss),
            WorkerEvent::Checkpoint { step, loss, kind, path } => {
                self.checkpoint_made(CheckpointMade { seq: line.seq, step, loss, kind, path }, out);
            }
            WorkerEvent::Finished { step, files } => self.finished(step, files, now, out),
            WorkerEvent::Stopped { step, cause, .. } => {
                let word = Word::cause(self.asked().map_or(cause, |(_, cause)| cause), step);
                self.last_word(word, Adapter::None, now, out);
            }
            WorkerEvent::Failed { class, message, hint } => {
                let message = hint.map_or(message.clone(), |hint| format!("{message} ({hint})"));
                let step = self.meter.step();
                let word = Word { outcome: class.outcome(), class: Some(class), message: Some(message), step };
                self.last_word(word, Adapter::None, now, out);
            }
            WorkerEvent::Stage { .. } | WorkerEvent::Log { .. } | WorkerEvent::Sample { .. } => {}
        }
    }

    fn asked(&self) -> Option<(StopHow, StopCause)> {
        match &self.state {
            State::Starting { leave, .. } | State::Running { leave, .. } => match leave {
                Some(Leave::Asked { how, cause, .. }) => Some((*how, *cause)),
                Some(Leave::Killed(_)) | None => None,
            },
            State::Preparing | State::Finalizing { .. } | State::Done => None,
        }
    }

    fn checkpoint_made(&mut self, made: CheckpointMade, out: &mut Vec<Action>) {
        let id = self.id();
        if made.seq > self.record.checkpoints_through && self.is_live() {
            self.uploads.add(id, made, out);
        }
    }

    fn checkpoint_through(&mut self, seq: u64, now: Now, out: &mut Vec<Action>) {
        self.record.checkpoints_through = seq;
        self.keep(out);
        self.finish_if_through(now, out);
    }

    fn finished(&mut self, step: u64, files: Vec<WrittenFile>, now: Now, out: &mut Vec<Action>) {
        if let Some((StopHow::Discard, cause)) = self.asked() {
            self.last_word(Word::cause(cause, step), Adapter::None, now, out);
        } else {
            let word = Word { outcome: Outcome::Ok, class: None, message: None, step };
            self.last_word(word, Adapter::Uploading, now, out);
            if matches!(self.state, State::Finalizing { adapter: Adapter::Uploading, .. }) {
                out.push(Action::UploadAdapter(self.id(), files));
            }
        }
    }

    fn last_word(&mut self, word: Word, adapter: Adapter, now: Now, out: &mut Vec<Action>) {
        if !matches!(self.state, State::Starting { .. } | State::Running { .. }) {
            return;
        }
        self.report_progress(now, out);
        if self.asked().is_some_and(|(how, _)| how == StopHow::Discard) {
            self.uploads = Uploads::default();
            out.push(Action::Abandon(self.id()));
        }
        self.state = State::Finalizing { word, adapter, process: Process::Alive { kill_at: now.mono + LINGER } };
        self.tell(AttemptPhase::Finalizing, ReportBody::Finalizing, out);
    }

    fn too_large(&mut self, resident: u64, limit: u64, out: &mut Vec<Action>) {
        let id = self.id();
        let (State::Starting { leave, .. } | State::Running { leave, .. }) = &mut self.state else { return };
        if !matches!(leave, Some(Leave::Killed(_))) {
            let message = format!("the worker used {resident} bytes of main memory, {limit} are allowed");
            *leave = Some(Leave::Killed(Fault { outcome: Outcome::Oom, message }));
            out.push(Action::Kill(id));
        }
    }

    fn gone(&mut self, how: &str, now: Now, out: &mut Vec<Action>) {
        let step = self.meter.step();
        match &mut self.state {
            State::Starting { leave, .. } | State::Running { leave, .. } => {
                let word = match leave.take() {
                    Some(Leave::Killed(fault)) => Word::fault(fault, step),
                    Some(Leave::Asked { cause, .. }) => Word::cause(cause, step),
                    None => Word::fault(Fault { outcome: Outcome::Lost, message: format!("process: {how}") }, step),
                };
                self.report_progress(now, out);
                // A checkpoint that was complete before the end still counts for the next attempt.
                if !self.uploads.is_idle() && word.has_a_successor() {
                    self.state = State::Finalizing { word, adapter: Adapter::None, process: Process::Gone };
                    self.tell(AttemptPhase::Finalizing, ReportBody::Finalizing, out);
                } else {
                    self.end(word, Adapter::None, now, out);
                }
            }
            State::Finalizing { process, .. } => {
                *process = Process::Gone;
                self.finish_if_through(now, out);
            }
            State::Preparing | State::Done => {}
        }
    }

    fn finish_if_through(&mut self, now: Now, out: &mut Vec<Action>) {
        let State::Finalizing { word, adapter, process: Process::Gone } = &mut self.state else { return };
        if *adapter != Adapter::Uploading && self.uploads.is_idle() {
            let (word, adapter) = (word.clone(), std::mem::replace(adapter, Adapter::None));
            self.end(word, adapter, now, out);
        }
    }

    fn end(&mut self, word: Word, adapter: Adapter, now: Now, out: &mut Vec<Action>) {
        let (files, summary) = match adapter {
            Adapter::Uploaded { files, summary } => (files, summary),
            Adapter::None | Adapter::Uploading => (Vec::new(), None),
        };
        let Word { outcome, class, message, step } = word;
        let ended = Ended { outcome, class, message, step, held: self.held_for(now), files, summary };
        self.uploads = Uploads::default();
        self.state = State::Done;
        out.push(Action::Abandon(self.id()));
        self.tell(AttemptPhase::Done, ReportBody::Ended(ended), out);
        if self.wanted == Wanted::No {
            self.drop_now(out);
        }
    }

    /// How long its devices were kept. After a reboot only the wall clock knows, and only up to the last event.
    fn held_for(&self, now: Now) -> Duration {
        if self.same_boot {
            return now.mono.saturating_sub(self.record.accepted);
        }
        let last = self.last_event_wall.map_or(0, |wall| wall.0);
        Duration::from_millis(last.saturating_sub(self.record.accepted_wall.0))
    }

    fn report_progress(&mut self, now: Now, out: &mut Vec<Action>) {
        if let Some(progress) = self.meter.take(now.mono) {
            out.push(Action::Report(self.id(), ReportBody::Progress(progress)));
        }
    }

    fn tick_wanted(&mut self, now: Now, out: &mut Vec<Action>) {
        if let Wanted::UntilEvents { latest } = self.wanted {
            if latest <= now.mono || self.record.events_through >= self.record.last_event {
                self.drop_now(out);
            }
        }
    }

    fn drop_now(&mut self, out: &mut Vec<Action>) {
        self.wanted = Wanted::Forgotten;
        out.push(Action::Forget(self.id()));
    }
}
