//! The world: an agenda of what happens when, a client, and the hands that carry actions from one part to the other.

mod client;
mod setup;
mod strike;

use super::{
    Chance, Tally,
    brain::{Brain, Commit, Death, Waiting},
    node::Node,
    promise::{Broken, Promises, state_word},
    wire::{IDLE, Way, Wire},
    worker::Worker,
};
use lorikeet_agent::host::{Action as HostAction, CheckpointMade, Event as HostEvent, News};
use lorikeet_coordinator::{
    cluster::{Action, Event, Inspect, Subject},
    guard::Guards,
    record::Record,
};
use lorikeet_protocol::{
    agent::{Checkpoint, EventLines, FromAgent, Hello, ToAgent, Welcome},
    file::{FileManifest, NamedFile},
    id::{AttemptId, Hash, NodeId},
    inspect::Inspection,
};
use std::collections::BTreeMap;

/// Faults stop at this time; after it everything has to end.
const STORM: u64 = 240_000;
/// By this time everything has ended.
const DOOMSDAY: u64 = 4 * 3_600_000;

/// A world that does so much turns in circles.
const TOO_MUCH: u64 = 2_000_000;

type Kept = Result<(), String>;

/// Something on the agenda.
#[derive(Debug)]
enum Happening {
    ToBrain {
        connection: u64,
        message: Said,
    },
    ToNode {
        connection: u64,
        message: Box<ToAgent>,
    },
    /// Both ends hear that it is over.
    Broken {
        connection: u64,
    },
    Dial {
        node: usize,
        life: u64,
    },
    Heartbeat {
        node: usize,
        life: u64,
    },
    NodeWakes {
        node: usize,
        life: u64,
    },
    NodeStarts {
        node: usize,
    },
    /// What could not be written is tried again.
    DiskAgain {
        node: usize,
        life: u64,
    },
    BrainWakes {
        life: u64,
    },
    BrainStarts,
    Committed {
        life: u64,
    },
    Inspected {
        life: u64,
        subject: Subject,
    },
    Prepared {
        node: usize,
        life: u64,
        attempt: AttemptId,
    },
    Uploaded {
        node: usize,
        life: u64,
        attempt: AttemptId,
        what: Upload,
    },
    WorkerHolds {
        node: usize,
        attempt: AttemptId,
        process: u64,
    },
    WorkerWorks {
        node: usize,
        attempt: AttemptId,
        process: u64,
    },
    Client(client::Order),
    Strike(super::Fault),
}

/// What an agent says on the wire.
#[derive(Debug)]
enum Said {
    Hello(Box<Hello>),
    Message(Box<FromAgent>),
}

#[derive(Debug, Clone)]
enum Upload {
    Checkpoint(CheckpointMade),
    Adapter,
}

pub(super) struct World {
    seed: u64,
    chance: Chance,
    now: u64,
    next: u64,
    agenda: BTreeMap<(u64, u64), Happening>,
    wire: Wire,
    brain: Brain,
    nodes: Vec<Node>,
    jobs: Vec<client::Wish>,
    promises: Promises,
    tally: Tally,
}

impl World {
    pub(super) fn new(seed: u64, guards: Guards) -> Self {
        let mut chance = Chance(seed);
        let nodes = chance.between(3, 9) as usize;
        Self {
            seed,
            chance,
            now: 0,
            next: 0,
            agenda: BTreeMap::new(),
            wire: Wire::default(),
            brain: Brain::new(guards),
            nodes: (0..nodes).map(|n| Node::new(NodeId(uuid::Uuid::from_u128(1_000 + n as u128)), 1 + n % 2)).collect(),
            jobs: vec![],
            promises: Promises::default(),
            tally: Tally::default(),
        }
    }

    pub(super) fn run(mut self) -> Result<Tally, Broken> {
        let lived = self.live();
        let (seed, at) = (self.seed, self.now);
        lived.map_err(|what| Broken { seed, at, what })?;
        Ok(self.tally)
    }

    fn live(&mut self) -> Kept {
        self.set_up()?;
        self.plan_faults();
        let mut calm = false;
        while let Some(((at, _), happening)) = self.agenda.pop_first() {
            self.now = at;
            if at > STORM && !calm {
                calm = true;
                self.calm();
            }
            if at > DOOMSDAY || self.next > TOO_MUCH || (calm && self.is_over()) {
                break;
            }
            self.tally.count("events");
            self.happen(happening)?;
        }
        self.promises.at_the_end(&self.brain.store)
    }

    fn is_over(&self) -> bool {
        let over = self.brain.store.jobs.values().all(|job| job.phase().is_terminal());
        let told = self.nodes.iter().all(|node| node.workers.is_empty());
        over && told && self.jobs.iter().all(client::Wish::is_settled)
    }

    fn at(&mut self, delay: u64, happening: Happening) {
        self.next += 1;
        self.agenda.insert((self.now + delay, self.next), happening);
    }

    fn happen(&mut self, happening: Happening) -> Kept {
        match happening {
            Happening::ToBrain { connection, message } => self.brain_hears(connection, message),
            Happening::ToNode { connection, message } => self.node_hears(connection, *message),
            Happening::Broken { connection } => self.broken(connection),
            Happening::Dial { node, life } => self.dial(node, life),
            Happening::Heartbeat { node, life } => self.heartbeat(node, life),
            Happening::NodeWakes { node, life } => {
                if self.nodes[node].life == life && self.nodes[node].wakes == Some(self.now) {
                    self.nodes[node].wakes = None;
                    return self.node_event(node, life, HostEvent::Tick);
                }
            }
            Happening::NodeStarts { node } => return self.node_starts(node),
            Happening::DiskAgain { node, life } => return self.disk_again(node, life),
            Happening::BrainWakes { life } if life == self.brain.life && self.brain.wakes == Some(self.now) => {
                self.brain.wakes = None;
                return self.turn();
            }
            Happening::Committed { life } if life == self.brain.life => return self.committed(),
            Happening::BrainWakes { .. } | Happening::Committed { .. } => {}
            Happening::BrainStarts => return self.brain_starts(),
            Happening::Inspected { life, subject } => self.inspected(life, subject),
            Happening::Prepared { node, life, attempt } => return self.prepared(node, life, attempt),
            Happening::Uploaded { node, life, attempt, what } => return self.uploaded(node, life, attempt, what),
            Happening::WorkerHolds { node, attempt, process } => return self.worker_holds(node, attempt, process),
            Happening::WorkerWorks { node, attempt, process } => return self.worker_works(node, attempt, process),
            Happening::Client(order) => self.client(order),
            Happening::Strike(fault) => self.strike(fault),
        }
        Ok(())
    }

    // The coordinator's side.

    /// Something came: it is looked at as soon as the last batch is durable.
    fn post(&mut self, event: Event) {
        if self.brain.turn.is_some() {
            self.brain.inbox.push(event);
            self.wake_brain(1);
        }
    }

    /// One alarm, the earliest.
    fn wake_brain(&mut self, wait: u64) {
        let (life, at) = (self.brain.life, self.now + wait);
        if self.brain.wakes.is_none_or(|set| set > at) {
            self.brain.wakes = Some(at);
            self.at(wait, Happening::BrainWakes { life });
        }
    }

    fn turn(&mut self) -> Kept {
        if self.now < self.brain.paused_until {
            self.wake_brain(self.brain.paused_until - self.now);
            return Ok(());
        }
        if self.brain.commit.is_some() {
            return Ok(());
        }
        // A process that stood still looks at its clock before the sockets have brought it what came meanwhile.
        let awoken = std::mem::replace(&mut self.brain.stood_still, false);
        let batch = if awoken { vec![] } else { std::mem::take(&mut self.brain.inbox) };
        let now = self.brain.now(self.now);
        let Some(turn) = &mut self.brain.turn else { return Ok(()) };
        let outcome = turn.run(batch, now);
        turn.check_invariants();
        for effect in outcome.early {
            self.release(effect)?;
        }
        self.promises.written(&outcome.records, &self.brain.store, self.now)?;
        self.brain.commit = Some(Commit { records: outcome.records, effects: outcome.effects });
        let slow = self.now < self.brain.slow_until;
        let takes = if slow { self.chance.between(200, 3_000) } else { self.chance.between(0, 3) };
        let life = self.brain.life;
        self.at(takes, Happening::Committed { life });
        Ok(())
    }

    fn committed(&mut self) -> Kept {
        let Some(Commit { records, effects }) = self.brain.commit.take() else { return Ok(()) };
        if self.brain.death == Some(Death::BeforeCommit) {
            self.brain_dies();
            return Ok(());
        }
        if self.now < self.brain.full_until && !records.is_empty() {
            self.tally.count("commits refused");
            self.start_over();
            return Ok(());
        }
        self.note(&records);
        self.brain.store.commit(records);
        for (index, effect) in effects.into_iter().enumerate() {
            if self.brain.death == Some(Death::AfterCommit(index)) {
                self.brain_dies();
                return Ok(());
            }
            self.release(effect)?;
        }
        if matches!(self.brain.death, Some(Death::AfterCommit(_))) {
            self.brain_dies();
            return Ok(());
        }
        let wait = self.brain.deadline(self.now) - self.now;
        self.wake_brain(if self.brain.inbox.is_empty() { wait } else { 0 });
        Ok(())
    }

    fn note(&mut self, records: &[Record]) {
        for record in records {
            if let Record::Job(job) = record {
                let before = self.brain.store.jobs.get(&job.id).map_or("nothing", |job| state_word(&job.state));
                let after = state_word(&job.state);
                if before != after {
                    self.tally.count(format!("job {before} to {after}"));
                }
            }
            if let Record::Attempt(attempt) = record
                && let Some(end) = &attempt.end
            {
                self.tally.count(format!("attempt ended {:?}", end.outcome));
            }
            if matches!(record, Record::Orphan(_)) {
                self.tally.count("orphan kept");
            }
        }
    }

    fn release(&mut self, effect: Action) -> Kept {
        self.promises.effect(&effect)?;
        match effect {
            Action::Put(_) | Action::JobChanged(_) => {}
            Action::Reply { reply, result } => self.answered(reply, &result),
            Action::Admit { reply, node, session } => {
                if let Some(Waiting::Session { connection, since }) = self.brain.waiter(reply) {
                    // A hello is a word of the node only when it is let in.
                    self.promises.arrived(node, since);
                    self.brain.sessions.insert(node, (session, connection));
                }
            }
            Action::TurnAway { reply, .. } => {
                if let Some(Waiting::Session { connection, .. }) = self.brain.waiter(reply) {
                    self.tally.count("turned away");
                    self.at(1, Happening::Broken { connection });
                }
            }
            Action::Send { node, message } => self.say_to_node(node, message),
            Action::Close { node, session, .. } => {
                if let Some((_, connection)) =
                    self.brain.sessions.get(&node).copied().filter(|(live, _)| *live == session)
                {
                    self.brain.sessions.remove(&node);
                    self.at(1, Happening::Broken { connection });
                }
            }
            Action::Inspect(inspect) => {
                let subject = match inspect {
                    Inspect::Dataset { id, .. } => Subject::Dataset(id),
                    Inspect::Base { id, .. } => Subject::Base(id),
                    Inspect::Job { id, .. } => Subject::Job(id),
                };
                let (life, takes) = (self.brain.life, self.chance.between(20, 2_000));
                self.at(takes, Happening::Inspected { life, subject });
            }
        }
        Ok(())
    }

    fn say_to_node(&mut self, node: NodeId, message: ToAgent) {
        let Some((_, connection)) = self.brain.sessions.get(&node).copied() else { return };
        let message = match message {
            ToAgent::Welcome(welcome) => ToAgent::Welcome(Box::new(self.with_events(*welcome))),
            message => message,
        };
        match self.wire.arrival(connection, Way::ToNode, self.now, &mut self.chance) {
            Some(at) => self.at(at - self.now, Happening::ToNode { connection, message: Box::new(message) }),
            None => self.doom(connection),
        }
    }

    /// As the link does: only the series know up to where lines are here.
    fn with_events(&self, welcome: Welcome) -> Welcome {
        let through = |attempt: &AttemptId| self.promises.series.get(attempt).map_or(0, |lines| lines.len() as u64);
        let events = welcome.verdicts.iter().map(|(attempt, _)| (*attempt, through(attempt))).collect();
        Welcome { events, ..welcome }
    }

    fn brain_hears(&mut self, connection: u64, message: Said) {
        if !self.wire.is_open(connection) || self.brain.turn.is_none() {
            return;
        }
        let Some(node) = self.nodes.iter().position(|node| node.talk.is_some_and(|talk| talk.connection == connection))
        else {
            return;
        };
        let id = self.nodes[node].id;
        match message {
            Said::Hello(hello) => {
                let reply = self.brain.wait(Waiting::Session { connection, since: self.now });
                let serial = self.nodes[node].serial.clone();
                self.post(Event::SessionOpened { reply, node: id, serial, hello });
            }
            Said::Message(message) => {
                let session =
                    self.brain.sessions.get(&id).filter(|(_, live)| *live == connection).map(|(session, _)| *session);
                let Some(session) = session else { return };
                self.promises.arrived(id, self.now);
                match *message {
                    FromAgent::Events(lines) => {
                        // As the link does: lines are a sign of life.
                        self.post(Event::Heard { node: id, session, message: FromAgent::Heartbeat });
                        self.keep_lines(id, connection, lines);
                    }
                    message => self.post(Event::Heard { node: id, session, message }),
                }
            }
        }
    }

    /// As the link does: lines of an attempt that was placed there are kept, and acknowledged apart.
    fn keep_lines(&mut self, node: NodeId, connection: u64, lines: EventLines) {
        let attempt = lines.attempt;
        let placed = self.brain.store.attempts.get(&attempt);
        if !placed.is_some_and(|row| row.members.iter().any(|member| member.node == node)) {
            return;
        }
        let kept = self.promises.series.entry(attempt).or_default();
        for (index, line) in lines.lines.iter().enumerate() {
            if lines.first + index as u64 == kept.len() as u64 + 1 {
                kept.push(serde_json::from_str(line).expect("the simulation wrote it"));
            }
        }
        let message = ToAgent::EventsAcknowledged { attempt, through: kept.len() as u64 };
        match self.wire.arrival(connection, Way::ToNode, self.now, &mut self.chance) {
            Some(at) => self.at(at - self.now, Happening::ToNode { connection, message: Box::new(message) }),
            None => self.doom(connection),
        }
    }

    fn inspected(&mut self, life: u64, subject: Subject) {
        if life != self.brain.life {
            return;
        }
        let trouble = self.chance.one_in(12);
        let (result, files) = match subject {
            _ if trouble => (Err("the child was killed".into()), vec![]),
            Subject::Dataset(_) => (Ok(Inspection::Dataset(setup::dataset_findings())), vec![]),
            Subject::Base(_) => {
                (Ok(Inspection::Base(setup::base_findings())), vec![setup::file("model.safetensors", 30)])
            }
            Subject::Job(_) => (Ok(Inspection::Job(setup::job_findings())), vec![]),
        };
        self.post(Event::Inspected { subject, result, files });
    }

    fn brain_starts(&mut self) -> Kept {
        if self.brain.turn.is_none() {
            self.tally.count("coordinator started");
            self.promises.remembered(&self.brain.store)?;
            self.brain.start(self.now);
            self.wake_brain(1);
        }
        Ok(())
    }

    fn brain_dies(&mut self) {
        let durable = self.chance.one_in(2);
        self.brain.die(durable);
        for (_, connection) in self.wire.all() {
            let noticed = self.chance.below(IDLE);
            self.at(noticed, Happening::Broken { connection });
        }
        let down = self.chance.between(100, 30_000);
        self.at(down, Happening::BrainStarts);
    }

    /// The disk is full: memory goes, as in the driver.
    fn start_over(&mut self) {
        for (_, connection) in self.wire.all() {
            self.at(1, Happening::Broken { connection });
        }
        self.brain.rebuild(self.now);
        self.wake_brain(500);
    }

    // The wire.

    /// Nothing gets through one way: the connection ends when its ends notice.
    fn doom(&mut self, connection: u64) {
        self.at(IDLE, Happening::Broken { connection });
    }

    fn broken(&mut self, connection: u64) {
        self.wire.close(connection);
        let session = self.brain.sessions.iter().find(|(_, (_, live))| *live == connection);
        if let Some((node, session)) = session.map(|(node, (session, _))| (*node, *session)) {
            self.brain.sessions.remove(&node);
            self.post(Event::SessionClosed { node, session });
        }
        let ended = self.nodes.iter().position(|node| node.talk.is_some_and(|talk| talk.connection == connection));
        if let Some(node) = ended {
            self.nodes[node].talk = None;
            self.dial_soon(node);
        }
    }

    fn dial_soon(&mut self, node: usize) {
        let (life, wait) = (self.nodes[node].life, self.chance.between(100, 3_000));
        self.at(wait, Happening::Dial { node, life });
    }

    fn dial(&mut self, node: usize, life: u64) {
        let gone = self.nodes[node].life != life || self.nodes[node].host.is_none() || self.nodes[node].talk.is_some();
        if gone {
            return;
        }
        if self.brain.turn.is_none() || self.wire.is_cut(node, self.now) {
            return self.dial_soon(node);
        }
        let connection = self.wire.connect(node);
        self.nodes[node].connected(connection);
        let hello = Box::new(self.nodes[node].hello());
        self.say_to_brain(node, Said::Hello(hello));
    }

    fn say_to_brain(&mut self, node: usize, message: Said) {
        let Some(connection) = self.nodes[node].talk.map(|talk| talk.connection) else { return };
        match self.wire.arrival(connection, Way::ToBrain, self.now, &mut self.chance) {
            Some(at) => self.at(at - self.now, Happening::ToBrain { connection, message }),
            None => self.doom(connection),
        }
    }

    fn tell(&mut self, node: usize, message: FromAgent) {
        if self.wire.repeats(node, self.now) {
            self.say_to_brain(node, Said::Message(Box::new(message.clone())));
        }
        self.say_to_brain(node, Said::Message(Box::new(message)));
    }

    // The agents' side.

    fn heartbeat(&mut self, node: usize, life: u64) {
        if self.nodes[node].life != life {
            return;
        }
        if self.nodes[node].talk.is_some_and(|talk| talk.session.is_some()) {
            self.tell(node, FromAgent::Heartbeat);
        }
        self.at(5_000, Happening::Heartbeat { node, life });
    }

    fn node_starts(&mut self, node: usize) -> Kept {
        if self.nodes[node].host.is_some() {
            return Ok(());
        }
        self.tally.count("agent started");
        let actions = self.nodes[node].start(self.now);
        let life = self.nodes[node].life;
        self.at(1, Happening::Heartbeat { node, life });
        self.dial_soon(node);
        self.act(node, actions)
    }

    fn node_hears(&mut self, connection: u64, message: ToAgent) {
        if !self.wire.is_open(connection) {
            return;
        }
        let Some(node) = self.nodes.iter().position(|node| node.talk.is_some_and(|talk| talk.connection == connection))
        else {
            return;
        };
        let life = self.nodes[node].life;
        let mut events = vec![];
        match &message {
            ToAgent::Welcome(welcome) => {
                let mut delivered = self.nodes[node].resume(welcome.session, welcome.last_report);
                for (attempt, through) in &welcome.events {
                    if let Some(worker) = self.nodes[node].workers.get_mut(attempt) {
                        (worker.acknowledged, worker.sent) = (*through, *through);
                    }
                }
                let known = self.nodes[node].host.as_ref().map(|host| host.known()).unwrap_or_default();
                let done = known.into_iter().filter(|known| known.phase == lorikeet_protocol::job::AttemptPhase::Done);
                delivered
                    .extend(done.map(|known| known.id).filter(|id| !self.nodes[node].waits(*id)).collect::<Vec<_>>());
                events.push(HostEvent::Heard(message.clone()));
                events.extend(delivered.into_iter().map(HostEvent::Delivered));
            }
            ToAgent::Acknowledged { through } => {
                let delivered = self.nodes[node].acknowledged(*through);
                events.extend(delivered.into_iter().map(HostEvent::Delivered));
            }
            ToAgent::EventsAcknowledged { attempt, through } => {
                if let Some(worker) = self.nodes[node].workers.get_mut(attempt) {
                    worker.acknowledged = worker.acknowledged.max(*through);
                }
                events.push(HostEvent::Heard(message.clone()));
            }
            _ => events.push(HostEvent::Heard(message.clone())),
        }
        for event in events {
            // A host that is busy with a full disk hears it when that is over; the agenda keeps the order.
            let happened = self.node_event(node, life, event);
            debug_assert!(happened.is_ok());
        }
    }

    fn node_event(&mut self, node: usize, life: u64, event: HostEvent) -> Kept {
        let now = self.nodes[node].now(self.now);
        let ours = &mut self.nodes[node];
        let Some(host) = ours.host.as_mut().filter(|_| ours.life == life) else { return Ok(()) };
        let actions = host.handle(event, now);
        host.check_invariants();
        self.act(node, actions)
    }

    /// Reports and records first; while the disk takes nothing, nothing else happens.
    fn act(&mut self, node: usize, actions: Vec<HostAction>) -> Kept {
        self.nodes[node].undone.extend(actions);
        let (life, full) = (self.nodes[node].life, self.now < self.nodes[node].disk.full_until);
        if full {
            self.tally.count("agent waits for its disk");
            if !std::mem::replace(&mut self.nodes[node].waits_for_disk, true) {
                self.at(1_000, Happening::DiskAgain { node, life });
            }
            return Ok(());
        }
        let undone = std::mem::take(&mut self.nodes[node].undone);
        let now = self.now;
        for effect in self.nodes[node].keep(undone, now) {
            self.carry_out(node, effect)?;
        }
        self.pump(node);
        let due = self.nodes[node].host.as_ref().and_then(|host| host.next_deadline());
        if let Some(due) = due {
            let passed = self.nodes[node].now(self.now).mono;
            let wait = due.saturating_sub(passed).as_millis() as u64 + 1;
            if self.nodes[node].wakes.is_none_or(|set| set > self.now + wait) {
                self.nodes[node].wakes = Some(self.now + wait);
                self.at(wait, Happening::NodeWakes { node, life });
            }
        }
        Ok(())
    }

    /// Whatever waited goes on: actions, what is to be said, and the alarm, which may have rung meanwhile.
    fn disk_again(&mut self, node: usize, life: u64) -> Kept {
        if self.nodes[node].life != life {
            return Ok(());
        }
        self.nodes[node].waits_for_disk = false;
        self.act(node, vec![])
    }

    /// Reports, then lines, as far as they have not left.
    fn pump(&mut self, node: usize) {
        for report in self.nodes[node].unsent() {
            self.tell(node, FromAgent::Report(report));
        }
        if self.nodes[node].talk.is_none_or(|talk| talk.session.is_none()) {
            return;
        }
        let waiting: Vec<_> =
            self.nodes[node].workers.iter_mut().filter_map(|(attempt, worker)| worker.leaves(*attempt)).collect();
        waiting.into_iter().for_each(|lines| self.tell(node, FromAgent::Events(lines)));
    }

    fn carry_out(&mut self, node: usize, action: HostAction) -> Kept {
        let life = self.nodes[node].life;
        match action {
            HostAction::Report(..) | HostAction::Keep(_) | HostAction::KeepQuarantine(_) => {}
            HostAction::Test(device) => self.node_event(node, life, HostEvent::Tested(device, Ok(())))?,
            HostAction::Tell(message) => {
                if self.nodes[node].talk.is_some_and(|talk| talk.session.is_some()) {
                    self.tell(node, message);
                }
            }
            HostAction::Prepare(offer) => {
                let (attempt, takes) = (offer.attempt, self.chance.between(20, 3_000));
                self.nodes[node].work.insert(attempt);
                self.at(takes, Happening::Prepared { node, life, attempt });
            }
            HostAction::Abandon(attempt) => drop(self.nodes[node].work.remove(&attempt)),
            HostAction::Start(offer) => {
                let process = self.chance.below(u64::MAX);
                let attempt = offer.attempt;
                let known =
                    self.nodes[node].workers.get(&attempt).map(|worker| (worker.lines.clone(), worker.acknowledged));
                let mut worker = Worker::new(&offer, process);
                (worker.lines, worker.acknowledged) = known.unwrap_or_default();
                self.nodes[node].workers.insert(attempt, worker);
                let takes = self.chance.between(20, 1_500);
                self.at(takes, Happening::WorkerHolds { node, attempt, process });
            }
            HostAction::Adopt(offer) => self.adopt(node, offer.attempt)?,
            HostAction::Ask(attempt, ask) => {
                let now = self.nodes[node].now(self.now).wall;
                if let Some(worker) = self.nodes[node].workers.get_mut(&attempt).filter(|worker| worker.alive) {
                    worker.ask(ask, now);
                }
                self.tell_news(node, attempt)?;
            }
            HostAction::Kill(attempt) => self.kill(node, attempt)?,
            HostAction::UploadCheckpoint(attempt, made) => self.upload(node, attempt, Upload::Checkpoint(made)),
            HostAction::UploadAdapter(attempt, _) => self.upload(node, attempt, Upload::Adapter),
            HostAction::Forget(attempt) => self.nodes[node].forget(attempt),
        }
        Ok(())
    }

    fn prepared(&mut self, node: usize, life: u64, attempt: AttemptId) -> Kept {
        if self.nodes[node].life != life || !self.nodes[node].work.contains(&attempt) {
            return Ok(());
        }
        if self.nodes[node].talk.is_none() {
            // Its files are still to be fetched.
            self.at(1_000, Happening::Prepared { node, life, attempt });
            return Ok(());
        }
        self.nodes[node].work.remove(&attempt);
        self.node_event(node, life, HostEvent::Prepared(attempt))
    }

    fn upload(&mut self, node: usize, attempt: AttemptId, what: Upload) {
        let (life, takes) = (self.nodes[node].life, self.chance.between(50, 1_500));
        self.nodes[node].work.insert(attempt);
        self.at(takes, Happening::Uploaded { node, life, attempt, what });
    }

    fn uploaded(&mut self, node: usize, life: u64, attempt: AttemptId, what: Upload) -> Kept {
        if self.nodes[node].life != life || !self.nodes[node].work.contains(&attempt) {
            return Ok(());
        }
        let through = self.nodes[node].talk.is_some_and(|talk| talk.session.is_some()) && self.brain.turn.is_some();
        if !through {
            self.at(1_000, Happening::Uploaded { node, life, attempt, what });
            return Ok(());
        }
        let refused = !self.brain.store.is_current(attempt);
        let event = match what {
            Upload::Checkpoint(made) if refused => {
                HostEvent::CheckpointGivenUp(attempt, made.seq, "it is not yours any more".into())
            }
            Upload::Checkpoint(made) => {
                let files = vec![setup::file("manifest.json", 40)];
                let checkpoint = Checkpoint { step: made.step, loss: made.loss, kind: made.kind, files };
                HostEvent::CheckpointUploaded(attempt, made.seq, Box::new(checkpoint))
            }
            Upload::Adapter if refused => HostEvent::AdapterGivenUp(
                attempt,
                lorikeet_agent::host::Fault {
                    outcome: lorikeet_protocol::job::Outcome::Superseded,
                    message: "it is not yours any more".into(),
                },
            ),
            Upload::Adapter => {
                HostEvent::AdapterUploaded(attempt, vec![setup::file("adapter_model.safetensors", 41)], None)
            }
        };
        self.node_event(node, life, event)
    }

    // Workers.

    fn worker_holds(&mut self, node: usize, attempt: AttemptId, process: u64) -> Kept {
        let now = self.nodes[node].now(self.now).wall;
        let Some(worker) = self.process(node, attempt, process) else { return Ok(()) };
        worker.hold(now);
        let takes = self.chance.between(100, 1_000);
        self.at(takes, Happening::WorkerWorks { node, attempt, process });
        self.hosted(node, attempt, News::Holds { pid: 1 })?;
        self.tell_news(node, attempt)
    }

    fn worker_works(&mut self, node: usize, attempt: AttemptId, process: u64) -> Kept {
        let now = self.nodes[node].now(self.now).wall;
        let Some(worker) = self.process(node, attempt, process) else { return Ok(()) };
        let goes_on = worker.work(now);
        if goes_on {
            let takes = self.chance.between(300, 4_000);
            self.at(takes, Happening::WorkerWorks { node, attempt, process });
            return self.tell_news(node, attempt);
        }
        worker.alive = false;
        self.tell_news(node, attempt)?;
        self.hosted(node, attempt, News::Gone { how: "exit status: 0".into() })
    }

    fn process(&mut self, node: usize, attempt: AttemptId, process: u64) -> Option<&mut Worker> {
        self.nodes[node].workers.get_mut(&attempt).filter(|worker| worker.alive && worker.life == process)
    }

    fn kill(&mut self, node: usize, attempt: AttemptId) -> Kept {
        if let Some(worker) = self.nodes[node].workers.get_mut(&attempt) {
            worker.alive = false;
        }
        self.tell_news(node, attempt)?;
        self.hosted(node, attempt, News::Gone { how: "signal: 9 (SIGKILL)".into() })
    }

    /// An agent that restarts reads the directory from its beginning.
    fn adopt(&mut self, node: usize, attempt: AttemptId) -> Kept {
        let Some(worker) = self.nodes[node].workers.get_mut(&attempt) else {
            return self.hosted(node, attempt, News::Gone { how: "its directory is gone".into() });
        };
        worker.told = 0;
        let (holds, alive) = (worker.holds, worker.alive);
        if holds {
            self.hosted(node, attempt, News::Holds { pid: 1 })?;
        }
        self.tell_news(node, attempt)?;
        if alive { Ok(()) } else { self.hosted(node, attempt, News::Gone { how: "the lock is free".into() }) }
    }

    fn tell_news(&mut self, node: usize, attempt: AttemptId) -> Kept {
        loop {
            if self.nodes[node].host.is_none() {
                return Ok(());
            }
            let Some(worker) = self.nodes[node].workers.get_mut(&attempt) else { return Ok(()) };
            let Some(line) = worker.lines.get(worker.told).cloned() else { return Ok(()) };
            worker.told += 1;
            self.hosted(node, attempt, News::Event(Box::new(line)))?;
        }
    }

    fn hosted(&mut self, node: usize, attempt: AttemptId, news: News) -> Kept {
        let life = self.nodes[node].life;
        self.node_event(node, life, HostEvent::Worker(attempt, news))
    }
}

/// A job as the client wants it.
fn spec(wish: &client::Wish) -> lorikeet_protocol::job::JobSpec {
    use lorikeet_api::{JobFile, Presets};
    let (gpus, exclusive, priority, lost_after) = wish.needs();
    let text = format!(
        "base = \"b\"\ndataset = \"d\"\npriority = {priority}\n[resources]\nexclusive = {exclusive}\n[policy]\nlost_after = \"{lost_after}ms\""
    );
    let file = JobFile::from_toml(&text).expect("the simulation's own job file");
    let mut spec = file.resolve(&Presets::embedded()).expect("the simulation's own job file");
    // Several devices are scheduled already, though no worker takes them yet.
    spec.resources.gpus = gpus;
    spec
}
