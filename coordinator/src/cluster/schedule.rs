//! Which attempt goes on which devices, and why the others wait: a pure function of queue, nodes and rules.
//!
//! Order: priority, then fair share, then age. A job takes the node where it fits best: not blamed, near its files, then the least
//! free memory that suffices. All its devices lie on one node, all or nothing. The first job that has to wait for devices gets a
//! reservation where they are free soonest; a job behind it may go before it only if it ends in time. Where priority allows it,
//! attempts are asked to make room: those of least priority, then of least work lost.
//! A dry run and `job why` ask this same function.

mod ahead;
mod best;
mod fit;
mod order;
mod room;

use super::{
    AT_ONCE,
    fair::{Account, Load},
    ledger::Ledger,
    place::later,
};
use ahead::Ahead;
use best::Best;
use fit::{Fit, Place};
pub use fit::{Lack, WhyNot};
use lorikeet_protocol::{
    id::{AttemptId, DeviceId, Hash, JobId, NodeId, SweepId, UnixMillis, UserId},
    job::{Device, Resources},
};
pub use order::{Queue, Standing};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

/// A job that could start now.
#[derive(Debug, Clone)]
pub struct Candidate<'a> {
    /// Which.
    pub job: JobId,
    /// Whose.
    pub owner: UserId,
    /// Higher goes first, and may make others leave.
    pub priority: u8,
    /// What it needs.
    pub resources: &'a Resources,
    /// Planned memory on a CPU slot.
    pub cpu_bytes: u64,
    /// Planned memory on a GPU.
    pub cuda_bytes: u64,
    /// What of it no GPU trains, where there is such a thing.
    pub cpu_only: Option<&'static str>,
    /// No processor trains it.
    pub gpu_only: bool,
    /// The files it reads: near them is better.
    pub files: Vec<Hash>,
    /// Nodes that it failed on, or that declined it: tried only when no other fits.
    pub avoid: BTreeSet<NodeId>,
    /// How long it will hold its devices, at most.
    pub lasts: Duration,
    /// Its sweep, and how many jobs of that may hold devices at once.
    pub sweep: Option<(SweepId, u32)>,
}

/// An attempt that holds devices.
#[derive(Debug, Clone, Copy)]
pub struct Holder {
    /// Of its job.
    pub priority: u8,
    /// When it gives them back, as far as anybody knows, since the process started.
    pub ends: Duration,
    /// Device time since its last checkpoint.
    pub at_stake: Duration,
    /// Whether it was asked to make room already.
    pub leaving: bool,
}

/// Where the scheduler looks things up.
pub trait Lookup {
    /// A queued job.
    fn candidate(&self, job: JobId) -> Option<Candidate<'_>>;
    /// An attempt that holds devices.
    fn holder(&self, attempt: AttemptId) -> Option<Holder>;
    /// What a user has, has used, and should have.
    fn user(&self, user: UserId) -> Account;
    /// A sweep's jobs that hold devices.
    fn placed_of(&self, sweep: SweepId) -> u32;
}

/// A node as the scheduler sees it.
#[derive(Debug, Clone)]
pub struct NodeView<'a> {
    /// Which.
    pub id: NodeId,
    /// For people.
    pub name: &'a str,
    /// Why nothing can be placed on it, if nothing can.
    pub closed: Option<WhyNot>,
    /// From its config.
    pub labels: &'a BTreeMap<String, String>,
    /// As last reported.
    pub devices: &'a [Device],
    /// How long ago that was.
    pub devices_age: Duration,
    /// Whether it has told what it has, since this process started.
    pub is_known: bool,
    /// What is placed on each device.
    pub ledger: &'a Ledger,
    /// Files in its cache.
    pub cached: &'a BTreeSet<Hash>,
}

/// What holds for everybody; from the config.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Rules {
    /// Jobs of one user that may hold devices at once.
    pub jobs_per_user: Option<u32>,
    /// Devices that one user may hold at once.
    pub devices_per_user: Option<u32>,
    /// A job may make another leave whose priority is lower by this or more.
    pub preemption_margin: Option<u8>,
    /// Of users who are to get more device time than others, or less, by e-mail address; 1 of everybody else.
    pub weights: BTreeMap<String, f64>,
}

/// Where a job goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    /// The job.
    pub job: JobId,
    /// Its node.
    pub node: NodeId,
    /// Its devices there.
    pub devices: Vec<DeviceId>,
    /// What the plan allows it on each.
    pub planned_bytes: u64,
}

/// Why a job waits.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Why {
    /// Place in the queue, from 1.
    pub position: usize,
    /// What keeps it from every node, if something does.
    pub limit: Option<Limit>,
    /// Nodes that were asked.
    pub machines: usize,
    /// Where no node can ever take it, as they are: the nearest one, and what that lacks.
    pub never: Option<(NodeId, String, WhyNot)>,
    /// One reason per node.
    pub nodes: Vec<(NodeId, String, WhyNot)>,
    /// When devices are free for it that nobody ahead of it in line will take, if attempts last as long as they say; `None`: nobody knows.
    pub expected: Option<UnixMillis>,
    /// Until when it is not placed, because its last attempt ended badly.
    pub backs_off_until: Option<UnixMillis>,
    /// And how.
    pub last_word: Option<String>,
    /// What its owner has used of the devices, as it counts now, and their weight.
    pub owner: Option<(Duration, f64)>,
}

/// A limit of the job's owner, or of its sweep.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    /// So many jobs at once.
    Jobs(u32),
    /// So many devices at once.
    Devices(u32),
    /// So many devices at once, and this job alone wants more.
    TooLarge {
        /// Wanted.
        wanted: u32,
        /// Allowed.
        most: u32,
    },
    /// So many jobs of its sweep at once.
    Sweep(u32),
}

/// What follows.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Schedule {
    /// What starts.
    pub placements: Vec<Placement>,
    /// What is asked to make room.
    pub victims: Vec<AttemptId>,
    /// Why the job that was asked about waits; `None`: it starts, or is not in the queue.
    pub why: Option<Why>,
    /// It ended because so much was placed: another pass may place more.
    pub is_cut: bool,
}

/// Places what can be placed, best first; with `about`, says why that one waits.
pub fn schedule(
    queue: &Queue,
    nodes: &[NodeView<'_>],
    lookup: &impl Lookup,
    rules: &Rules,
    (mono, wall): (Duration, UnixMillis),
    about: Option<JobId>,
) -> Schedule {
    let mut pass = Pass { places: nodes.iter().map(Place::new).collect(), rules, mono, ..Pass::default_for(lookup) };
    let mut schedule = Schedule::default();
    let mut order = queue.in_order(|user| lookup.user(user));
    let mut position = 0;
    while let Some(job) = order.next() {
        schedule.is_cut = about.is_none() && schedule.placements.len() >= AT_ONCE;
        if schedule.is_cut || (about.is_none() && !pass.has_room()) {
            break;
        }
        position += 1;
        let Some(candidate) = lookup.candidate(job) else { continue };
        match pass.judge(&candidate, about == Some(job)) {
            Verdict::Placed(placement) => {
                order.charge(candidate.owner, candidate.lasts * u32::from(candidate.resources.gpus));
                schedule.placements.push(placement);
            }
            // Whoever is ahead of the job that was asked about will be placed first, and be charged for it.
            Verdict::Waits if about.is_some() => {
                if pass.ahead.join(&candidate, &pass.places, rules, lookup, mono) {
                    order.charge(candidate.owner, candidate.lasts * u32::from(candidate.resources.gpus));
                }
            }
            Verdict::Waits => {}
            Verdict::Explained(limit, reasons) => {
                let never = fit::never(&candidate, &pass.places);
                let starts = pass.ahead.starts(&candidate, &pass.places, lookup, mono).filter(|_| limit.is_none());
                let expected = starts.map(|at| later(wall, at.saturating_sub(mono)));
                let Account { used, weight, load: _ } = lookup.user(candidate.owner);
                let owner = Some((Duration::from_millis(used), weight));
                schedule.why = Some(Why {
                    position,
                    limit,
                    machines: nodes.len(),
                    never,
                    nodes: reasons,
                    expected,
                    owner,
                    ..Why::default()
                });
            }
        }
        if about == Some(job) {
            break;
        }
    }
    schedule.victims = pass.victims;
    schedule
}

/// Of these jobs those that cannot start as machines and limits are, whoever makes room: what [`schedule`] says of one, without a walk
/// through the queue.
pub fn stuck<'a>(
    jobs: impl Iterator<Item = Candidate<'a>>,
    nodes: &[NodeView<'_>],
    rules: &Rules,
) -> BTreeMap<JobId, Why> {
    let places: Vec<_> = nodes.iter().map(Place::new).collect();
    // Jobs come in dozens of a kind, and each kind is held against every machine.
    let mut judged = BTreeMap::new();
    let judge = |candidate: Candidate<'_>| {
        let never = judged.entry(fit::Shape::of(&candidate)).or_insert_with(|| fit::never(&candidate, &places)).clone();
        let limit = too_large(&candidate, rules);
        let is_stuck = limit.is_some() || never.is_some() || places.is_empty();
        is_stuck.then(|| (candidate.job, Why { limit, machines: nodes.len(), never, ..Why::default() }))
    };
    jobs.filter_map(judge).collect()
}

/// A job that alone wants more than its owner may hold.
fn too_large(candidate: &Candidate<'_>, rules: &Rules) -> Option<Limit> {
    let wanted = u32::from(candidate.resources.gpus);
    rules.devices_per_user.filter(|most| wanted > *most).map(|most| Limit::TooLarge { wanted, most })
}

/// One walk through the queue.
struct Pass<'a, L> {
    lookup: &'a L,
    rules: &'a Rules,
    mono: Duration,
    places: Vec<Place<'a>>,
    best: Best,
    loads: BTreeMap<UserId, Load>,
    /// Of sweeps: their jobs that hold devices, with those placed in this pass.
    sweeps: BTreeMap<SweepId, u32>,
    /// Requests that no node can take in this pass: the same need not be tried again.
    hopeless: BTreeSet<fit::Shape>,
    /// Somebody has a reservation, or makes others leave: only the first who waits.
    head: bool,
    victims: Vec<AttemptId>,
    /// Who waits and goes before the job that was asked about.
    ahead: Ahead,
}

enum Verdict {
    Placed(Placement),
    Waits,
    Explained(Option<Limit>, Vec<(NodeId, String, WhyNot)>),
}

static NO_RULES: Rules =
    Rules { jobs_per_user: None, devices_per_user: None, preemption_margin: None, weights: BTreeMap::new() };

impl<'a, L: Lookup> Pass<'a, L> {
    fn default_for(lookup: &'a L) -> Self {
        Self {
            lookup,
            rules: &NO_RULES,
            mono: Duration::ZERO,
            places: Vec::new(),
            best: Best::default(),
            loads: BTreeMap::new(),
            sweeps: BTreeMap::new(),
            hopeless: BTreeSet::new(),
            head: false,
            victims: Vec::new(),
            ahead: Ahead::default(),
        }
    }

    /// Whether anything could still start, or make others leave.
    fn has_room(&self) -> bool {
        (!self.head && self.rules.preemption_margin.is_some()) || self.places.iter().any(Place::has_room)
    }

    fn judge(&mut self, candidate: &Candidate<'_>, explain: bool) -> Verdict {
        if let Some(limit) = self.limit(candidate) {
            return if explain { Verdict::Explained(Some(limit), Vec::new()) } else { Verdict::Waits };
        }
        let shape = fit::Shape::of(candidate);
        if !explain && self.hopeless.contains(&shape) {
            return Verdict::Waits;
        }
        let best = self.best.of(candidate, &shape, &self.places, self.mono);
        let fit = best.and_then(|index| Some((index, self.places[index].fit(candidate, self.mono).ok()?)));
        match fit {
            Some((index, fit)) => Verdict::Placed(self.place(candidate, index, fit)),
            None => {
                let reasons = explain.then(|| self.reasons(candidate));
                self.make_room(candidate);
                self.hopeless.insert(shape);
                reasons.map_or(Verdict::Waits, |reasons| Verdict::Explained(None, reasons))
            }
        }
    }

    fn place(&mut self, candidate: &Candidate<'_>, index: usize, fit: Fit) -> Placement {
        let place = &mut self.places[index];
        place.take(candidate, &fit, self.mono);
        self.best.changed(index);
        let load = self.loads.entry(candidate.owner).or_insert_with(|| self.lookup.user(candidate.owner).load);
        load.add(u32::from(candidate.resources.gpus));
        if let Some((sweep, _)) = candidate.sweep {
            *self.sweeps.entry(sweep).or_insert_with(|| self.lookup.placed_of(sweep)) += 1;
        }
        Placement { job: candidate.job, node: place.node.id, planned_bytes: fit.planned_bytes, devices: fit.devices }
    }

    fn limit(&mut self, candidate: &Candidate<'_>) -> Option<Limit> {
        let load = self.loads.get(&candidate.owner).copied().unwrap_or_else(|| self.lookup.user(candidate.owner).load);
        let devices = load.devices + u32::from(candidate.resources.gpus);
        let too_many_jobs = self.rules.jobs_per_user.filter(|most| load.jobs >= *most).map(Limit::Jobs);
        too_large(candidate, self.rules)
            .or(too_many_jobs)
            .or_else(|| self.rules.devices_per_user.filter(|most| devices > *most).map(Limit::Devices))
            .or_else(|| self.limit_of_sweep(candidate))
    }

    fn limit_of_sweep(&mut self, candidate: &Candidate<'_>) -> Option<Limit> {
        let (sweep, most) = candidate.sweep?;
        let placed = *self.sweeps.entry(sweep).or_insert_with(|| self.lookup.placed_of(sweep));
        (placed >= most).then_some(Limit::Sweep(most))
    }

    fn reasons(&self, candidate: &Candidate<'_>) -> Vec<(NodeId, String, WhyNot)> {
        let judged = self.places.iter().map(|place| (place, place.fit(candidate, self.mono)));
        judged.filter_map(|(place, fit)| Some((place.node.id, place.node.name.to_owned(), fit.err()?))).collect()
    }

    /// For the first that waits: a reservation, or attempts that leave for it.
    fn make_room(&mut self, candidate: &Candidate<'_>) {
        if self.head {
            return;
        }
        let nobodys = BTreeSet::new();
        let soonest = room::earliest(candidate, &self.places, &nobodys, self.lookup, self.mono);
        let Some(soonest) = soonest else { return };
        self.head = true;
        let margin = self.rules.preemption_margin;
        let forced = margin.and_then(|margin| room::victims(candidate, &self.places, self.lookup, margin));
        let room = match forced {
            Some((room, victims)) if room.starts < soonest.starts => {
                self.victims = victims;
                room
            }
            _ => soonest,
        };
        self.places[room.place].reserve(&room.devices, room.starts);
        self.best.changed(room.place);
    }
}
