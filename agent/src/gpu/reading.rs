//! Everything that a GPU says of itself, for a person who asks: `lorikeet doctor`. The agent's own looks take what they need of it.

use super::nvml;
use nvml_wrapper::error::NvmlError;
use serde::Serialize;

/// One card. What it does not say is absent.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Reading {
    /// Its UUID.
    pub id: String,
    /// What it is called.
    pub name: String,
    /// 0–100.
    pub utilization_percent: Option<u32>,
    /// In all.
    pub memory_bytes: u64,
    /// In nobody's use.
    pub free_bytes: u64,
    /// Of the chip.
    pub temperature_celsius: Option<u32>,
    /// Drawn now.
    pub power_watts: Option<f64>,
    /// Drawn at most.
    pub power_limit_watts: Option<f64>,
    /// Of its processors, now.
    pub clock_mhz: Option<u32>,
    /// Of its processors, at most.
    pub most_clock_mhz: Option<u32>,
    /// Why the clock is lower than it could be.
    pub held_back: Vec<&'static str>,
    /// Memory errors since the last reset that could not be corrected.
    pub uncorrected_errors: Option<u64>,
    /// A faulty row of memory is replaced at the next reset.
    pub remap_pending: Option<bool>,
    /// A faulty row of memory could not be replaced.
    pub remap_failed: Option<bool>,
    /// Drawn since the driver was loaded.
    pub energy_kwh: Option<f64>,
    /// Who computes on it.
    pub processes: Vec<u32>,
    /// UUIDs of the parts that it is cut into.
    pub instances: Vec<String>,
}

/// What the driver's library says.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Driver {
    /// Its version, `580.95.05`.
    pub version: Option<String>,
    /// Cards that answer.
    pub gpus: Vec<Reading>,
    /// Why others do not.
    pub faults: Vec<String>,
}

/// Why the driver's library says nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Silence {
    /// There is no such library.
    Absent,
    /// It is there and cannot be used, and why.
    Unusable(String),
}

/// Asks.
pub fn readings() -> Result<Driver, Silence> {
    let silence = |error: NvmlError| {
        let is_absent = matches!(error, NvmlError::LibloadingError(_));
        if is_absent { Silence::Absent } else { Silence::Unusable(error.to_string()) }
    };
    let gpus = nvml::Gpus::open(Ok(())).map_err(silence)?;
    let mut driver = Driver { version: gpus.driver(), gpus: Vec::new(), faults: Vec::new() };
    for reading in gpus.readings() {
        match reading {
            Ok(reading) => driver.gpus.push(reading),
            Err(fault) => driver.faults.push(fault),
        }
    }
    Ok(driver)
}
