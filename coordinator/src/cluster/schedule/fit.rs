//! Whether a job fits on a node, on which of its devices, and if not, why not.

use super::{Candidate, NodeView};
use crate::cluster::ledger::{Memory, Share};
use lorikeet_protocol::{
    id::{DeviceId, NodeId},
    job::{Device, DeviceKind, Driver, GpuRequest, Resources},
};
use std::{cmp::Reverse, time::Duration};

/// Why a node does not take a job.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WhyNot {
    /// Its agent is not connected.
    Unreachable,
    /// A person or a fault has closed it.
    Quarantined(String),
    /// It takes nothing new: a person wants it so.
    Cordoned,
    /// What is on it is to leave, and nothing new comes.
    Draining,
    /// It is closed, as this says, and its agent is not connected either: opening it is not enough.
    ClosedAndAway(Box<WhyNot>),
    /// It lacks a label.
    Label {
        /// Which.
        key: String,
        /// What it would have to be.
        value: String,
    },
    /// None of its devices is of the kind asked for: what the one that comes nearest lacks.
    NoSuchDevice(Lack),
    /// None of them is large enough for the plan, whoever left.
    TooSmall {
        /// What the plan needs.
        needed_bytes: u64,
        /// What the largest of them has in all.
        memory_bytes: u64,
    },
    /// Of the devices that will do it has fewer than one job asks for.
    TooFew {
        /// Asked for.
        wanted: usize,
        /// Here.
        there: usize,
    },
    /// Its program cannot train on them.
    Unusable(String),
    /// They are taken.
    Busy,
    /// They have too little free memory.
    Memory {
        /// What the plan needs.
        needed_bytes: u64,
        /// What the best device has.
        free_bytes: u64,
        /// How long ago its node said so, where that is longer than it should be.
        stale: Option<Duration>,
    },
    /// It could take the job, and a job before this one got it.
    Outrun,
    /// They are kept for a job before this one, which would have to wait for it.
    Reserved,
    /// It has GPUs only, and those do not train what this setting asks for.
    CpuOnly(String),
}

/// What a device lacks of what a job needs, in the order in which it is looked at: the last is the nearest miss.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Lack {
    /// There is none.
    Device,
    /// It is no GPU.
    Gpu,
    /// This is not in its name.
    Name(String),
    /// It has less memory than was asked for.
    Memory {
        /// Asked for.
        least_bytes: u64,
        /// Here.
        bytes: u64,
    },
    /// Its compute capability is lower.
    Compute {
        /// Asked for.
        least: (u8, u8),
        /// Here.
        has: (u8, u8),
    },
    /// Its driver is older, or does not say how old it is.
    Driver {
        /// Asked for.
        least: Driver,
        /// Here.
        has: Option<Driver>,
    },
}

impl WhyNot {
    /// How much of its node would have to be another one, least first.
    fn distance(&self) -> (u8, u64) {
        match self {
            Self::TooSmall { needed_bytes, memory_bytes } => (0, needed_bytes.saturating_sub(*memory_bytes)),
            Self::TooFew { wanted, there } => (1, wanted.saturating_sub(*there) as u64),
            Self::CpuOnly(_) => (2, 0),
            Self::NoSuchDevice(Lack::Driver { .. }) => (3, 0),
            Self::NoSuchDevice(Lack::Compute { .. }) => (4, 0),
            Self::NoSuchDevice(Lack::Memory { least_bytes, bytes }) => (5, least_bytes.saturating_sub(*bytes)),
            Self::NoSuchDevice(Lack::Name(_)) => (6, 0),
            Self::NoSuchDevice(Lack::Gpu) => (7, 0),
            Self::NoSuchDevice(Lack::Device) => (8, 0),
            Self::Label { .. } => (9, 0),
            Self::Unreachable
            | Self::Quarantined(_)
            | Self::Cordoned
            | Self::Draining
            | Self::ClosedAndAway(_)
            | Self::Unusable(_)
            | Self::Busy
            | Self::Memory { .. }
            | Self::Outrun
            | Self::Reserved => (u8::MAX, 0),
        }
    }
}

/// Where no node can ever take a job as they are, the one of which the least would have to be another.
pub(super) fn never(candidate: &Candidate<'_>, places: &[Place<'_>]) -> Option<(NodeId, String, WhyNot)> {
    let why = |place: &Place<'_>| Some((place.node.id, place.node.name.to_owned(), place.never(candidate)?));
    let all = places.iter().map(why).collect::<Option<Vec<_>>>()?;
    all.into_iter().min_by_key(|(id, _, why)| (why.distance(), *id))
}

/// An agent says every minute how much of its devices is free, and at once when one of its attempts has left one: after three it should have.
const STALE: Duration = Duration::from_secs(180);

/// What an attempt may take beyond its plan: an allocator rounds up, and a driver's context is never as large as the last one's. Where somebody
/// else has so little, a device is kept once for a job that then does not fit.
const BEYOND_PLAN: u64 = 1 << 30;

/// How much a node is liked for a job, more being greater: not blamed, then rather wanted, then near the files, then the tightest fit;
/// the id decides between equals.
pub(super) type Rank = (bool, usize, usize, Reverse<u64>, NodeId);

/// What makes two requests the same for a node.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Shape(String, (Option<&'static str>, bool), u64, u64, Duration);

impl Shape {
    pub(super) fn of(candidate: &Candidate<'_>) -> Self {
        // What it would rather have keeps it from no node.
        let Resources { gpus, gpu, min_driver, labels, prefer: _, exclusive, max_runtime: _ } = candidate.resources;
        let request = format!("{gpus} {gpu:?} {min_driver:?} {labels:?} {exclusive}");
        let kind = (candidate.cpu_only, candidate.gpu_only);
        Self(request, kind, candidate.cpu_bytes, candidate.cuda_bytes, candidate.lasts)
    }
}

/// Devices of one node that a job would get.
#[derive(Debug)]
pub(super) struct Fit {
    pub(super) devices: Vec<DeviceId>,
    pub(super) planned_bytes: u64,
    /// How many of them are such as the job would rather have.
    preferred: usize,
    free_bytes: u64,
}

/// A node in the course of a pass.
pub(super) struct Place<'a> {
    pub(super) node: &'a NodeView<'a>,
    pub(super) slots: Vec<Slot<'a>>,
}

/// A device in the course of a pass.
pub(super) struct Slot<'a> {
    pub(super) device: &'a Device,
    /// Bytes that nobody uses or has planned.
    free_bytes: u64,
    /// Bytes that are not ours and stay when ours leave: at least, and at most. What of ours has not been seen on it yet may be in what is
    /// in use, or not; what is beyond a plan may be ours too, and what has just left may be in it still.
    foreign_bytes: (u64, u64),
    state: SlotState,
    /// When those leave it that got it in this pass; nothing: nobody did.
    until: Option<Duration>,
    /// Kept from this moment on for somebody else.
    reserved: Option<Duration>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SlotState {
    Idle,
    /// Others are on it, and do not mind.
    Shared,
    Taken,
    /// Taken in this pass.
    Outrun,
}

impl<'a> Place<'a> {
    pub(super) fn new(node: &'a NodeView<'a>) -> Self {
        let slot = |device: &'a Device| {
            let shares = node.ledger.shares(&device.id);
            let planned = |of: fn(&&Share) -> bool| shares.iter().filter(of).map(|share| share.planned_bytes).sum();
            let (all, unseen): (u64, u64) = (planned(|_| true), planned(|share| share.memory != Memory::Seen));
            let state = match shares {
                [] => SlotState::Idle,
                shares if shares.iter().any(|share| share.exclusive) => SlotState::Taken,
                _ => SlotState::Shared,
            };
            // Of the live figure goes what has not been taken yet; and what of ours takes less than its plan may yet take all of it. What
            // then is still too much for the device, its agent knows and declines.
            let free_bytes = device.free_bytes.saturating_sub(unseen).min(device.memory_bytes.saturating_sub(all));
            let used = device.memory_bytes.saturating_sub(device.free_bytes);
            let ours = shares.iter().chain(node.ledger.left(&device.id));
            let ours = ours.fold(0, |sum: u64, share| sum.saturating_add(share.planned_bytes + BEYOND_PLAN));
            let foreign_bytes = (used.saturating_sub(ours), used.saturating_sub(all - unseen));
            Slot { device, free_bytes, foreign_bytes, state, until: None, reserved: None }
        };
        Self { node, slots: node.devices.iter().map(slot).collect() }
    }

    /// Whether anything at all could start here.
    pub(super) fn has_room(&self) -> bool {
        let open =
            |slot: &Slot<'_>| matches!(slot.state, SlotState::Idle | SlotState::Shared) && slot.device.usable.is_ok();
        self.node.closed.is_none() && self.slots.iter().any(open)
    }

    /// Devices that suit the request, whoever has them; or why none can be had.
    pub(super) fn suitable(&self, candidate: &Candidate<'_>) -> Result<Vec<usize>, WhyNot> {
        match &self.node.closed {
            Some(reason) => Err(reason.clone()),
            None => self.able(candidate),
        }
    }

    /// Why this node can never take the job as it is, open or closed. One that has not told what it has may be able to.
    fn never(&self, candidate: &Candidate<'_>) -> Option<WhyNot> {
        let unable = self.able(candidate).err().filter(|_| self.node.is_known)?;
        // What is out may come back.
        (!matches!(unable, WhyNot::Unusable(_))).then_some(unable)
    }

    fn able(&self, candidate: &Candidate<'_>) -> Result<Vec<usize>, WhyNot> {
        let labels = &candidate.resources.labels;
        if let Some((key, value)) = labels.iter().find(|(key, value)| self.node.labels.get(*key) != Some(value)) {
            return Err(WhyNot::Label { key: key.clone(), value: value.clone() });
        }
        let wanted = usize::from(candidate.resources.gpus);
        let mut suitable = Vec::new();
        let (mut unusable, mut cpu_only, mut largest) = (None, None, None);
        let mut lack = Lack::Device;
        for (index, slot) in self.slots.iter().enumerate() {
            if let Some(lacks) = lacks(candidate, slot.device) {
                lack = lack.max(lacks);
                continue;
            }
            if let (Some(setting), DeviceKind::Cuda { .. }) = (candidate.cpu_only, slot.device.kind) {
                cpu_only = Some(setting);
                continue;
            }
            let needs = needed(candidate, slot.device);
            if needs > slot.device.memory_bytes {
                largest = largest.max(Some((slot.device.memory_bytes, needs)));
                continue;
            }
            match &slot.device.usable {
                Ok(()) => suitable.push(index),
                Err(reason) => unusable = unusable.or(Some(reason)),
            }
        }
        match (unusable, largest) {
            _ if suitable.len() >= wanted => Ok(suitable),
            (Some(reason), _) => Err(WhyNot::Unusable(reason.clone())),
            _ if !suitable.is_empty() => Err(WhyNot::TooFew { wanted, there: suitable.len() }),
            (None, Some((memory_bytes, needed_bytes))) => Err(WhyNot::TooSmall { needed_bytes, memory_bytes }),
            (None, None) => {
                Err(cpu_only.map_or(WhyNot::NoSuchDevice(lack), |setting: &str| WhyNot::CpuOnly(setting.into())))
            }
        }
    }

    /// The devices that the job would get now, or the reason that speaks most against it.
    pub(super) fn fit(&self, candidate: &Candidate<'_>, now: Duration) -> Result<Fit, WhyNot> {
        let wanted = usize::from(candidate.resources.gpus);
        let mut open = self.suitable(candidate)?;
        open.retain(|index| self.slots[*index].state != SlotState::Taken);
        let alone = candidate.resources.exclusive;
        open.retain(|index| !alone || self.slots[*index].state != SlotState::Shared);
        if open.len() < wanted {
            return Err(WhyNot::Busy);
        }
        open.retain(|index| self.slots[*index].state != SlotState::Outrun);
        if open.len() < wanted {
            return Err(WhyNot::Outrun);
        }
        let ends = now + candidate.lasts;
        open.retain(|index| self.slots[*index].reserved.is_none_or(|from| ends <= from));
        if open.len() < wanted {
            return Err(WhyNot::Reserved);
        }
        self.tightest(candidate, open, wanted)
    }

    /// The fitting devices with the least free memory; GPUs before the CPU slot.
    fn tightest(&self, candidate: &Candidate<'_>, open: Vec<usize>, wanted: usize) -> Result<Fit, WhyNot> {
        let slots = || open.iter().map(|index| &self.slots[*index]);
        let mut fitting: Vec<_> = slots().filter(|slot| slot.free_bytes >= needed(candidate, slot.device)).collect();
        if fitting.len() < wanted {
            // of so many devices the one with the least room decides
            let mut roomiest: Vec<_> = slots().collect();
            roomiest.sort_by_key(|slot| Reverse(slot.free_bytes));
            let (needed_bytes, free_bytes) =
                roomiest.get(wanted - 1).map_or((0, 0), |slot| (needed(candidate, slot.device), slot.free_bytes));
            let stale = Some(self.node.devices_age).filter(|age| *age > STALE);
            return Err(WhyNot::Memory { needed_bytes, free_bytes, stale });
        }
        let worse = |device: &Device| !is_preferred(candidate.resources, device);
        fitting.sort_by_key(|slot| {
            (worse(slot.device), slot.device.kind == DeviceKind::Cpu, slot.free_bytes, &slot.device.id)
        });
        fitting.truncate(wanted);
        Ok(Fit {
            preferred: fitting.iter().filter(|slot| !worse(slot.device)).count(),
            planned_bytes: fitting.iter().map(|slot| needed(candidate, slot.device)).max().unwrap_or(0),
            free_bytes: fitting.iter().map(|slot| slot.free_bytes).sum(),
            devices: fitting.into_iter().map(|slot| slot.device.id.clone()).collect(),
        })
    }

    pub(super) fn rank(&self, candidate: &Candidate<'_>, fit: &Fit) -> Rank {
        let labels = candidate.resources.prefer.labels.iter();
        let wanted = fit.preferred + labels.filter(|(key, value)| self.node.labels.get(*key) == Some(value)).count();
        let near = candidate.files.iter().filter(|file| self.node.cached.contains(file)).count();
        (!candidate.avoid.contains(&self.node.id), wanted, near, Reverse(fit.free_bytes), self.node.id)
    }

    pub(super) fn take(&mut self, candidate: &Candidate<'_>, fit: &Fit, now: Duration) {
        for slot in self.slots.iter_mut().filter(|slot| fit.devices.contains(&slot.device.id)) {
            slot.free_bytes = slot.free_bytes.saturating_sub(fit.planned_bytes);
            slot.state = if candidate.resources.exclusive { SlotState::Outrun } else { SlotState::Shared };
            slot.until = slot.until.max(Some(now.saturating_add(candidate.lasts)));
        }
    }

    /// Keeps devices for somebody from a moment on.
    pub(super) fn reserve(&mut self, devices: &[usize], from: Duration) {
        devices.iter().for_each(|index| self.slots[*index].reserved = Some(from));
    }

    /// Whether a device may do once what we have on it is gone. What is in use there and not ours stays: a reservation would keep everybody
    /// out and let nobody in.
    pub(super) fn would_do(&self, index: usize, candidate: &Candidate<'_>) -> bool {
        let (least, _) = self.slots[index].foreign_bytes;
        self.holds_beside(index, least, candidate)
    }

    /// Whether it will, as far as is known: who is asked to leave for less would come back, and be asked again.
    pub(super) fn will_do(&self, index: usize, candidate: &Candidate<'_>) -> bool {
        let (_, most) = self.slots[index].foreign_bytes;
        self.holds_beside(index, most, candidate)
    }

    fn holds_beside(&self, index: usize, foreign_bytes: u64, candidate: &Candidate<'_>) -> bool {
        let device = self.slots[index].device;
        needed(candidate, device).saturating_add(foreign_bytes) <= device.memory_bytes
    }

    /// When those leave a device that got it in this pass, if somebody did.
    pub(super) fn until(&self, index: usize) -> Option<Duration> {
        self.slots[index].until
    }
}

fn needed(candidate: &Candidate<'_>, device: &Device) -> u64 {
    match device.kind {
        DeviceKind::Cpu => candidate.cpu_bytes,
        DeviceKind::Cuda { .. } => candidate.cuda_bytes,
    }
}

fn lacks(candidate: &Candidate<'_>, device: &Device) -> Option<Lack> {
    if candidate.gpu_only && device.kind == DeviceKind::Cpu {
        return Some(Lack::Gpu);
    }
    let resources = candidate.resources;
    let driver = match device.kind {
        DeviceKind::Cpu => None,
        DeviceKind::Cuda { driver, .. } => driver,
    };
    let old = resources.min_driver.filter(|least| driver.is_none_or(|has| has < *least));
    lacks_of(&resources.gpu, device).or_else(|| old.map(|least| Lack::Driver { least, has: driver }))
}

fn is_preferred(resources: &Resources, device: &Device) -> bool {
    resources.prefer.gpu.as_ref().is_some_and(|wanted| lacks_of(wanted, device).is_none())
}

fn lacks_of(request: &GpuRequest, device: &Device) -> Option<Lack> {
    match request {
        GpuRequest::Any => None,
        GpuRequest::Named(name) => {
            (!device.name.to_lowercase().contains(&name.to_lowercase())).then(|| Lack::Name(name.clone()))
        }
        GpuRequest::Least { min_memory_bytes, min_compute } => match device.kind {
            DeviceKind::Cpu => Some(Lack::Gpu),
            DeviceKind::Cuda { compute: has, .. } => {
                let bytes = device.memory_bytes;
                let small = min_memory_bytes.filter(|least| bytes < *least);
                let small = small.map(|least_bytes| Lack::Memory { least_bytes, bytes });
                let old = min_compute.filter(|least| has < *least).map(|least| Lack::Compute { least, has });
                small.or(old)
            }
        },
    }
}
