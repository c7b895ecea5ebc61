//! Devices that the config declares: for tests, and for trying a cluster on a machine without them.

use super::{Look, Seen};
use crate::{config::Fake, host::Holders};
use lorikeet_protocol::{
    agent::Telemetry,
    id::{DeviceId, UnixMillis},
    job::{Device, DeviceKind},
};

/// What was declared, all memory free, half busy.
pub(super) fn look(fakes: &[Fake], time: UnixMillis) -> Look {
    let devices = fakes.iter().map(device).collect();
    let holders = fakes.iter().map(|fake| (DeviceId(fake.id.clone()), holders(fake))).collect();
    Look { seen: Seen { devices, holders }, telemetry: fakes.iter().map(|fake| feel(fake, time)).collect() }
}

fn holders(fake: &Fake) -> Holders {
    let text = fake.held_by.as_ref().and_then(|path| std::fs::read_to_string(path).ok()).unwrap_or_default();
    text.lines().filter_map(|line| Some((line.trim().parse().ok()?, None))).collect()
}

fn device(fake: &Fake) -> Device {
    Device {
        id: DeviceId(fake.id.clone()),
        name: fake.name.clone(),
        kind: fake.compute.map_or(DeviceKind::Cpu, |compute| DeviceKind::Cuda { compute, driver: None }),
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
