//! Devices that the config declares: for tests, and for trying a cluster on a machine without them. How they feel stands in files, and is
//! judged as what NVIDIA's library says is.

use super::{
    Look, Seen,
    health::{Health, Signs},
};
use crate::{
    config::Fake,
    host::{Drawn, Holders},
};
use lorikeet_protocol::{
    agent::{RemappedRows, Telemetry},
    id::{DeviceId, UnixMillis},
    job::{Device, DeviceKind},
};
use std::{collections::BTreeMap, path::Path};

/// What is remembered of them.
#[derive(Debug, Default)]
pub(super) struct Declared {
    health: Health,
    /// Of each, how many of its driver's reports were read.
    read: BTreeMap<DeviceId, usize>,
}

/// What one says of itself.
#[derive(Debug, Default, PartialEq, Eq)]
struct Feeling {
    gone: bool,
    reports: Vec<u64>,
    signs: Signs,
}

impl Declared {
    /// What was declared, all memory free, half busy.
    pub(super) fn look(&mut self, fakes: &[Fake], time: UnixMillis) -> Look {
        let mut look = Look { seen: Seen::default(), telemetry: Vec::new() };
        for fake in fakes {
            let feeling = fake.signs.as_deref().map(Feeling::read).unwrap_or_default();
            if !feeling.gone {
                self.one(fake, &feeling, time, &mut look);
            }
        }
        look
    }

    fn one(&mut self, fake: &Fake, feeling: &Feeling, time: UnixMillis, look: &mut Look) {
        let id = DeviceId(fake.id.clone());
        let read = self.read.entry(id.clone()).or_default();
        feeling.reports.iter().skip(*read).for_each(|xid| self.health.reported(&id, *xid));
        *read = feeling.reports.len();
        let healthy = self.health.judge(&id, feeling.signs, &mut look.seen.faults);
        let mut device = device(fake);
        device.usable = device.usable.and(healthy);
        look.seen.devices.push(device);
        look.seen.drawn.extend(fake.power_watts.map(|watts| (id.clone(), counter(watts, time))));
        look.seen.holders.insert(id, holders(fake));
        look.telemetry.push(feel(fake, feeling.signs, time));
    }
}

impl Feeling {
    /// A file that is not there says nothing; what is no sign is passed over.
    fn read(path: &Path) -> Self {
        let signs = Signs { uncorrected: Some(0), ..Signs::default() };
        let mut feeling = Self { signs, ..Self::default() };
        for line in std::fs::read_to_string(path).unwrap_or_default().lines() {
            match line.trim().split_once(' ').unwrap_or((line.trim(), "")) {
                ("gone", _) => feeling.gone = true,
                ("xid", number) => feeling.reports.extend(number.parse::<u64>().ok()),
                ("ecc", number) => feeling.signs.uncorrected = number.parse().ok(),
                ("remap", "pending") => feeling.signs.remap_pending = true,
                ("remap", "failed") => feeling.signs.remap_failed = true,
                _ => {}
            }
        }
        feeling
    }
}

/// As if it had been loaded in 1970: the same to every agent. A watt for a millisecond is a millijoule.
fn counter(watts: u32, time: UnixMillis) -> Drawn {
    Drawn::Counted(u64::from(watts).saturating_mul(time.0))
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

fn feel(fake: &Fake, signs: Signs, time: UnixMillis) -> Telemetry {
    let rows = RemappedRows { pending: signs.remap_pending, failed: signs.remap_failed, ..RemappedRows::default() };
    Telemetry {
        utilization_percent: Some(50.0),
        temperature_celsius: Some(40.0),
        power_watts: fake.power_watts.map(|watts| watts as f32),
        uncorrected_errors: signs.uncorrected,
        remapped_rows: fake.compute.map(|_| rows),
        ..Telemetry::new(DeviceId(fake.id.clone()), time, 0, fake.memory)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_declared_device_feels_what_its_file_says_and_each_report_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("signs");
        let fake = Fake {
            id: "GPU-a".into(),
            name: "declared".into(),
            memory: 1,
            compute: Some((9, 0)),
            unusable: None,
            held_by: None,
            signs: Some(path.clone()),
            power_watts: None,
        };
        let mut declared = Declared::default();
        let mut look = |text: &str| {
            std::fs::write(&path, text).unwrap();
            let seen = declared.look(std::slice::from_ref(&fake), UnixMillis(1)).seen;
            (seen.devices.len(), seen.faults.into_values().next())
        };
        assert_eq!(look(""), (1, None));
        assert!(matches!(look("xid 79\n"), (1, Some(fault)) if fault.contains("XID 79")));
        assert_eq!(look("xid 79\n"), (1, None), "it was read");
        assert!(matches!(look("xid 79\necc 2\n"), (1, Some(fault)) if fault.contains("2 memory errors")));
        assert_eq!(look("xid 79\necc 2\ngone\n"), (0, None));
    }
}
