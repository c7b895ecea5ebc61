//! The coordinator of the simulation: the product's turn around a virtual store, and a driver that can die between any two effects.

use super::store::Store;
use lorikeet_coordinator::{
    cluster::{Action, Cluster, Event, Now, Settings, Timers, schedule::Rules},
    guard::Guards,
    inbox::Inbox,
    record::Record,
    turn::Turn,
};
use lorikeet_protocol::id::{JobId, NodeId, UnixMillis};
use std::{collections::BTreeMap, time::Duration};

/// When the process dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Death {
    BeforeCommit,
    /// After as many effects as chance will have it.
    AfterCommit,
}

/// Who waits for an answer.
#[derive(Debug, Clone, Copy)]
pub(super) enum Waiting {
    /// This wish.
    Submit(usize),
    Cancel(JobId),
    Intent,
    Setup,
    Session {
        connection: u64,
        since: u64,
    },
}

/// A batch between its turn and its effects.
#[derive(Debug)]
pub(super) struct Commit {
    pub(super) records: Vec<Record>,
    pub(super) effects: Vec<Action>,
}

pub(super) struct Brain {
    pub(super) store: Store,
    pub(super) settings: Settings,
    pub(super) turn: Option<Turn>,
    /// Counts processes.
    pub(super) life: u64,
    started: u64,
    pub(super) inbox: Inbox<Event>,
    /// What its one writer is busy with.
    pub(super) commit: Option<Commit>,
    pub(super) death: Option<Death>,
    /// Its one alarm.
    pub(super) wakes: Option<u64>,
    pub(super) paused_until: u64,
    pub(super) stood_still: bool,
    pub(super) full_until: u64,
    pub(super) short_until: u64,
    pub(super) slow_until: u64,
    pub(super) sessions: BTreeMap<NodeId, (u64, u64)>,
    waiting: BTreeMap<u64, Waiting>,
    next_reply: u64,
    /// Milliseconds by which its wall clock is ahead.
    pub(super) skew: i64,
}

/// Short, so that a world of minutes sees everything happen.
fn timers() -> Timers {
    Timers {
        lease: Duration::from_secs(12),
        offer: Duration::from_secs(6),
        back_off_most: Duration::from_secs(20),
        ..Timers::default()
    }
}

/// The virtual day on which every world begins.
const DAWN: u64 = 1_790_000_000_000;

/// A wall clock.
pub(super) fn wall(now: u64, skew: i64) -> UnixMillis {
    UnixMillis((DAWN + now).saturating_add_signed(skew))
}

impl Brain {
    pub(super) fn new(guards: Guards, rules: Rules) -> Self {
        let settings = Settings { guards, rules, ..Settings::from(timers()) };
        Self {
            store: Store::default(),
            settings,
            turn: None,
            life: 0,
            started: 0,
            inbox: Inbox::default(),
            commit: None,
            death: None,
            wakes: None,
            paused_until: 0,
            stood_still: false,
            full_until: 0,
            short_until: 0,
            slow_until: 0,
            sessions: BTreeMap::new(),
            waiting: BTreeMap::new(),
            next_reply: 0,
            skew: 0,
        }
    }

    pub(super) fn now(&self, now: u64) -> Now {
        Now { mono: Duration::from_millis(now - self.started), wall: wall(now, self.skew) }
    }

    /// A process starts from the store.
    pub(super) fn start(&mut self, now: u64) {
        self.life += 1;
        self.started = now;
        self.rebuild(now);
    }

    /// Memory is made anew from the store; who waited hears nothing.
    pub(super) fn rebuild(&mut self, now: u64) {
        self.turn = Some(Turn::new(Cluster::new(self.store.load(), self.settings.clone(), self.now(now))));
        self.inbox = Inbox::default();
        self.inbox.word(Event::Booted);
        self.sessions.clear();
        self.waiting.clear();
        self.commit = None;
        self.wakes = None;
    }

    /// The process dies; what its writer was busy with, it leaves to chance.
    pub(super) fn die(&mut self) -> Option<Commit> {
        self.turn = None;
        self.life += 1;
        self.inbox = Inbox::default();
        self.sessions.clear();
        self.waiting.clear();
        self.death = None;
        self.wakes = None;
        self.commit.take()
    }

    /// Something came, by the way that it takes in the driver.
    pub(super) fn take(&mut self, event: Event) {
        match event {
            Event::Booted
            | Event::SessionOpened { .. }
            | Event::SessionClosed { .. }
            | Event::Heard { .. }
            | Event::Stray { .. }
            | Event::Announced { .. }
            | Event::Asked { .. } => self.inbox.word(event),
            Event::Requested { .. } | Event::Inspected { .. } | Event::Ticked => self.inbox.request(event),
        }
    }

    pub(super) fn batch(&mut self) -> Vec<Event> {
        self.inbox.next(reads_rows)
    }

    /// The key under which somebody waits.
    pub(super) fn wait(&mut self, who: Waiting) -> u64 {
        self.next_reply += 1;
        self.waiting.insert(self.next_reply, who);
        self.next_reply
    }

    pub(super) fn waiter(&mut self, reply: u64) -> Option<Waiting> {
        self.waiting.remove(&reply)
    }

    /// When it has something to do by itself.
    pub(super) fn deadline(&self, now: u64) -> u64 {
        let due = self.turn.as_ref().and_then(Turn::next_deadline);
        let due = due.map_or(u64::MAX, |due| self.started + due.as_millis() as u64 + 1);
        due.clamp(now + 1, now + 5_000)
    }
}

/// As in the driver.
fn reads_rows(event: &Event) -> bool {
    matches!(event, Event::Requested { command, .. } if command.names_finished())
}
