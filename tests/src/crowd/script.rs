//! What the attempts of one simulated agent do: they run for as long as the script says and end well, or stop when told.
//!
//! Plain data. Reports are numbered and kept until acknowledged, lines likewise, as the product's outbox and spool do, so that no
//! step is lost when the coordinator is away.

use super::Seen;
use lorikeet_protocol::{
    agent::{
        Ended, EventLines, FromAgent, KnownAttempt, Offer, Report, ReportBody, StopHow, ToAgent, Verdict, Welcome,
    },
    id::{AttemptId, DeviceId, UnixMillis},
    job::{AttemptPhase, Device, DeviceKind, Outcome, StopCause},
    worker::{EventLine, Step, WorkerEvent},
};
use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

/// Lines of one message.
const LINES: usize = 500;

/// How they behave.
#[derive(Debug, Clone)]
pub struct Script {
    /// Devices of each.
    pub gpus: usize,
    /// How long an attempt runs.
    pub lasts: Duration,
    /// Between two steps; zero: none are told.
    pub step: Duration,
    /// Between two words of each device, as datagrams; zero: none.
    pub telemetry: Duration,
    /// The first wait before dialling again, and the longest.
    pub patience: (Duration, Duration),
}

impl Default for Script {
    /// One idle GPU, the patience of the product's agents.
    fn default() -> Self {
        Self {
            gpus: 1,
            lasts: Duration::ZERO,
            step: Duration::ZERO,
            telemetry: Duration::ZERO,
            patience: (Duration::from_millis(500), Duration::from_secs(30)),
        }
    }
}

/// The state of one agent.
#[derive(Debug)]
pub(super) struct Stage {
    script: Script,
    attempts: BTreeMap<AttemptId, Run>,
    reports: VecDeque<Report>,
    /// Reports through this one were acknowledged.
    base: u64,
    /// Reports through this one have left in this session.
    sent: u64,
    /// Answers to offers.
    tells: VecDeque<FromAgent>,
}

/// One attempt.
#[derive(Debug)]
struct Run {
    phase: AttemptPhase,
    began: Instant,
    ends: Instant,
    lines: u64,
    /// Lines through this one have left in this session, and are with the coordinator.
    sent: u64,
    kept: u64,
    running: u64,
    ended: u64,
}

impl Stage {
    pub(super) fn new(script: Script) -> Self {
        let (attempts, reports, tells) = (BTreeMap::new(), VecDeque::new(), VecDeque::new());
        Self { script, attempts, reports, base: 0, sent: 0, tells }
    }

    pub(super) fn devices(&self) -> Vec<Device> {
        let gpu = |index| Device {
            id: DeviceId(format!("GPU-{index}")),
            name: "simulated".into(),
            kind: DeviceKind::Cuda { compute: (9, 0), driver: None },
            memory_bytes: 80 << 30,
            free_bytes: 80 << 30,
            usable: Ok(()),
        };
        (0..self.script.gpus).map(gpu).collect()
    }

    pub(super) fn known(&self) -> Vec<KnownAttempt> {
        self.attempts.iter().map(|(id, run)| KnownAttempt { id: *id, phase: run.phase }).collect()
    }

    pub(super) fn acknowledged(&self) -> u64 {
        self.base
    }

    /// A session begins.
    pub(super) fn welcomed(&mut self, welcome: &Welcome, now: Instant, seen: &mut Seen) {
        self.drop_through(welcome.last_report, now, seen);
        self.base = self.base.max(welcome.last_report);
        self.sent = self.base;
        self.tells.clear();
        for run in self.attempts.values_mut() {
            run.sent = run.kept;
        }
        for (attempt, through) in &welcome.events {
            self.lines_kept(*attempt, *through, seen);
        }
        for (attempt, verdict) in &welcome.verdicts {
            match verdict {
                Verdict::Stop => self.stop(*attempt, StopCause::Superseded, now, seen),
                Verdict::Forget => drop(self.attempts.remove(attempt)),
                Verdict::Adopt | Verdict::Report => {}
            }
        }
    }

    /// The coordinator said something.
    pub(super) fn hear(&mut self, message: ToAgent, now: Instant, seen: &mut Seen) {
        match message {
            ToAgent::Offer(offer) => self.offered(&offer, now, seen),
            ToAgent::Stop { attempt, how: StopHow::Save | StopHow::Discard, cause } => {
                self.stop(attempt, cause, now, seen);
            }
            ToAgent::Acknowledged { through } => self.drop_through(through, now, seen),
            ToAgent::EventsAcknowledged { attempt, through } => self.lines_kept(attempt, through, seen),
            ToAgent::Forget(attempt) => {
                if self.attempts.get(&attempt).is_some_and(|run| run.kept >= run.lines) {
                    self.attempts.remove(&attempt);
                    // Only what is recorded as over may be forgotten, though its acknowledgement may still be on its way.
                    seen.ended.entry(attempt).or_insert(now);
                }
            }
            ToAgent::Welcome(_)
            | ToAgent::SaveNow(_)
            | ToAgent::Renewed(_)
            | ToAgent::Goodbye(_)
            | ToAgent::Trust(_)
            | ToAgent::Expelled(_) => {}
        }
    }

    fn offered(&mut self, offer: &Offer, now: Instant, seen: &mut Seen) {
        let id = offer.attempt;
        self.tells.push_back(FromAgent::Accepted(id));
        if self.attempts.contains_key(&id) {
            return;
        }
        seen.offered.insert(id, now);
        self.report(id, ReportBody::Preparing);
        let running = self.report(id, ReportBody::Running { from_step: 0 });
        let ends = now + self.script.lasts;
        let (lines, sent, kept, ended) = (0, 0, 0, 0);
        let run = Run { phase: AttemptPhase::Running, began: now, ends, lines, sent, kept, running, ended };
        self.attempts.insert(id, run);
        self.tick(now, seen);
    }

    fn stop(&mut self, id: AttemptId, cause: StopCause, now: Instant, seen: &mut Seen) {
        if self.attempts.get(&id).is_some_and(|run| run.phase == AttemptPhase::Running) {
            seen.stopped.insert(id, now);
            let outcome = match cause {
                StopCause::Cancel => Outcome::Cancelled,
                StopCause::Superseded => Outcome::Superseded,
                StopCause::TimeLimit => Outcome::TimedOut,
                StopCause::Pause | StopCause::Preempt | StopCause::Drain | StopCause::Signal => Outcome::Preempted,
            };
            self.end(id, outcome, now);
        }
    }

    fn end(&mut self, id: AttemptId, outcome: Outcome, now: Instant) {
        let Some(run) = self.attempts.get_mut(&id) else { return };
        run.phase = AttemptPhase::Done;
        let ended = Ended {
            outcome,
            class: None,
            message: None,
            step: run.lines,
            held: now - run.began,
            files: vec![],
            summary: None,
            last_event: run.lines,
        };
        self.report(id, ReportBody::Finalizing);
        let number = self.report(id, ReportBody::Ended(ended));
        if let Some(run) = self.attempts.get_mut(&id) {
            run.ended = number;
        }
    }

    fn report(&mut self, attempt: AttemptId, body: ReportBody) -> u64 {
        let number = self.base + self.reports.len() as u64 + 1;
        self.reports.push_back(Report { number, attempt, time: wall(), body });
        number
    }

    /// Time passes: steps are made, and what has run long enough ends.
    pub(super) fn tick(&mut self, now: Instant, seen: &mut Seen) {
        let step = self.script.step;
        let mut over = vec![];
        for (id, run) in self.attempts.iter_mut().filter(|(_, run)| run.phase == AttemptPhase::Running) {
            if !step.is_zero() {
                let made = ((now.min(run.ends) - run.began).as_nanos() / step.as_nanos()) as u64;
                seen.lines.0 += made - run.lines;
                run.lines = made;
            }
            if run.ends <= now {
                over.push(*id);
            }
        }
        over.into_iter().for_each(|id| self.end(id, Outcome::Ok, now));
    }

    /// When time alone changes something.
    pub(super) fn due(&self) -> Option<Instant> {
        let step = self.script.step;
        let runs = self.attempts.values().filter(|run| run.phase == AttemptPhase::Running);
        let due = |run: &Run| {
            let next = (!step.is_zero()).then(|| run.began + step * (run.lines as u32 + 1));
            next.map_or(run.ends, |next| next.min(run.ends))
        };
        runs.map(due).min()
    }

    /// Whatever has not left in this session, the most urgent first.
    pub(super) fn says(&mut self) -> Vec<FromAgent> {
        let mut says: Vec<_> = self.tells.drain(..).collect();
        let skip = (self.sent - self.base) as usize;
        says.extend(self.reports.iter().skip(skip).cloned().map(FromAgent::Report));
        self.sent = self.base + self.reports.len() as u64;
        for (id, run) in &mut self.attempts {
            while run.sent < run.lines {
                let last = run.lines.min(run.sent + LINES as u64);
                let lines = (run.sent + 1..=last).map(line).collect();
                says.push(FromAgent::Events(EventLines { attempt: *id, first: run.sent + 1, lines }));
                run.sent = last;
            }
        }
        says
    }

    fn drop_through(&mut self, through: u64, now: Instant, seen: &mut Seen) {
        while self.base < through
            && let Some(report) = self.reports.pop_front()
        {
            self.base += 1;
            let Some(run) = self.attempts.get(&report.attempt) else { continue };
            if run.running == report.number {
                seen.running.insert(report.attempt, now);
            }
            if run.ended == report.number {
                seen.ended.insert(report.attempt, now);
            }
        }
        self.sent = self.sent.max(self.base);
    }

    fn lines_kept(&mut self, attempt: AttemptId, through: u64, seen: &mut Seen) {
        if let Some(run) = self.attempts.get_mut(&attempt)
            && through > run.kept
        {
            seen.lines.1 += through.min(run.lines) - run.kept;
            run.kept = through.min(run.lines);
            run.sent = run.sent.max(run.kept);
        }
    }
}

/// Its gradient norm is the moment at which it was made, so that whoever follows the job sees how late it comes.
fn line(seq: u64) -> String {
    let time = wall();
    let step = Step {
        step: seq,
        epoch: seq as f64 / 100.0,
        loss: 1.0 / seq as f64,
        lr: 1e-4,
        grad_norm: time.0 as f64,
        tokens: 1_000,
        supervised_tokens: 500,
        seconds: 0.1,
    };
    let line = EventLine { seq, time, event: WorkerEvent::Step(step) };
    serde_json::to_string(&line).expect("a line is plain data")
}

pub(super) fn wall() -> UnixMillis {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    UnixMillis(since.as_millis() as u64)
}
