//! A GPU machine of the simulation: the product's host around a virtual disk, and workers that outlive the agent.

use super::{brain::wall, worker::Worker};
use lorikeet_agent::host::{Action, Event, Host, Now, Record, Rules, Seen};
use lorikeet_protocol::{
    agent::{Hello, Report},
    id::{AttemptId, BootId, DeviceId, NodeId},
    job::{Device, DeviceKind},
};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

/// What survives the agent and the machine.
#[derive(Debug, Default)]
pub(super) struct Disk {
    records: BTreeMap<AttemptId, Record>,
    /// Reports through this one were acknowledged.
    base: u64,
    queue: VecDeque<Report>,
    /// Nothing can be written until then.
    pub(super) full_until: u64,
}

/// The agent's end of a connection.
#[derive(Debug, Clone, Copy)]
pub(super) struct Talk {
    pub(super) connection: u64,
    pub(super) session: Option<u64>,
    /// Reports through this one have left in this session.
    sent: u64,
}

pub(super) struct Node {
    pub(super) id: NodeId,
    pub(super) serial: String,
    gpus: usize,
    boot: BootId,
    booted: u64,
    instance: BootId,
    pub(super) skew: i64,
    pub(super) disk: Disk,
    pub(super) host: Option<Host>,
    /// Counts processes of the agent.
    pub(super) life: u64,
    pub(super) talk: Option<Talk>,
    pub(super) workers: BTreeMap<AttemptId, Worker>,
    /// Preparations and uploads under way; taken out when abandoned.
    pub(super) work: BTreeSet<AttemptId>,
    /// Decided, and not carried out before the disk takes what belongs to it.
    pub(super) undone: Vec<Action>,
    /// Its one alarm.
    pub(super) wakes: Option<u64>,
    pub(super) waits_for_disk: bool,
    /// Until then no worker lives here for long.
    pub(super) sick_until: u64,
}

impl Node {
    pub(super) fn new(id: NodeId, gpus: usize) -> Self {
        Self {
            id,
            serial: format!("serial of {id}"),
            gpus,
            boot: BootId(uuid::Uuid::from_u128(id.0.as_u128() + 1)),
            booted: 0,
            instance: BootId(uuid::Uuid::nil()),
            skew: 0,
            disk: Disk::default(),
            host: None,
            life: 0,
            talk: None,
            workers: BTreeMap::new(),
            work: BTreeSet::new(),
            undone: vec![],
            wakes: None,
            waits_for_disk: false,
            sick_until: 0,
        }
    }

    pub(super) fn now(&self, now: u64) -> Now {
        Now { mono: Duration::from_millis(now - self.booted), wall: wall(now, self.skew) }
    }

    /// A process starts from the disk.
    pub(super) fn start(&mut self, now: u64) -> Vec<Action> {
        self.life += 1;
        self.instance = BootId(uuid::Uuid::from_u128(self.id.0.as_u128() ^ (u128::from(self.life) << 64)));
        self.workers.values_mut().for_each(|worker| worker.told = 0);
        let records = self.disk.records.values().cloned().collect();
        let (mut host, mut actions) = Host::restore(self.rules(), records, self.now(now));
        let seen = Seen { devices: self.devices(), ..Seen::default() };
        actions.extend(host.handle(Event::Looked(seen), self.now(now)));
        self.host = Some(host);
        actions
    }

    /// The process ends; what was decided and not written never happened.
    pub(super) fn die(&mut self) {
        self.host = None;
        self.life += 1;
        self.talk = None;
        self.work.clear();
        self.undone.clear();
        self.wakes = None;
        self.waits_for_disk = false;
    }

    /// The machine starts anew: its workers are gone, its disk is not.
    pub(super) fn reboot(&mut self, now: u64) {
        self.die();
        self.boot = BootId(uuid::Uuid::from_u128(self.boot.0.as_u128() + (1 << 32)));
        self.booted = now;
        self.workers.values_mut().for_each(|worker| worker.alive = false);
    }

    fn rules(&self) -> Rules {
        Rules {
            boot: self.boot,
            save_grace: Duration::from_secs(10),
            discard_grace: Duration::from_secs(3),
            start_grace: Duration::from_secs(10),
            progress: Duration::from_secs(1),
            release_grace: Duration::from_secs(30),
            proves_gpus: false,
            spares_cpu: false,
        }
    }

    fn devices(&self) -> Vec<Device> {
        let gpu = |index| Device {
            id: DeviceId(format!("GPU-{}-{index}", self.id)),
            name: "simulated".into(),
            kind: DeviceKind::Cuda { compute: (9, 0), driver: None },
            memory_bytes: 80 << 30,
            free_bytes: 80 << 30,
            usable: Ok(()),
        };
        (0..self.gpus).map(gpu).collect()
    }

    pub(super) fn hello(&self) -> Hello {
        Hello {
            boot: self.boot,
            instance: self.instance,
            version: "sim".into(),
            name: self.id.to_string(),
            labels: BTreeMap::new(),
            devices: self.devices(),
            attempts: self.host.as_ref().map(Host::known).unwrap_or_default(),
            cached: vec![],
            acknowledged: self.disk.base,
        }
    }

    /// The durable part of what was decided; the rest is left to be carried out.
    pub(super) fn keep(&mut self, actions: Vec<Action>, now: u64) -> Vec<Action> {
        let time = self.now(now).wall;
        let mut rest = Vec::new();
        for action in actions {
            match action {
                Action::Report(attempt, body) => {
                    let number = self.disk.base + self.disk.queue.len() as u64 + 1;
                    self.disk.queue.push_back(Report { number, attempt, time, body });
                }
                Action::Keep(record) => drop(self.disk.records.insert(record.id(), *record)),
                effect => rest.push(effect),
            }
        }
        rest
    }

    /// Nothing is left of an attempt.
    pub(super) fn forget(&mut self, attempt: AttemptId) {
        self.disk.records.remove(&attempt);
        self.workers.remove(&attempt);
        self.work.remove(&attempt);
    }

    /// A session begins: numbers go on behind what either side knows. Answers attempts of which nothing waits any more.
    pub(super) fn resume(&mut self, session: u64, last_report: u64) -> Vec<AttemptId> {
        let delivered = self.acknowledged(last_report);
        let last = self.disk.base + self.disk.queue.len() as u64;
        if last_report > last {
            self.disk.base = last_report;
        }
        let base = self.disk.base;
        if let Some(talk) = &mut self.talk {
            (talk.session, talk.sent) = (Some(session), base);
        }
        delivered
    }

    /// Reports through this one are with the coordinator.
    pub(super) fn acknowledged(&mut self, through: u64) -> Vec<AttemptId> {
        let mut gone = BTreeSet::new();
        while self.disk.base < through
            && let Some(report) = self.disk.queue.pop_front()
        {
            self.disk.base += 1;
            gone.insert(report.attempt);
        }
        gone.retain(|attempt| !self.waits(*attempt));
        gone.into_iter().collect()
    }

    /// Whether a report of it waits.
    pub(super) fn waits(&self, attempt: AttemptId) -> bool {
        self.disk.queue.iter().any(|report| report.attempt == attempt)
    }

    /// Reports that have not left in this session.
    pub(super) fn unsent(&mut self) -> Vec<Report> {
        let Some(talk) = self.talk.as_mut().filter(|talk| talk.session.is_some()) else { return vec![] };
        let base = self.disk.base;
        let skip = talk.sent.saturating_sub(base) as usize;
        let reports: Vec<_> = self.disk.queue.iter().skip(skip).cloned().collect();
        talk.sent = base + self.disk.queue.len() as u64;
        reports
    }

    /// A connection is made.
    pub(super) fn connected(&mut self, connection: u64) {
        self.talk = Some(Talk { connection, session: None, sent: 0 });
    }
}
