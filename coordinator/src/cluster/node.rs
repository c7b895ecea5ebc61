//! A node and its sessions: who is connected, what is alive there, and what to do about it.
//!
//! ```text
//! joined ─► connected ⇄ silent (unreachable is a condition of its attempts, never of the node's right to come back)
//!               └► quarantined (two machines under one identity, or nonsense again and again) ─ a person ─► joined
//! ```
//! Every hello is reconciled with desired state: per attempt adopt, stop, report or forget; offers and stops that may have been lost are said again.

use super::{
    Action, Cause, Cluster, Now, ReplyKey, Shown, attempt::over, command::NodeStatus, ledger::Ledger, put,
    share::Sharing,
};
use crate::record::{Closed, Node, Record};
use lorikeet_protocol::{
    agent::{Farewell, Hello, KnownAttempt, ToAgent, Verdict, Welcome},
    id::{AttemptId, BootId, Hash, NodeId, UnixMillis},
    job::{AttemptPhase, Device, Intent, Outcome},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

/// A node in memory: its row, and what only a session knows.
#[derive(Debug)]
pub struct LiveNode {
    /// The row.
    pub record: Node,
    /// Its live session.
    pub session: Option<Session>,
    /// When it was last heard.
    pub(super) heard: Duration,
    /// How long since then this process stood still, and could hear nobody.
    pub(super) unheard: Duration,
    /// When its drain ends, if it is drained: the wall clock says so only over a start.
    pub(super) drained_at: Duration,
    /// The same for people; `None`: not since this process started.
    pub(super) seen: Option<UnixMillis>,
    /// Since when its lease is over.
    pub(super) unreachable_since: Option<UnixMillis>,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) devices: Vec<Device>,
    /// When it said so.
    pub(super) told: Duration,
    pub(super) cached: BTreeSet<Hash>,
    /// What it said of its cache in this session.
    pub(super) sharing: Option<Sharing>,
    /// What attempts hold of its devices.
    pub(super) ledger: Ledger,
    /// Starts of the agent seen lately, newest last: two that alternate are two machines.
    instances: Vec<BootId>,
    /// When sessions ended by what no agent says, as far as it is still held against the node.
    nonsense: Vec<Duration>,
}

const TWO_MACHINES: &str =
    "two machines use this node's key; stop one of them, then `lorikeet node open` lets the other in";

/// A node with this many sessions that ended by what no agent says, within this time, is kept out: it would go on like that, and each of
/// its hellos is a sign of life by which what it holds is never lost.
const NONSENSE_SESSIONS: usize = 5;
const NONSENSE_WITHIN: Duration = Duration::from_secs(600);

/// One connection of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    /// Counts the node's sessions.
    pub number: u64,
    /// The agent's version.
    pub version: String,
}

impl LiveNode {
    pub(super) fn new(record: Node, now: Now) -> Self {
        let left = match record.closed {
            Some(Closed::Draining { until }) => until.0.saturating_sub(now.wall.0),
            Some(Closed::Cordoned | Closed::Retired) | None => 0,
        };
        Self {
            record,
            session: None,
            heard: now.mono,
            unheard: Duration::ZERO,
            drained_at: now.mono.saturating_add(Duration::from_millis(left)),
            seen: None,
            unreachable_since: None,
            labels: BTreeMap::new(),
            devices: vec![],
            told: now.mono,
            cached: BTreeSet::new(),
            sharing: None,
            ledger: Ledger::default(),
            instances: vec![],
            nonsense: vec![],
        }
    }

    pub(super) fn status(&self) -> NodeStatus {
        NodeStatus {
            record: self.record.clone(),
            connected: self.session.is_some(),
            version: self.session.as_ref().map(|session| session.version.clone()),
            labels: self.labels.clone(),
            devices: self.devices.clone(),
            seen: self.seen,
            unreachable_since: self.unreachable_since,
            attempts: self.ledger.attempts().into_iter().collect(),
            sharing: self.sharing,
        }
    }

    pub(super) fn spoke(&mut self, now: Now) {
        (self.heard, self.unheard, self.seen) = (now.mono, Duration::ZERO, Some(now.wall));
    }

    /// It says what devices it has, and how much of them is free; what it said before.
    pub(super) fn looked(&mut self, devices: Vec<Device>, now: Now) -> Vec<Device> {
        self.told = now.mono;
        self.ledger.looked();
        std::mem::replace(&mut self.devices, devices)
    }

    /// How long it has said nothing.
    pub(super) fn silence(&self, now: Now) -> Duration {
        now.mono.saturating_sub(self.heard)
    }

    /// When what it holds is lost, if it says nothing for so long while this process could hear it.
    pub(super) fn lost_at(&self, patience: Duration) -> Duration {
        (self.heard + self.unheard).saturating_add(patience)
    }

    /// When it spoke last, for people; of one that has not since this process started, when that was.
    pub(super) fn last_word(&self, now: Now) -> UnixMillis {
        let silence = u64::try_from(self.silence(now).as_millis()).unwrap_or(u64::MAX);
        UnixMillis(now.wall.0.saturating_sub(silence))
    }

    /// Whoever speaks next is the one machine, and makes sense.
    pub(super) fn trust_again(&mut self) {
        self.instances.clear();
        self.nonsense.clear();
    }

    /// An instance that comes back after another one spoke: the key is on two machines.
    fn alternates(&mut self, instance: BootId) -> bool {
        if self.instances.last() == Some(&instance) {
            return false;
        }
        let came_back = self.instances.contains(&instance);
        self.instances.push(instance);
        if self.instances.len() > 8 {
            self.instances.remove(0);
        }
        came_back
    }
}

impl Cluster {
    /// All but the retired.
    pub(super) fn present_nodes(&self) -> impl Iterator<Item = &LiveNode> {
        self.nodes.values().filter(|node| node.record.closed != Some(Closed::Retired))
    }

    pub(super) fn open_session(
        &mut self,
        reply: ReplyKey,
        id: NodeId,
        shown: &Shown,
        hello: Hello,
        now: Now,
        out: &mut Vec<Action>,
    ) {
        self.know_again(id, shown, &hello.name, now, out);
        let known = self.nodes.get_mut(&id).filter(|node| node.record.knows(shown));
        let Some(node) = known else { return out.push(Action::TurnAway { reply, farewell: Farewell::Revoked }) };
        if let Some(why) = &node.record.quarantine {
            let farewell = if why == TWO_MACHINES { Farewell::TwoMachines } else { Farewell::Misbehaved };
            return out.push(Action::TurnAway { reply, farewell });
        }
        if node.alternates(hello.instance) {
            if let Some(session) = node.session.take() {
                out.push(Action::Close { node: id, session: session.number, farewell: Farewell::TwoMachines });
            }
            self.keep_out(id, TWO_MACHINES.into(), now, out);
            return out.push(Action::TurnAway { reply, farewell: Farewell::TwoMachines });
        }
        let number = node.record.sessions + 1;
        if let Some(old) = node.session.replace(Session { number, version: hello.version.clone() }) {
            out.push(Action::Close { node: id, session: old.number, farewell: Farewell::Superseded });
        }
        node.record.sessions = number;
        node.record.retire_serials_before(&shown.serial);
        node.record.key = Some(shown.key);
        node.record.boot = Some(hello.boot);
        node.record.last_report = node.record.last_report.max(hello.acknowledged);
        node.record.name = hello.name.clone();
        node.spoke(now);
        node.labels = hello.labels;
        node.cached = hello.cached.into_iter().collect();
        node.sharing = None;
        let last_report = node.record.last_report;
        out.push(put(Record::Node(node.record.clone())));
        out.push(Action::Admit { reply, node: id, session: number });
        self.devices_changed(id, hello.devices, now, out);
        let verdicts = self.verdicts(id, &hello.attempts, now);
        let welcome = Welcome {
            node: id,
            session: number,
            heartbeat: self.timers.heartbeat,
            last_report,
            verdicts,
            events: vec![],
        };
        out.push(Action::Send { node: id, message: ToAgent::Welcome(Box::new(welcome)) });
        self.tell_who_is_gone(id, now, out);
        self.reconcile(id, &hello.attempts, now, out);
        self.stop_strangers(id, &hello.attempts, now, out);
        self.wake_node(id, now);
        self.unsettled = true;
    }

    /// Whether this is a certificate of the node's.
    pub(super) fn knows_certificate(&self, id: NodeId, shown: &Shown) -> bool {
        self.nodes.get(&id).is_some_and(|node| node.record.knows(shown))
    }

    fn verdicts(&self, node: NodeId, known: &[KnownAttempt], now: Now) -> Vec<(AttemptId, Verdict)> {
        let verdict = |known: &KnownAttempt| match (self.current(node, known.id), known.phase) {
            (Some(_), AttemptPhase::Done) => Verdict::Report,
            (Some(job), _) if job.record.intent == Intent::Cancel => Verdict::Stop,
            (Some(_), _) => Verdict::Adopt,
            // Left alone, and stopped by a message of its own: its files stay.
            (None, _) if self.is_kept_stranger(node, known.id, now) => Verdict::Adopt,
            (None, AttemptPhase::Done) => Verdict::Forget,
            (None, _) => Verdict::Stop,
        };
        known.iter().map(|known| (known.id, verdict(known))).collect()
    }

    /// What we believe placed there against what is there.
    fn reconcile(&mut self, node: NodeId, known: &[KnownAttempt], now: Now, out: &mut Vec<Action>) {
        let there: BTreeMap<_, _> = known.iter().map(|known| (known.id, known.phase)).collect();
        for attempt in self.placed_on(node) {
            let offered =
                self.jobs[&attempt.job].attempt.as_ref().is_some_and(|row| row.phase == AttemptPhase::Offered);
            match there.get(&attempt) {
                Some(phase) => {
                    if *phase != AttemptPhase::Done {
                        self.advance(attempt, *phase, now, out);
                    }
                    self.tell_intent(attempt.job, attempt, out);
                }
                None if offered => self.offer(attempt.job, out),
                None => self.end(
                    attempt,
                    over(Outcome::Lost, "its node came back without it"),
                    &Cause::node(node),
                    now,
                    out,
                ),
            }
        }
        self.clear_unreachable(node, now, out);
    }

    pub(super) fn close_session(
        &mut self,
        id: NodeId,
        session: u64,
        nonsense: Option<&'static str>,
        now: Now,
        out: &mut Vec<Action>,
    ) {
        let live =
            self.nodes.get_mut(&id).filter(|node| node.session.as_ref().is_some_and(|live| live.number == session));
        let Some(node) = live else { return };
        node.session = None;
        node.sharing = None;
        let Some(nonsense) = nonsense else { return };
        node.nonsense.retain(|then| now.mono.saturating_sub(*then) < NONSENSE_WITHIN);
        node.nonsense.push(now.mono);
        if node.nonsense.len() >= NONSENSE_SESSIONS {
            let why = format!(
                "{NONSENSE_SESSIONS} of its sessions within {} ended by what no agent says, the last one: {nonsense}; see to it, then `lorikeet \
                 node open` lets it in again",
                humantime::format_duration(NONSENSE_WITHIN)
            );
            self.keep_out(id, why, now, out);
        }
    }

    /// Nobody is let in under this identity until a person has seen to it.
    fn keep_out(&mut self, id: NodeId, why: String, now: Now, out: &mut Vec<Action>) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        node.record.quarantine = Some(why.clone());
        out.push(put(Record::Node(node.record.clone())));
        self.wake_node(id, now);
        self.unsettled = true;
        self.audit(&Cause::node(id), "node.quarantine", id.to_string(), (None, Some(why)), now, out);
    }
}
