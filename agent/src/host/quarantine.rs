//! Devices whose memory a dead worker of ours still holds.
//!
//! ```text
//! worker gone ─► remembered with its devices ─► holds nothing at a look: forgotten
//!                                    │
//!                                    └► holds memory at a look, `release_grace` later: the device is out until it does not
//! ```
//! What somebody else holds is only memory that is not free. An agent that restarts has forgotten its dead: what they hold
//! then lowers the free memory, and no more.

use lorikeet_protocol::{
    id::{AttemptId, DeviceId},
    job::Device,
};
use std::{collections::BTreeMap, time::Duration};

/// One look at the devices.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Seen {
    /// As the driver offers them.
    pub devices: Vec<Device>,
    /// Which processes hold memory of which.
    pub holders: BTreeMap<DeviceId, Vec<u32>>,
}

/// The dead that may still hold something.
#[derive(Debug, Default)]
pub(super) struct Quarantine {
    dead: Vec<Dead>,
}

#[derive(Debug)]
struct Dead {
    attempt: AttemptId,
    pid: u32,
    device: DeviceId,
    since: Duration,
}

impl Quarantine {
    /// A worker is gone; these were its devices.
    pub(super) fn bury(&mut self, attempt: AttemptId, pid: u32, devices: &[DeviceId], since: Duration) {
        let dead = |device: &DeviceId| Dead { attempt, pid, device: device.clone(), since };
        self.dead.extend(devices.iter().map(dead));
    }

    /// The devices as they may be offered.
    pub(super) fn judge(&mut self, seen: Seen, grace: Duration, now: Duration) -> Vec<Device> {
        let Seen { mut devices, holders } = seen;
        self.dead.retain(|dead| holders.get(&dead.device).is_some_and(|pids| pids.contains(&dead.pid)));
        for dead in self.dead.iter().filter(|dead| now.saturating_sub(dead.since) >= grace) {
            let held = devices.iter_mut().filter(|device| device.id == dead.device && device.usable.is_ok());
            held.for_each(|device| device.usable = Err(dead.words()));
        }
        devices
    }
}

impl Dead {
    fn words(&self) -> String {
        format!("quarantined: its memory is still held by process {}, the dead worker of {}", self.pid, self.attempt)
    }
}
