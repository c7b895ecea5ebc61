//! A worker process and its attempt directory, as an agent sees them: lines that stay, a lock that is held or free.

use super::{Chance, nature::Nature};
use lorikeet_agent::host::Ask;
use lorikeet_protocol::{
    agent::{CheckpointKind, EventLines, Offer, StopHow},
    id::{AttemptId, DeviceId, UnixMillis},
    job::{FailureClass, StopCause},
    worker::{EventLine, Level, Plan, Stage, Step, WorkerEvent},
};

/// Steps of every job.
pub(super) const STEPS: u64 = 12;
/// A checkpoint every so many.
const EVERY: u64 = 4;
/// Where whatever is wrong with a job shows.
const WRONG: u64 = 2;
/// See the agent's `report_retry`.
pub(super) const SEND_AGAIN: u64 = 30_000;

/// The directory outlives the process.
#[derive(Debug)]
pub(super) struct Worker {
    /// Counts processes: news of an older one is nobody's.
    pub(super) life: u64,
    pub(super) alive: bool,
    pub(super) holds: bool,
    /// How long it took to hold its lock.
    pub(super) held_after: Option<u64>,
    started: u64,
    pub(super) lines: Vec<EventLine>,
    /// Up to here the coordinator has them.
    pub(super) acknowledged: u64,
    /// Up to here they have left in this session.
    pub(super) sent: u64,
    /// Up to here they were told to the host of this life of the agent.
    pub(super) told: usize,
    /// And so were these two.
    pub(super) told_holds: bool,
    pub(super) told_gone: bool,
    /// It does nothing any more, and holds its lock.
    pub(super) hangs: bool,
    /// And cannot be killed.
    pub(super) is_stuck: bool,
    /// It says that it fails, at its next step.
    pub(super) fails: Option<FailureClass>,
    pub(super) devices: Vec<DeviceId>,
    pub(super) is_alone: bool,
    /// Up to here its lines survive the power.
    synced: usize,
    pub(super) asked: Option<(StopHow, StopCause)>,
    /// Since when lines that have left wait for a word.
    waiting: Option<u64>,
    nature: Nature,
    /// Of its job: what its losses are drawn from.
    seed: u8,
    step: u64,
    number: u32,
}

impl Worker {
    pub(super) fn new(offer: &Offer, life: u64, nature: Nature, now: u64) -> Self {
        Self {
            life,
            alive: true,
            holds: false,
            held_after: None,
            started: now,
            lines: vec![],
            acknowledged: 0,
            sent: 0,
            told: 0,
            told_holds: false,
            told_gone: false,
            hangs: false,
            is_stuck: false,
            fails: None,
            devices: offer.devices.clone(),
            is_alone: offer.job.resources.exclusive,
            synced: 0,
            asked: None,
            waiting: None,
            nature,
            seed: offer.attempt.job.0.as_bytes()[15],
            step: offer.resume.as_ref().map_or(0, |checkpoint| checkpoint.step),
            number: offer.attempt.token.number,
        }
    }

    /// An agent that starts knows nothing of it.
    pub(super) fn is_new_to_the_agent(&mut self) {
        (self.told, self.told_holds, self.told_gone) = (0, false, false);
    }

    /// Its machine loses its power: lines that were not synced stay or go. Answers how many went.
    pub(super) fn lose_power(&mut self, chance: &mut Chance) -> usize {
        (self.alive, self.is_stuck) = (false, false);
        let left = self.synced + chance.below((self.lines.len() - self.synced) as u64 + 1) as usize;
        let gone = self.lines.len() - left;
        self.lines.truncate(left);
        gone
    }

    /// Its process dies here, whatever machine it runs on.
    pub(super) fn is_doomed(&self) -> bool {
        self.nature == Nature::Poison && self.step >= WRONG
    }

    /// It begins.
    pub(super) fn hold(&mut self, now: UnixMillis, mono: u64) {
        (self.holds, self.held_after) = (true, Some(mono - self.started));
        let plan = Plan {
            examples: 1,
            validation_examples: 0,
            conversations: 1,
            total_steps: STEPS,
            epoch_tokens: 100,
            supervised_tokens: 50,
            longest_tokens: 10,
            cut_examples: 0,
            cut_tokens: 0,
            trainable_parameters: 1,
            base_parameters: 1,
            micro_tokens: 1,
            from_step: self.step,
            ..Plan::default()
        };
        self.say(now, WorkerEvent::Stage { stage: Stage::Loading });
        self.say(now, WorkerEvent::Plan(plan));
    }

    /// Lines that have not left in this session.
    pub(super) fn leaves(&mut self, attempt: AttemptId, now: u64) -> Option<EventLines> {
        let from = self.sent.max(self.acknowledged) as usize;
        let lines = self.lines.get(from..).filter(|lines| !lines.is_empty())?;
        let text = |line: &EventLine| serde_json::to_string(line).expect("a line is plain data");
        let lines = EventLines { attempt, first: from as u64 + 1, lines: lines.iter().map(text).collect() };
        self.sent = self.lines.len() as u64;
        self.waiting.get_or_insert(now);
        Some(lines)
    }

    /// A new session: what it does not have is sent again.
    pub(super) fn resume(&mut self, through: u64) {
        (self.acknowledged, self.sent, self.waiting) = (through, through, None);
    }

    /// Lines up to this one are with the coordinator.
    pub(super) fn acknowledge(&mut self, through: u64, now: u64) {
        if through > self.acknowledged {
            self.acknowledged = through;
            self.waiting = (through < self.sent).then_some(now);
        }
    }

    /// As the agent's spool: what was not acknowledged for so long is sent again.
    pub(super) fn sends_again(&mut self, now: u64) -> bool {
        let again = self.waiting.is_some_and(|since| now - since >= SEND_AGAIN);
        if again {
            (self.sent, self.waiting) = (self.acknowledged, None);
        }
        again
    }

    /// What it is asked; the process looks at it before its next step.
    pub(super) fn ask(&mut self, ask: Ask, now: UnixMillis) {
        match ask {
            Ask::SaveNow => self.save(CheckpointKind::Emergency, now),
            Ask::Stop(how, cause) => self.asked = Some((how, cause)),
        }
    }

    /// One step, or the way out; false: the process has ended.
    pub(super) fn work(&mut self, now: UnixMillis) -> bool {
        if let Some((how, cause)) = self.asked {
            if how == StopHow::Save {
                self.save(CheckpointKind::Emergency, now);
            }
            let checkpoint = (how == StopHow::Save).then(|| folder(self.step));
            self.say(now, WorkerEvent::Stopped { step: self.step, checkpoint, cause });
            return false;
        }
        if let Some(class) = self.fails.or_else(|| self.wrong().filter(|_| self.step >= WRONG)) {
            let message = format!("it failed: {class:?}");
            self.say(now, WorkerEvent::Failed { class, message, hint: None });
            return false;
        }
        if self.nature == Nature::Endless && self.step >= WRONG {
            return true;
        }
        if self.step < STEPS {
            self.step += 1;
            let step = Step {
                step: self.step,
                epoch: 0.1,
                loss: 1.0,
                lr: 1e-4,
                grad_norm: 1.0,
                tokens: 10,
                supervised_tokens: 5,
                seconds: 0.1,
            };
            self.say(now, WorkerEvent::Step(step));
            if self.step.is_multiple_of(3) {
                let message = format!("{} steps are done", self.step);
                self.say(now, WorkerEvent::Log { level: Level::Info, message });
            }
            if self.step.is_multiple_of(EVERY) {
                // As good as chance has it, and the same wherever it is computed.
                let loss = f64::from((self.seed ^ self.step as u8).reverse_bits());
                let (perplexity, tokens, seconds) = (loss.exp(), 5, 0.1);
                self.say(
                    now,
                    WorkerEvent::Eval { step: self.step, loss, perplexity, base_loss: None, tokens, seconds },
                );
                let kind = if self.step == STEPS { CheckpointKind::Final } else { CheckpointKind::Periodic };
                self.save(kind, now);
            }
            return true;
        }
        self.say(now, WorkerEvent::Finished { step: self.step, files: vec![] });
        false
    }

    /// What a job of its nature says that it fails of.
    fn wrong(&self) -> Option<FailureClass> {
        match self.nature {
            Nature::BadData => Some(FailureClass::Dataset),
            Nature::Hungry => Some(FailureClass::OutOfMemory),
            Nature::Fickle if self.number == 1 => Some(FailureClass::Internal),
            _ => None,
        }
    }

    fn save(&mut self, kind: CheckpointKind, now: UnixMillis) {
        let (step, path) = (self.step, folder(self.step));
        self.say(now, WorkerEvent::Checkpoint { step, loss: 1.0, kind, path });
    }

    fn say(&mut self, time: UnixMillis, event: WorkerEvent) {
        let is_synced = event.is_outcome() || matches!(event, WorkerEvent::Checkpoint { .. });
        self.lines.push(EventLine { seq: self.lines.len() as u64 + 1, time, event });
        if is_synced {
            self.synced = self.lines.len();
        }
    }
}

fn folder(step: u64) -> String {
    format!("checkpoints/step-{step:08}")
}
