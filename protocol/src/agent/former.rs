//! Messages as they were said before: a peer of an older conversation says and reads these, and their bytes never change.

use crate::id::{DeviceId, UnixMillis};
use serde::{Deserialize, Serialize};

/// A datagram until `lorikeet-control/3`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Telemetry {
    /// Which device.
    pub device: DeviceId,
    /// By the node's clock.
    pub time: UnixMillis,
    /// 0–100; 0 also where the device did not say.
    pub utilization_percent: f32,
    /// Memory in use, by anybody.
    pub used_bytes: u64,
    /// Memory in all.
    pub memory_bytes: u64,
    /// Where the device says.
    pub temperature_celsius: Option<f32>,
    /// Where the device says.
    pub power_watts: Option<f32>,
}
