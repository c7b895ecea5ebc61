//! A GPU machine of the simulation: the product's host around a virtual disk, and workers that outlive the agent.

use super::{Chance, books::DEVICE_BYTES, brain::wall, worker::Worker};
use lorikeet_agent::host::{Action, Event, Host, Now, Reasons, Record, Rules, Seen};
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
    /// Devices that are out.
    quarantine: Reasons,
    /// Nothing can be written until then.
    pub(super) full_until: u64,
    /// Each write takes long until then.
    pub(super) slow_until: u64,
}

/// The agent's end of a connection.
#[derive(Debug, Clone, Copy)]
pub(super) struct Talk {
    pub(super) connection: u64,
    pub(super) session: Option<u64>,
    /// Reports through this one have left in this session.
    sent: u64,
    /// Since when the oldest of them waits for a word.
    waiting: Option<u64>,
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
    /// Since when.
    pub(super) waits_for_disk: Option<u64>,
    /// What was decided is being carried out.
    pub(super) in_turn: bool,
    /// What came meanwhile.
    pub(super) inbox: VecDeque<Event>,
    /// It dies after so many more writes and effects.
    pub(super) death: Option<u64>,
    /// It stands still until then.
    pub(super) paused_until: u64,
    /// Somebody looks at the devices soon.
    pub(super) looks: bool,
    /// Which of its devices are usable, as the coordinator was told.
    pub(super) told: Vec<bool>,
    /// Until then no worker lives here for long.
    pub(super) sick_until: u64,
    /// Until then no files come.
    pub(super) unprepared_until: u64,
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
            waits_for_disk: None,
            in_turn: false,
            inbox: VecDeque::new(),
            death: None,
            paused_until: 0,
            looks: false,
            told: vec![],
            sick_until: 0,
            unprepared_until: 0,
        }
    }

    pub(super) fn now(&self, now: u64) -> Now {
        Now { mono: Duration::from_millis(now - self.booted), wall: wall(now, self.skew) }
    }

    /// A process starts from the disk.
    pub(super) fn start(&mut self, now: u64) -> Vec<Action> {
        self.life += 1;
        self.instance = BootId(uuid::Uuid::from_u128(self.id.0.as_u128() ^ (u128::from(self.life) << 64)));
        self.workers.values_mut().for_each(Worker::is_new_to_the_agent);
        let records = self.disk.records.values().cloned().collect();
        let (mut host, mut actions) = Host::restore(self.rules(), records, self.now(now));
        host.quarantine(self.disk.quarantine.clone(), self.now(now));
        actions.extend(host.handle(Event::Looked(self.look()), self.now(now)));
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
        self.inbox.clear();
        (self.wakes, self.death, self.waits_for_disk, self.looks) = (None, None, None, false);
        (self.paused_until, self.in_turn) = (0, false);
    }

    /// The machine starts anew: its workers are gone, its disk is not; of what was not synced it keeps what it likes. Answers how many
    /// lines went.
    pub(super) fn reboot(&mut self, now: u64, chance: &mut Chance) -> usize {
        self.die();
        self.boot = BootId(uuid::Uuid::from_u128(self.boot.0.as_u128() + (1 << 32)));
        self.booted = now;
        self.workers.values_mut().map(|worker| worker.lose_power(chance)).sum()
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
            memory_bytes: DEVICE_BYTES,
            free_bytes: DEVICE_BYTES,
            usable: Ok(()),
        };
        (0..self.gpus).map(gpu).collect()
    }

    pub(super) fn usable(&self) -> Vec<bool> {
        let devices = self.host.as_ref().map(Host::devices).unwrap_or_default();
        devices.iter().map(|device| device.usable.is_ok()).collect()
    }

    pub(super) fn look(&self) -> Seen {
        Seen { devices: self.devices(), ..Seen::default() }
    }

    /// Another start of an agent with this node's key, on another machine.
    pub(super) fn copied_hello(&self, instance: u64) -> Hello {
        let instance = BootId(uuid::Uuid::from_u128(self.id.0.as_u128() ^ (u128::from(instance) << 32) ^ (1 << 127)));
        Hello { boot: instance, instance, attempts: vec![], ..self.hello() }
    }

    pub(super) fn hello(&self) -> Hello {
        Hello {
            boot: self.boot,
            instance: self.instance,
            version: "sim".into(),
            name: self.id.to_string(),
            labels: BTreeMap::new(),
            devices: self.host.as_ref().map(|host| host.devices().to_vec()).unwrap_or_default(),
            attempts: self.host.as_ref().map(Host::known).unwrap_or_default(),
            cached: vec![],
            acknowledged: self.disk.base,
        }
    }

    /// What was decided, in the order in which the agent's driver does it: reports, then the newest record of each attempt, then the
    /// devices that are out, then everything else.
    pub(super) fn in_order(&mut self) -> Vec<Action> {
        let (mut reports, mut records, mut quarantine, mut rest) = (vec![], BTreeMap::new(), None, vec![]);
        for action in std::mem::take(&mut self.undone) {
            match action {
                Action::Report(..) => reports.push(action),
                Action::Keep(record) => drop(records.insert(record.id(), Action::Keep(record))),
                Action::KeepQuarantine(_) => quarantine = Some(action),
                effect => rest.push(effect),
            }
        }
        reports.into_iter().chain(records.into_values()).chain(quarantine).chain(rest).collect()
    }

    /// Nobody who held its lock in time is told that it did not, however long the agent was held up.
    pub(super) fn judges_rightly(&self, action: &Action) -> Result<(), String> {
        let Action::Report(id, body) = action else { return Ok(()) };
        let Some(ended) = body.end() else { return Ok(()) };
        let says_late = ended.message.as_ref().is_some_and(|why| why.contains("did not take its lock"));
        let took = self.workers.get(id).and_then(|worker| worker.held_after).filter(|_| says_late);
        match took.filter(|took| u128::from(*took) < self.rules().start_grace.as_millis()) {
            Some(took) => Err(format!("{id} held its lock after {took} ms, and was given up for not taking it")),
            None => Ok(()),
        }
    }

    /// Whether its process ends before it does the next thing.
    pub(super) fn falls(&mut self) -> bool {
        match &mut self.death {
            Some(0) => true,
            Some(left) => {
                *left -= 1;
                false
            }
            None => false,
        }
    }

    /// Writes what is to last; what is not, is given back.
    pub(super) fn write(&mut self, action: Action, now: u64) -> Option<Action> {
        match action {
            Action::Report(attempt, body) => {
                let number = self.disk.base + self.disk.queue.len() as u64 + 1;
                let time = self.now(now).wall;
                self.disk.queue.push_back(Report { number, attempt, time, body });
            }
            Action::Keep(record) => drop(self.disk.records.insert(record.id(), *record)),
            Action::KeepQuarantine(reasons) => self.disk.quarantine = reasons,
            effect => return Some(effect),
        }
        None
    }

    /// A worker that starts is alone on its devices, or among those that share them.
    pub(super) fn has_room(&self, worker: &Worker) -> Result<(), String> {
        let beside =
            |other: &&Worker| other.alive && other.devices.iter().any(|device| worker.devices.contains(device));
        match self.workers.values().filter(beside).find(|other| other.is_alone || worker.is_alone) {
            Some(other) => Err(format!("two processes hold {:?} of {}: {other:?}", worker.devices, self.id)),
            None => Ok(()),
        }
    }

    /// Nothing is left of an attempt.
    pub(super) fn forget(&mut self, attempt: AttemptId) {
        self.disk.records.remove(&attempt);
        self.workers.remove(&attempt);
        self.work.remove(&attempt);
    }

    /// A session begins: numbers go on behind what either side knows. Answers attempts of which nothing waits any more.
    pub(super) fn resume(&mut self, session: u64, last_report: u64) -> Vec<AttemptId> {
        let delivered = self.acknowledged(last_report, 0);
        let last = self.disk.base + self.disk.queue.len() as u64;
        if last_report > last {
            self.disk.base = last_report;
        }
        let base = self.disk.base;
        if let Some(talk) = &mut self.talk {
            (talk.session, talk.sent, talk.waiting) = (Some(session), base, None);
        }
        delivered
    }

    /// Reports through this one are with the coordinator.
    pub(super) fn acknowledged(&mut self, through: u64, now: u64) -> Vec<AttemptId> {
        let (mut gone, before) = (BTreeSet::new(), self.disk.base);
        while self.disk.base < through
            && let Some(report) = self.disk.queue.pop_front()
        {
            self.disk.base += 1;
            gone.insert(report.attempt);
        }
        if let Some(talk) = self.talk.as_mut().filter(|_| self.disk.base > before) {
            talk.waiting = (talk.sent > self.disk.base).then_some(now);
        }
        gone.retain(|attempt| !self.waits(*attempt));
        gone.into_iter().collect()
    }

    /// The reports that wait of an end that the coordinator may ask for.
    pub(super) fn says_the_end(&self, attempt: AttemptId) -> bool {
        let ends = |report: &Report| report.attempt == attempt && report.body.end().is_some();
        self.disk.queue.iter().any(ends)
    }

    /// Whether a report of it waits.
    pub(super) fn waits(&self, attempt: AttemptId) -> bool {
        self.disk.queue.iter().any(|report| report.attempt == attempt)
    }

    /// Reports that have not left in this session.
    pub(super) fn unsent(&mut self, now: u64) -> Vec<Report> {
        let Some(talk) = self.talk.as_mut().filter(|talk| talk.session.is_some()) else { return vec![] };
        let base = self.disk.base;
        let skip = talk.sent.saturating_sub(base) as usize;
        let reports: Vec<_> = self.disk.queue.iter().skip(skip).cloned().collect();
        talk.sent = base + self.disk.queue.len() as u64;
        if !reports.is_empty() {
            talk.waiting.get_or_insert(now);
        }
        reports
    }

    /// As the agent's driver: what was not acknowledged for so long is said again.
    pub(super) fn says_again(&mut self, now: u64, after: u64) -> bool {
        let base = self.disk.base;
        let talk = self.talk.as_mut().filter(|talk| talk.waiting.is_some_and(|since| now - since >= after));
        talk.map(|talk| (talk.sent, talk.waiting) = (base, None)).is_some()
    }

    /// A connection is made.
    pub(super) fn connected(&mut self, connection: u64) {
        self.talk = Some(Talk { connection, session: None, sent: 0, waiting: None });
    }
}
