//! Devices that the config declares: for tests, and for trying a cluster on a machine without them.

use super::Look;
use crate::config::Fake;
use lorikeet_protocol::{
    agent::Telemetry,
    id::{DeviceId, UnixMillis},
    job::{Device, DeviceKind},
};

/// What was declared, all memory free, half busy.
pub(super) fn look(fakes: &[Fake], time: UnixMillis) -> Look {
    Look { devices: fakes.iter().map(device).collect(), telemetry: fakes.iter().map(|fake| feel(fake, time)).collect() }
}

fn device(fake: &Fake) -> Device {
    Device {
        id: DeviceId(fake.id.clone()),
        name: fake.name.clone(),
        kind: fake.compute.map_or(DeviceKind::Cpu, |compute| DeviceKind::Cuda { compute }),
        memory_bytes: fake.memory,
        free_bytes: fake.memory,
        usable: fake.unusable.clone().map_or(Ok(()), Err),
    }
}

fn feel(fake: &Fake, time: UnixMillis) -> Telemetry {
    Telemetry {
        device: DeviceId(fake.id.clone()),
        time,
        utilization_percent: 50.0,
        used_bytes: 0,
        memory_bytes: fake.memory,
        temperature_celsius: Some(40.0),
        power_watts: None,
    }
}
