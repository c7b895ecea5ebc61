//! The decision core: `handle(event, now)` changes memory and says what follows. No clock, socket, disk, randomness or async.
//!
//! Ids, secret hashes and both times come in with the event. What follows is a list of [`Action`]s: rows to write, and effects that the
//! driver releases once those rows are durable. `Cluster` holds what decisions need: users, tokens, nodes, heads of live datasets and
//! bases, and live jobs. A job that ends leaves memory in the event that ends it.

mod alarm;
mod asha;
mod attempt;
mod blame;
mod checkpoint;
pub mod command;
mod depend;
mod drain;
mod event;
mod fair;
mod file;
mod inspection;
mod intent;
pub mod job;
mod join;
mod ledger;
mod life;
pub mod node;
mod person;
mod place;
mod replay;
mod report;
pub mod restored;
mod retention;
mod rotation;
pub mod schedule;
mod share;
mod silence;
mod submit;
pub mod sweep;
#[cfg(test)]
#[expect(clippy::wildcard_enum_match_arm, reason = "tests look for what they name")]
mod tests;
mod throttle;

use crate::{
    access::{Context, Refusal},
    guard::Guards,
    record::{
        Attempt, Audit, Base, Dataset, Job, JoinSecret, Receipt, Record, Replay, StoredCheckpoint, Sweep, Token, Usage,
        User,
    },
};
use alarm::Alarms;
use command::{Answer, Command};
use depend::Dependents;
pub use event::{Action, Event, Inspect, Rows, Subject, Trouble};
use fair::FairShare;
use inspection::Unanswered;
use job::LiveJob;
pub use join::Shown;
use lorikeet_protocol::id::{BaseId, DatasetId, Hash, JobId, ModelId, NodeId, RequestId, SweepId, UnixMillis, UserId};
use node::LiveNode;
use replay::Replays;
pub use restored::Restored;
use schedule::{Queue, Rules};
pub(crate) use share::GRANTED;
pub use share::{Announced, Sharing};
use std::{collections::BTreeMap, time::Duration};
use throttle::Throttle;

/// Both clocks, read once per batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Since the process started; leases and time-outs use it.
    pub mono: Duration,
    /// For records and people.
    pub wall: UnixMillis,
}

/// How long things take; all of it config, so that stories run in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timers {
    /// How often an agent says something.
    pub heartbeat: Duration,
    /// How long an attempt is believed alive without news.
    pub lease: Duration,
    /// How long an offer waits for an answer.
    pub offer: Duration,
    /// The first wait after an infrastructure failure; doubles each time.
    pub back_off: Duration,
    /// And the longest.
    pub back_off_most: Duration,
}

impl Default for Timers {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self {
            heartbeat: seconds(5),
            lease: seconds(30),
            offer: seconds(10),
            back_off: seconds(1),
            back_off_most: seconds(60),
        }
    }
}

impl Timers {
    /// How long to wait after so many failures in a row.
    fn wait(&self, failures: u32) -> Duration {
        let doubled = self.back_off * 2u32.saturating_pow(failures.clamp(1, 16) - 1);
        doubled.min(self.back_off_most)
    }
}

/// Names the asker of an answer; the driver keeps what stands behind it.
pub type ReplyKey = u64;

/// Who caused a change, for the audit record.
#[derive(Debug, Clone, Default)]
pub(crate) struct Cause {
    actor: Option<UserId>,
    request: Option<RequestId>,
    from: String,
}

impl Cause {
    fn of(context: &Context) -> Self {
        Self { actor: context.actor.user(), request: Some(context.request), from: context.from.clone() }
    }

    pub(crate) fn node(node: NodeId) -> Self {
        Self { from: node.to_string(), ..Self::default() }
    }
}

/// The heads that a store brings back at a start.
#[derive(Debug, Default)]
#[expect(missing_docs, reason = "one list per table")]
pub struct Loaded {
    pub generation: u32,
    pub users: Vec<User>,
    pub tokens: Vec<Token>,
    pub secrets: Vec<JoinSecret>,
    pub nodes: Vec<crate::record::Node>,
    pub datasets: Vec<Dataset>,
    pub bases: Vec<Base>,
    pub jobs: Vec<Job>,
    pub attempts: Vec<Attempt>,
    pub checkpoints: Vec<StoredCheckpoint>,
    pub replays: Vec<Replay>,
    pub usages: Vec<Usage>,
    pub sweeps: Vec<Sweep>,
    pub audits: u64,
    pub restored: Option<Restored>,
}

/// What the config decides.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// How long things take.
    pub timers: Timers,
    /// What holds for everybody's jobs.
    pub rules: Rules,
    /// All on.
    pub guards: Guards,
    /// How long audit records are kept; `None`: for ever.
    pub keep_audit: Option<Duration>,
}

impl Settings {
    /// Audit records of before this moment are not kept.
    pub(crate) fn old_audit(&self, now: UnixMillis) -> UnixMillis {
        let kept = self.keep_audit.map_or(u64::MAX, |kept| u64::try_from(kept.as_millis()).unwrap_or(u64::MAX));
        UnixMillis(now.0.saturating_sub(kept))
    }
}

impl From<Timers> for Settings {
    fn from(timers: Timers) -> Self {
        Self { timers, ..Self::default() }
    }
}

/// The state of the whole cluster.
#[derive(Debug)]
pub struct Cluster {
    pub(crate) timers: Timers,
    rules: Rules,
    pub(crate) guards: Guards,
    pub(crate) generation: u32,
    pub(crate) users: BTreeMap<UserId, User>,
    pub(crate) tokens: BTreeMap<Hash, Token>,
    pub(crate) secrets: BTreeMap<Hash, JoinSecret>,
    pub(crate) nodes: BTreeMap<NodeId, LiveNode>,
    pub(crate) datasets: BTreeMap<DatasetId, Dataset>,
    pub(crate) bases: BTreeMap<BaseId, Base>,
    pub(crate) jobs: BTreeMap<JobId, LiveJob>,
    /// Those with children that are not over.
    sweeps: BTreeMap<SweepId, Sweep>,
    replays: Replays,
    throttle: Throttle,
    audits: u64,
    restored: Option<Restored>,
    /// Nothing expires before this moment: a coordinator that was away listens first.
    listen_until: Duration,
    last_event: Duration,
    unanswered: Unanswered,
    queue: Queue,
    dependents: Dependents,
    alarms: Alarms,
    fair: FairShare,
    /// Something changed that a waiting job may have waited for.
    pub(crate) unsettled: bool,
}

/// Jobs that one batch places, and alarms that it answers: all of that is written in one transaction, for which everybody else waits.
/// What is left is the next batch's, at once.
const AT_ONCE: usize = 512;

/// How long the answer to a repeated request is kept.
const REPLAY_KEPT: Duration = Duration::from_secs(24 * 3_600);

impl Cluster {
    /// The cluster as the store remembers it. Leases start anew.
    pub fn new(loaded: Loaded, settings: impl Into<Settings>, now: Now) -> Self {
        let Settings { timers, rules, guards, keep_audit: _ } = settings.into();
        let mut cluster = Self {
            timers,
            rules,
            guards,
            generation: loaded.generation,
            users: by(loaded.users, |user| user.id),
            tokens: by(loaded.tokens, |token| token.hash),
            secrets: by(loaded.secrets, |secret| secret.hash),
            nodes: loaded.nodes.into_iter().map(|node| (node.id, LiveNode::new(node, now))).collect(),
            datasets: by(loaded.datasets.into_iter().filter(|row| row.deleted_at.is_none()), |row| row.id),
            bases: by(loaded.bases.into_iter().filter(|row| row.deleted_at.is_none()), |row| row.id),
            jobs: live_jobs(loaded.jobs, loaded.attempts, loaded.checkpoints, now),
            sweeps: by(loaded.sweeps.into_iter().filter(|row| row.completed_at.is_none()), |row| row.id),
            replays: loaded.replays.into_iter().collect(),
            throttle: Throttle::default(),
            audits: loaded.audits,
            restored: loaded.restored,
            listen_until: now.mono + timers.heartbeat,
            last_event: now.mono,
            unanswered: Unanswered::default(),
            queue: Queue::default(),
            dependents: Dependents::default(),
            alarms: Alarms::default(),
            fair: FairShare::new(loaded.usages),
            unsettled: true,
        };
        cluster.file_all(now);
        cluster
    }

    /// What follows from an event.
    pub fn handle(&mut self, event: Event, now: Now) -> Vec<Action> {
        let mut out = Vec::new();
        self.notice_absence(now);
        match event {
            Event::Booted => self.begin_again(&mut out),
            Event::Requested { reply, context, command, rows } => {
                self.request(reply, &context, command, rows, now, &mut out)
            }
            Event::Asked { reply, actor, query } => {
                out.push(Action::Reply { reply, result: self.answer(actor, query, now) })
            }
            Event::SessionOpened { reply, node, shown, hello } => {
                self.open_session(reply, node, &shown, *hello, now, &mut out)
            }
            Event::SessionClosed { node, session, nonsense } => {
                self.close_session(node, session, nonsense, now, &mut out)
            }
            Event::Heard { node, session, message } => self.hear(node, session, message, now, &mut out),
            Event::Stray { node, session, report } => self.hear_stray(node, session, report, now, &mut out),
            Event::Announced { node, session, said } => self.announced(node, session, said),
            Event::Inspected { subject, result, files } => self.inspected(subject, result, files, now, &mut out),
            Event::Ticked => self.tick(now, &mut out),
        }
        out
    }

    /// When something happens by itself, if nothing happens before.
    pub fn next_deadline(&self) -> Option<Duration> {
        // A pass that was cut goes on in the next batch.
        if self.unsettled {
            return Some(self.last_event);
        }
        let first =
            self.alarms.next().into_iter().chain(self.unanswered.deadline()).chain(self.throttle.deadline()).min();
        first.map(|deadline| deadline.max(self.listen_until.min(deadline + self.timers.heartbeat)))
    }

    /// A gap between two events longer than two heartbeats means that this process was paused: others may have spoken meanwhile, and an
    /// agent whose connection broke over it takes a while to come back. What was slept through is held against nobody.
    fn notice_absence(&mut self, now: Now) {
        let gap = now.mono.saturating_sub(self.last_event);
        if gap > self.timers.heartbeat * 2 && self.guards.listen_first() {
            self.listen_until = now.mono + self.timers.heartbeat;
            self.nodes.values_mut().for_each(|node| node.unheard += gap);
        }
        self.last_event = now.mono;
    }

    pub(crate) fn is_listening(&self, now: Now) -> bool {
        now.mono < self.listen_until && self.guards.listen_first()
    }

    fn tick(&mut self, now: Now, out: &mut Vec<Action>) {
        self.expire(now, out);
        self.ask_unanswered(now, out);
        self.replays.expire(now.wall);
        self.tell_throttled(now, out);
        if self.unsettled {
            self.unsettled = false;
            self.place(now, out);
        }
    }

    fn request(
        &mut self,
        reply: ReplyKey,
        context: &Context,
        command: Command,
        rows: Rows,
        now: Now,
        out: &mut Vec<Action>,
    ) {
        let replayed = context.idempotency.as_ref().and_then(|wanted| {
            let replay = self.replays.get(context.actor.user(), &wanted.key)?;
            Some(if replay.body == wanted.body { replay.answer.clone() } else { Err(Refusal::IdempotencyMismatch) })
        });
        let result = replayed.unwrap_or_else(|| {
            let result = self.command(context, command, rows, now, out);
            if let (Some(wanted), Ok(_)) = (&context.idempotency, &result) {
                let owner = context.actor.user();
                let expires = UnixMillis(now.wall.0 + REPLAY_KEPT.as_millis() as u64);
                let replay =
                    Replay { owner, key: wanted.key.clone(), body: wanted.body, answer: result.clone(), expires };
                self.replays.keep(replay.clone());
                out.push(put(Record::Replay(replay)));
            }
            result
        });
        out.push(Action::Reply { reply, result: result.map(Answer::Receipt) });
    }

    /// Records one change.
    pub(crate) fn audit(
        &mut self,
        cause: &Cause,
        action: &str,
        subject: String,
        change: (Option<String>, Option<String>),
        now: Now,
        out: &mut Vec<Action>,
    ) {
        self.audits += 1;
        out.push(put(Record::Audit(Audit {
            number: self.audits,
            time: now.wall,
            actor: cause.actor,
            request: cause.request,
            from: cause.from.clone(),
            action: action.into(),
            subject,
            before: change.0,
            after: change.1,
        })));
    }

    /// What must hold after every event: a live job has at most one attempt, the last one; what is indexed is what is recorded.
    #[doc(hidden)]
    pub fn check_invariants(&self) {
        for (id, job) in &self.jobs {
            assert_eq!(*id, job.record.id);
            assert!(!job.record.phase().is_terminal(), "{id} is over and still in memory");
            let token = job.record.current_attempt();
            assert_eq!(token, job.attempt.as_ref().map(|attempt| attempt.id), "{id}: state and attempt disagree");
            if let Some(attempt) = &job.attempt {
                assert_eq!(attempt.id.token.number, job.record.attempts, "{id}: the current attempt is not the last");
                assert!(attempt.end.is_none(), "{id}: its attempt is over");
            }
        }
        for sweep in self.sweeps.values() {
            for child in &sweep.children {
                assert_eq!(
                    child.end.is_none(),
                    self.jobs.contains_key(&child.job),
                    "{} has lost {}",
                    sweep.id,
                    child.job
                );
            }
            assert!(
                sweep.max_parallel.is_none_or(|most| self.placed_of(sweep.id) <= most),
                "{} has too many",
                sweep.id
            );
        }
        self.nodes.values().for_each(|node| node.ledger.check_invariants());
        self.check_filed(self.last_event);
    }
}

fn by<K: Ord, T>(rows: impl IntoIterator<Item = T>, key: impl Fn(&T) -> K) -> BTreeMap<K, T> {
    rows.into_iter().map(|row| (key(&row), row)).collect()
}

/// Jobs that are not over, with what belongs to them.
fn live_jobs(
    jobs: Vec<Job>,
    attempts: Vec<Attempt>,
    checkpoints: Vec<StoredCheckpoint>,
    now: Now,
) -> BTreeMap<JobId, LiveJob> {
    let mut attempts = by(attempts, |attempt| attempt.id);
    let mut kept: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for row in checkpoints.into_iter().filter(|row| !row.orphan && row.removed_at.is_none()) {
        kept.entry(row.attempt.job).or_default().push(row);
    }
    let live = jobs.into_iter().filter(|job| !job.phase().is_terminal());
    live.map(|job| {
        let attempt = job.current_attempt().and_then(|id| attempts.remove(&id));
        let checkpoints = kept.remove(&job.id).unwrap_or_default();
        (job.id, LiveJob::new(job, attempt, checkpoints, now))
    })
    .collect()
}

/// Write this row.
pub(crate) fn put(record: Record) -> Action {
    Action::Put(Box::new(record))
}

/// One model per job, by construction.
pub(crate) fn model_of(job: JobId) -> ModelId {
    ModelId(job.0)
}

/// A receipt's subject in audit records.
pub(crate) fn subject_of(receipt: Receipt) -> String {
    match receipt {
        Receipt::Done => String::new(),
        Receipt::User(id) => id.to_string(),
        Receipt::Token(id) => id.to_string(),
        Receipt::Node(id) => id.to_string(),
        Receipt::Dataset(id) => id.to_string(),
        Receipt::Base(id) => id.to_string(),
        Receipt::Job(id) => id.to_string(),
        Receipt::Sweep(id) => id.to_string(),
        Receipt::Model(id) => id.to_string(),
        Receipt::Authority(hash) => hash.to_string(),
    }
}
