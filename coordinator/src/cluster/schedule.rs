//! Which attempt goes on which devices, and why the others wait: a pure function of queue and nodes.
//!
//! Order: priority, then age. A job takes the node where it fits best: a bonus where base model and dataset already lie, then the
//! least free memory that suffices. A dry run asks the same function, so its answer is the one `job why` would give.

use lorikeet_protocol::{
    id::{AttemptId, DeviceId, Hash, JobId, NodeId, UnixMillis},
    job::{Device, DeviceKind, GpuRequest, Resources},
};
use std::collections::{BTreeMap, BTreeSet};

/// A job that could start now.
#[derive(Debug, Clone)]
pub struct Candidate<'a> {
    /// Which.
    pub job: JobId,
    /// Higher goes first.
    pub priority: u8,
    /// Older goes first.
    pub since: UnixMillis,
    /// What it needs.
    pub resources: &'a Resources,
    /// Planned memory on a CPU slot.
    pub cpu_bytes: u64,
    /// Planned memory on a GPU.
    pub cuda_bytes: u64,
    /// The files it reads: near them is better.
    pub files: Vec<Hash>,
    /// Nodes that it failed on last: tried only when no other fits.
    pub avoid: BTreeSet<NodeId>,
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
    /// What is placed on each device, with its planned bytes.
    pub ledger: BTreeMap<DeviceId, Vec<(AttemptId, u64)>>,
    /// Files in its cache.
    pub cached: &'a BTreeSet<Hash>,
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

/// Why a node does not take a job.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WhyNot {
    /// Its agent is not connected.
    Unreachable,
    /// A person or a fault has closed it.
    Quarantined(String),
    /// It lacks a label.
    Label {
        /// Which.
        key: String,
        /// What it would have to be.
        value: String,
    },
    /// None of its devices is of the kind asked for.
    NoSuchDevice,
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
    },
    /// It could take the job, and a job before this one got it.
    Outrun,
}

/// Why a job waits.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Why {
    /// Place in the queue, from 1.
    pub position: usize,
    /// One reason per node.
    pub nodes: Vec<(NodeId, String, WhyNot)>,
}

/// What follows from queue and nodes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Schedule {
    /// What starts.
    pub placements: Vec<Placement>,
    /// What waits, and why.
    pub waiting: BTreeMap<JobId, Why>,
}

/// Places what can be placed, best first.
pub fn schedule(mut queue: Vec<Candidate<'_>>, nodes: &[NodeView<'_>]) -> Schedule {
    queue.sort_by_key(|candidate| (std::cmp::Reverse(candidate.priority), candidate.since, candidate.job));
    let mut taken: BTreeSet<(NodeId, DeviceId)> = BTreeSet::new();
    let mut schedule = Schedule::default();
    for (index, candidate) in queue.iter().enumerate() {
        let judged: Vec<_> = nodes.iter().map(|node| (node, fit(candidate, node, &taken))).collect();
        match judged
            .iter()
            .filter_map(|(node, fit)| Some((*node, fit.as_ref().ok()?)))
            .max_by_key(|(node, fit)| rank(candidate, node, fit))
        {
            Some((node, fit)) => {
                taken.extend(fit.devices.iter().map(|device| (node.id, device.clone())));
                schedule.placements.push(Placement {
                    job: candidate.job,
                    node: node.id,
                    devices: fit.devices.clone(),
                    planned_bytes: fit.planned_bytes,
                });
            }
            None => {
                let nodes = judged
                    .into_iter()
                    .filter_map(|(node, fit)| Some((node.id, node.name.to_owned(), fit.err()?)))
                    .collect();
                schedule.waiting.insert(candidate.job, Why { position: index + 1, nodes });
            }
        }
    }
    schedule
}

struct Fit {
    devices: Vec<DeviceId>,
    planned_bytes: u64,
    free_bytes: u64,
}

/// Better is greater: not blamed, then near the files, then the tightest fit; the id decides between equals.
fn rank(candidate: &Candidate<'_>, node: &NodeView<'_>, fit: &Fit) -> (bool, usize, std::cmp::Reverse<u64>, NodeId) {
    let near = candidate.files.iter().filter(|file| node.cached.contains(file)).count();
    (!candidate.avoid.contains(&node.id), near, std::cmp::Reverse(fit.free_bytes), node.id)
}

/// The devices of this node that the job would get, or the reason that speaks most against it.
fn fit(candidate: &Candidate<'_>, node: &NodeView<'_>, taken: &BTreeSet<(NodeId, DeviceId)>) -> Result<Fit, WhyNot> {
    if let Some(reason) = &node.closed {
        return Err(reason.clone());
    }
    if let Some((key, value)) =
        candidate.resources.labels.iter().find(|(key, value)| node.labels.get(*key) != Some(value))
    {
        return Err(WhyNot::Label { key: key.clone(), value: value.clone() });
    }
    let matching: Vec<_> = node.devices.iter().filter(|device| matches(&candidate.resources.gpu, device)).collect();
    let wanted = usize::from(candidate.resources.gpus);
    if matching.len() < wanted {
        return Err(WhyNot::NoSuchDevice);
    }
    let usable: Vec<_> = matching.iter().filter(|device| device.usable.is_ok()).copied().collect();
    if usable.len() < wanted {
        let reason = matching.iter().find_map(|device| device.usable.clone().err()).unwrap_or_default();
        return Err(WhyNot::Unusable(reason));
    }
    let idle: Vec<_> =
        usable.iter().filter(|device| node.ledger.get(&device.id).is_none_or(Vec::is_empty)).copied().collect();
    if idle.len() < wanted {
        return Err(WhyNot::Busy);
    }
    let open: Vec<_> = idle.iter().filter(|device| !taken.contains(&(node.id, device.id.clone()))).copied().collect();
    if open.len() < wanted {
        return Err(WhyNot::Outrun);
    }
    tightest(candidate, &open, wanted)
}

/// The fitting devices with the least free memory; GPUs before the CPU slot.
fn tightest(candidate: &Candidate<'_>, open: &[&Device], wanted: usize) -> Result<Fit, WhyNot> {
    let mut fitting: Vec<_> = open.iter().filter(|device| device.free_bytes >= needed(candidate, device)).collect();
    if fitting.len() < wanted {
        let roomiest = open.iter().max_by_key(|device| device.free_bytes);
        let (needed_bytes, free_bytes) =
            roomiest.map_or((0, 0), |device| (needed(candidate, device), device.free_bytes));
        return Err(WhyNot::Memory { needed_bytes, free_bytes });
    }
    fitting.sort_by_key(|device| (device.kind == DeviceKind::Cpu, device.free_bytes, device.id.clone()));
    fitting.truncate(wanted);
    Ok(Fit {
        planned_bytes: fitting.iter().map(|device| needed(candidate, device)).max().unwrap_or(0),
        free_bytes: fitting.iter().map(|device| device.free_bytes).sum(),
        devices: fitting.into_iter().map(|device| device.id.clone()).collect(),
    })
}

fn needed(candidate: &Candidate<'_>, device: &Device) -> u64 {
    match device.kind {
        DeviceKind::Cpu => candidate.cpu_bytes,
        DeviceKind::Cuda { .. } => candidate.cuda_bytes,
    }
}

fn matches(request: &GpuRequest, device: &Device) -> bool {
    match request {
        GpuRequest::Any => true,
        GpuRequest::Named(name) => device.name.to_lowercase().contains(&name.to_lowercase()),
        GpuRequest::Least { min_memory_bytes, min_compute } => match device.kind {
            DeviceKind::Cpu => false,
            DeviceKind::Cuda { compute } => {
                min_memory_bytes.is_none_or(|bytes| device.memory_bytes >= bytes)
                    && min_compute.is_none_or(|least| compute >= least)
            }
        },
    }
}
