//! What a device says of itself, as datagrams say it from `lorikeet-control/4` on. Before that it was [`former::Telemetry`](super::former::Telemetry).

use super::former;
use crate::id::{DeviceId, UnixMillis};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// One device at one moment; sent as a datagram of at most 1,100 bytes, and losing one is fine. What the device does not say is absent,
/// never 0.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Telemetry {
    /// Which device.
    pub device: DeviceId,
    /// By the node's clock.
    pub time: UnixMillis,
    /// Memory in use, by anybody.
    pub used_bytes: u64,
    /// Memory in all.
    pub memory_bytes: u64,
    /// 0–100; a MIG instance does not say.
    pub utilization_percent: Option<f32>,
    /// Of the chip.
    pub temperature_celsius: Option<f32>,
    /// Drawn now.
    pub power_watts: Option<f32>,
    /// Of its multiprocessors, now.
    pub sm_clock_mhz: Option<u32>,
    /// Of its memory, now.
    pub memory_clock_mhz: Option<u32>,
    /// Why the clocks are lower than they could be; an empty set: nothing holds them back.
    pub throttle_reasons: Option<BTreeSet<ThrottleReason>>,
    /// Memory errors since the last reset that were corrected.
    pub corrected_errors: Option<u64>,
    /// Memory errors since the last reset that were not.
    pub uncorrected_errors: Option<u64>,
    /// Rows of its memory that were replaced.
    pub remapped_rows: Option<RemappedRows>,
    /// Who else computes on it than workers of this node; absent where they cannot be told apart.
    pub foreign: Option<Foreign>,
}

/// Why a GPU's clocks are lower than they could be, in NVML's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ThrottleReason {
    /// Nothing runs on it.
    GpuIdle,
    /// Somebody set the clocks.
    ApplicationsClocksSetting,
    /// The power limit.
    SwPowerCap,
    /// Heat or power, seen by the hardware.
    HwSlowdown,
    /// A slower GPU of its group.
    SyncBoost,
    /// Heat, seen by the driver.
    SwThermalSlowdown,
    /// Heat, seen by the hardware.
    HwThermalSlowdown,
    /// The machine's power supply asks for it.
    HwPowerBrakeSlowdown,
    /// A display.
    DisplayClockSetting,
}

/// Faulty rows of a GPU's memory, over its life.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemappedRows {
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
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Foreign {
    /// How many.
    pub processes: u32,
    /// What they hold of its memory, as far as the driver says.
    pub bytes: u64,
}

impl Telemetry {
    /// Of a device that says no more than this.
    pub fn new(device: DeviceId, time: UnixMillis, used_bytes: u64, memory_bytes: u64) -> Self {
        Self {
            device,
            time,
            used_bytes,
            memory_bytes,
            utilization_percent: None,
            temperature_celsius: None,
            power_watts: None,
            sm_clock_mhz: None,
            memory_clock_mhz: None,
            throttle_reasons: None,
            corrected_errors: None,
            uncorrected_errors: None,
            remapped_rows: None,
            foreign: None,
        }
    }
}

impl From<former::Telemetry> for Telemetry {
    fn from(said: former::Telemetry) -> Self {
        Self {
            utilization_percent: Some(said.utilization_percent),
            temperature_celsius: said.temperature_celsius,
            power_watts: said.power_watts,
            ..Self::new(said.device, said.time, said.used_bytes, said.memory_bytes)
        }
    }
}

impl From<&Telemetry> for former::Telemetry {
    /// It has no word for a utilisation that is not known.
    fn from(said: &Telemetry) -> Self {
        Self {
            device: said.device.clone(),
            time: said.time,
            utilization_percent: said.utilization_percent.unwrap_or(0.0),
            used_bytes: said.used_bytes,
            memory_bytes: said.memory_bytes,
            temperature_celsius: said.temperature_celsius,
            power_watts: said.power_watts,
        }
    }
}
