//! The world: an agenda of what happens when, clients, an operator, and the hands that carry actions from one part to the other.

mod agent;
mod client;
mod coordinator;
mod link;
mod operator;
mod process;
mod setup;
mod strike;
mod wish;

use super::{
    Chance, Tally,
    books::Books,
    brain::{Brain, Commit, Death, Waiting},
    node::Node,
    promise::{Broken, Promises, state_word},
    wire::{IDLE, Way, Wire},
    worker::Worker,
};
use lorikeet_agent::host::{Action as HostAction, CheckpointMade, Event as HostEvent, News};
use lorikeet_coordinator::{
    cluster::{Action, Event, Inspect, Shown, Subject, Trouble, schedule::Rules},
    guard::Guards,
    record::Record,
};
use lorikeet_protocol::{
    agent::{Checkpoint, EventLines, FromAgent, Hello, ToAgent, Welcome},
    file::FileManifest,
    id::{AttemptId, DeviceId, Hash, JobId, ModelId, NodeId},
    inspect::Inspection,
};
use std::collections::BTreeMap;

/// Faults stop at this time; after it everything has to end.
const STORM: u64 = 240_000;
/// By this time everything has ended.
const DOOMSDAY: u64 = 4 * 3_600_000;

/// A world that does so much turns in circles.
const TOO_MUCH: u64 = 2_000_000;

/// A long outage meets so many nodes, each with a job.
const OUTAGE_NODES: usize = 20;
/// And begins when all of them run.
const OUTAGE_BEGINS: u64 = 15_000;

type Kept = Result<(), String>;

/// What befalls a world.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weather {
    /// Faults of every kind, for a while.
    Storm,
    /// The coordinator is away for so many milliseconds, under twenty running jobs.
    Outage(u64),
}

impl Weather {
    /// From then on nothing goes wrong any more.
    fn end(self) -> u64 {
        match self {
            Self::Storm => STORM,
            Self::Outage(down) => OUTAGE_BEGINS + down,
        }
    }
}

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
    /// Somebody looks at the devices.
    Looks {
        node: usize,
        life: u64,
    },
    Tested {
        node: usize,
        life: u64,
        device: DeviceId,
    },
    /// An agent that stood still goes on.
    Resumed {
        node: usize,
        life: u64,
    },
    /// A worker says nothing any more.
    Stalled {
        node: usize,
        attempt: AttemptId,
        process: u64,
    },
    /// A process that could not be killed is gone.
    Unstuck {
        node: usize,
        attempt: AttemptId,
        process: u64,
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
    Deed(operator::Deed),
    /// The coordinator dies, and starts again after so long.
    Down(u64),
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
    wishes: Vec<wish::Wish>,
    weather: Weather,
    promises: Promises,
    books: Books,
    tally: Tally,
}

impl World {
    pub(super) fn new(seed: u64, guards: Guards, weather: Weather) -> Self {
        let mut chance = Chance(seed);
        let nodes = match weather {
            Weather::Outage(_) => OUTAGE_NODES,
            Weather::Storm if chance.one_in(25) => chance.between(9, 51) as usize,
            Weather::Storm => chance.between(3, 9) as usize,
        };
        let rules = match weather {
            Weather::Outage(_) => Rules::default(),
            Weather::Storm => Self::rules(&mut chance),
        };
        Self {
            seed,
            chance,
            now: 0,
            next: 0,
            agenda: BTreeMap::new(),
            wire: Wire::default(),
            brain: Brain::new(guards, rules.clone()),
            nodes: (0..nodes).map(|n| Node::new(NodeId(uuid::Uuid::from_u128(1_000 + n as u128)), 1 + n % 2)).collect(),
            wishes: vec![],
            weather,
            promises: Promises::default(),
            books: Books::new(rules),
            tally: Tally::default(),
        }
    }

    /// In some worlds users are limited, in some a job may make others leave.
    fn rules(chance: &mut Chance) -> Rules {
        Rules {
            jobs_per_user: chance.one_in(3).then(|| chance.between(2, 6) as u32),
            devices_per_user: chance.one_in(3).then(|| chance.between(2, 7) as u32),
            preemption_margin: chance.one_in(2).then(|| chance.between(5, 40) as u8),
            ..Rules::default()
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
        let jobs = self.wishes.iter().map(|wish| wish.jobs.len()).sum::<usize>();
        self.tally.0.extend([("nodes".to_owned(), self.nodes.len() as u64), ("jobs".to_owned(), jobs as u64)]);
        match self.weather {
            Weather::Storm => {
                self.plan_faults();
                self.plan_deeds();
            }
            Weather::Outage(down) => self.at(OUTAGE_BEGINS, Happening::Down(down)),
        }
        let mut calm = false;
        while let Some(((at, _), happening)) = self.agenda.pop_first() {
            self.now = at;
            if at > self.weather.end() && !calm {
                calm = true;
                self.calm();
            }
            if at > DOOMSDAY || self.next > TOO_MUCH || (calm && self.is_over()) {
                break;
            }
            self.tally.count("events");
            self.happen(happening)?;
        }
        self.tally.count("worlds");
        self.promises.at_the_end(&self.brain.store, &self.books)
    }

    fn is_over(&self) -> bool {
        let over = self.brain.store.jobs.values().all(|job| job.phase().is_terminal());
        let told = (0..self.nodes.len()).all(|node| self.nodes[node].workers.is_empty() || self.is_gone(node));
        over && told && self.wishes.iter().all(|wish| wish.acknowledged)
    }

    fn at(&mut self, delay: u64, happening: Happening) {
        self.next += 1;
        self.agenda.insert((self.now + delay, self.next), happening);
    }

    /// An agent that stands still comes to it when it goes on.
    fn put_off(&mut self, happening: &Happening) -> Option<u64> {
        let node = match happening {
            Happening::ToNode { connection, .. } => self.wire.node_of(*connection)?,
            Happening::Dial { node, .. }
            | Happening::Heartbeat { node, .. }
            | Happening::NodeWakes { node, .. }
            | Happening::DiskAgain { node, .. }
            | Happening::Looks { node, .. }
            | Happening::Tested { node, .. }
            | Happening::Prepared { node, .. }
            | Happening::Uploaded { node, .. } => *node,
            _ => return None,
        };
        let until = self.nodes[node].paused_until;
        if self.now < until && matches!(happening, Happening::NodeWakes { .. }) {
            self.nodes[node].wakes = Some(until);
        }
        (self.now < until).then(|| until - self.now)
    }

    fn happen(&mut self, happening: Happening) -> Kept {
        if let Some(wait) = self.put_off(&happening) {
            self.at(wait, happening);
            return Ok(());
        }
        match happening {
            Happening::ToBrain { connection, message } => self.brain_hears(connection, message),
            Happening::ToNode { connection, message } => return self.node_hears(connection, *message),
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
            Happening::Looks { node, life } => return self.looks(node, life),
            Happening::Tested { node, life, device } => return self.tested(node, life, device),
            Happening::Resumed { node, life } => return self.resumed(node, life),
            Happening::Stalled { node, attempt, process } => return self.stalled(node, attempt, process),
            Happening::Unstuck { node, attempt, process } => return self.unstuck(node, attempt, process),
            Happening::Prepared { node, life, attempt } => return self.prepared(node, life, attempt),
            Happening::Uploaded { node, life, attempt, what } => return self.uploaded(node, life, attempt, what),
            Happening::WorkerHolds { node, attempt, process } => return self.worker_holds(node, attempt, process),
            Happening::WorkerWorks { node, attempt, process } => return self.worker_works(node, attempt, process),
            Happening::Client(order) => self.client(order),
            Happening::Deed(deed) => return self.deed(deed),
            Happening::Down(down) => return self.brain_is_away(down),
            Happening::Strike(fault) => return self.strike(fault),
        }
        Ok(())
    }
}
