//! `/api/nodes`: machines with an agent, and their devices.

use crate::timestamp::Timestamp;
use lorikeet_protocol::{
    agent::{Foreign, RemappedRows, Telemetry, ThrottleReason},
    id::{AttemptId, DeviceId, NodeId},
    job::DeviceKind,
};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    ops::RangeInclusive,
};
use utoipa::ToSchema;

/// A machine with an agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Node {
    /// `node_…`
    #[schema(value_type = String)]
    pub id: NodeId,
    /// Its host name, or what its config says.
    pub name: String,
    /// Whether it is heard.
    pub status: NodeStatus,
    /// Why it takes nothing new, if it does not.
    #[serde(default)]
    pub reason: Option<String>,
    /// Of its agent, while it is connected.
    pub version: Option<String>,
    /// From its config.
    pub labels: BTreeMap<String, String>,
    /// What it can train on.
    pub devices: Vec<DeviceView>,
    /// Its cache, while it is connected.
    #[serde(default)]
    pub cache: Option<NodeCache>,
    /// What became of what ran there when it was drained last; until it is opened again.
    #[serde(default)]
    pub drain: Option<NodeDrain>,
    /// When it joined.
    pub joined_at: Timestamp,
    /// When it was last heard, as far as this coordinator remembers.
    pub last_seen: Option<Timestamp>,
    /// Since when its lease is over.
    pub unreachable_since: Option<Timestamp>,
}

/// What a node said of its cache; bytes since its agent started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeCache {
    /// Base models' and datasets' files in it.
    pub files: usize,
    /// Where it gives them to other nodes; null: it does not.
    pub gives_at: Option<String>,
    /// Received from the coordinator.
    pub from_coordinator_bytes: u64,
    /// Received from other nodes.
    pub from_nodes_bytes: u64,
    /// Given to other nodes.
    pub to_nodes_bytes: u64,
}

/// The report of a drain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeDrain {
    /// When it was ordered.
    pub started_at: Timestamp,
    /// What has not left by then is stopped.
    pub until: Timestamp,
    /// When the last had left, or the time was up; null: it goes on.
    pub ended_at: Option<Timestamp>,
    /// What ran there, as far as it exists for the caller.
    pub attempts: Vec<DrainedAttempt>,
}

impl NodeDrain {
    /// Whether it is over and nothing of it is there any more.
    pub fn is_done(&self) -> bool {
        self.ended_at.is_some() && self.attempts.iter().all(|attempt| attempt.left_at.is_some())
    }
}

/// What became of an attempt whose node was drained.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct DrainedAttempt {
    /// Which.
    #[schema(value_type = String)]
    pub attempt: AttemptId,
    /// What became of it.
    pub result: DrainResult,
    /// The step that its job goes on from; null: from the start, or it is over.
    pub checkpoint_step: Option<u64>,
    /// When it had left; null: it is still there.
    pub left_at: Option<Timestamp>,
}

/// What becomes of an attempt whose node is drained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum DrainResult {
    /// It was asked to save its state and leave.
    Leaving,
    /// It has, and its job waits to go on from its last step.
    Saved,
    /// It has left without that; its job goes on from the checkpoint before.
    Requeued,
    /// Its job ended, or a person took it from the queue.
    Over,
    /// It had not left in time and was stopped as it was.
    Stopped,
}

/// Whether a node is heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum NodeStatus {
    /// Connected, lease valid.
    Online,
    /// Silent; its attempts are still believed alive.
    Unreachable,
    /// Not connected, and nothing runs there.
    Offline,
    /// It takes nothing new: a person wants it so.
    Cordoned,
    /// What is there saves its state and goes elsewhere.
    Draining,
    /// Its key is on two machines, or jobs end badly on it: it takes nothing until a person has seen to it.
    Quarantined,
}

/// Seconds that a drain may take.
pub const DRAIN_WITHIN: RangeInclusive<u64> = 1..=86_400;

/// `POST /api/nodes/{id}/drain`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DrainNode {
    /// What has not left by then is stopped; ten minutes when not given.
    pub within_seconds: Option<u64>,
}

/// One GPU, or a machine's CPU slot.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct DeviceView {
    /// `GPU-…` or `cpu`.
    #[schema(value_type = String)]
    pub id: DeviceId,
    /// `NVIDIA H200`, or the processor's name.
    pub name: String,
    /// GPU or CPU.
    pub kind: DeviceClass,
    /// Compute capability of a GPU: `9.0`.
    pub compute: Option<String>,
    /// A GPU's driver: `580.65.06`.
    #[serde(default)]
    pub driver: Option<String>,
    /// Memory in all.
    pub memory_bytes: u64,
    /// Memory nobody uses.
    pub free_bytes: u64,
    /// Why it cannot be trained on; null: it can.
    pub unusable: Option<String>,
    /// What runs there.
    #[schema(value_type = Vec<String>)]
    pub attempts: Vec<AttemptId>,
    /// What it said of itself last, while its node is connected; not kept.
    #[serde(default)]
    pub telemetry: Option<DeviceTelemetry>,
}

/// A device at one moment; null is what it does not say.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct DeviceTelemetry {
    /// By the node's clock.
    pub time: Timestamp,
    /// 0–100.
    pub utilization_percent: Option<f32>,
    /// Memory in use, by anybody.
    pub used_bytes: u64,
    /// Of the chip.
    pub temperature_celsius: Option<f32>,
    /// Drawn now.
    pub power_watts: Option<f32>,
    /// Of its multiprocessors, now.
    #[serde(default)]
    pub sm_clock_mhz: Option<u32>,
    /// Of its memory, now.
    #[serde(default)]
    pub memory_clock_mhz: Option<u32>,
    /// Why the clocks are lower than they could be, in NVML's words (`sw_power_cap`); empty: nothing holds them back.
    #[serde(default)]
    #[schema(value_type = Option<Vec<String>>)]
    pub throttle_reasons: Option<BTreeSet<ThrottleReason>>,
    /// Memory errors since its last reset that were corrected.
    #[serde(default)]
    pub corrected_errors: Option<u64>,
    /// Memory errors since its last reset that were not.
    #[serde(default)]
    pub uncorrected_errors: Option<u64>,
    /// Faulty rows of its memory.
    #[serde(default)]
    pub remapped_rows: Option<DeviceRows>,
    /// Processes on it that are no workers of its node.
    #[serde(default)]
    pub foreign: Option<DeviceForeign>,
}

/// Faulty rows of a GPU's memory, over its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct DeviceRows {
    /// Replaced after errors that were corrected.
    pub corrected: u32,
    /// Replaced after errors that were not.
    pub uncorrected: u32,
    /// One waits for the next reset.
    pub pending: bool,
    /// One could not be replaced.
    pub failed: bool,
}

/// Processes on a device that are no workers of its node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct DeviceForeign {
    /// How many.
    pub processes: u32,
    /// What they hold of its memory, as far as its driver says.
    pub bytes: u64,
}

impl From<Telemetry> for DeviceTelemetry {
    fn from(said: Telemetry) -> Self {
        Self {
            time: Timestamp(said.time),
            utilization_percent: said.utilization_percent,
            used_bytes: said.used_bytes,
            temperature_celsius: said.temperature_celsius,
            power_watts: said.power_watts,
            sm_clock_mhz: said.sm_clock_mhz,
            memory_clock_mhz: said.memory_clock_mhz,
            throttle_reasons: said.throttle_reasons,
            corrected_errors: said.corrected_errors,
            uncorrected_errors: said.uncorrected_errors,
            remapped_rows: said.remapped_rows.map(Into::into),
            foreign: said.foreign.map(Into::into),
        }
    }
}

impl From<RemappedRows> for DeviceRows {
    fn from(rows: RemappedRows) -> Self {
        let RemappedRows { corrected, uncorrected, pending, failed } = rows;
        Self { corrected, uncorrected, pending, failed }
    }
}

impl From<Foreign> for DeviceForeign {
    fn from(Foreign { processes, bytes }: Foreign) -> Self {
        Self { processes, bytes }
    }
}

/// GPU or CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum DeviceClass {
    /// The processor.
    Cpu,
    /// An NVIDIA GPU.
    Cuda,
}

impl From<DeviceKind> for DeviceClass {
    fn from(kind: DeviceKind) -> Self {
        match kind {
            DeviceKind::Cpu => Self::Cpu,
            DeviceKind::Cuda { .. } => Self::Cuda,
        }
    }
}
