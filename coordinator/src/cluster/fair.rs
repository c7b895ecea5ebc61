//! Fair share: device-seconds per user, halved every seven days, over the user's weight. Who has least of that goes first among equals
//! in priority, so that users who want more than there is come to device time as their weights are.
//!
//! What runs now counts as it runs: per user only the sum of devices and of devices × start is kept, so a look costs nothing
//! however much runs.

use super::Now;
use crate::record::Usage;
use lorikeet_protocol::id::{UnixMillis, UserId};
use std::{collections::BTreeMap, time::Duration};

/// After this time use counts half.
const HALF_LIFE: Duration = Duration::from_secs(7 * 86_400);

/// Everybody's use.
#[derive(Debug, Default)]
pub(super) struct FairShare {
    past: BTreeMap<UserId, Usage>,
    live: BTreeMap<UserId, Load>,
}

/// What a user has now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Load {
    /// Jobs that hold devices.
    pub jobs: u32,
    /// Devices they hold.
    pub devices: u32,
    /// Σ devices × start, in milliseconds.
    started: u128,
}

/// A user, as far as the scheduler goes by it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Account {
    /// What they have now.
    pub load: Load,
    /// The device-milliseconds that count against them.
    pub used: u64,
    /// Their part of the devices, beside 1 for everybody whom the config does not name.
    pub weight: f64,
}

impl Account {
    /// What decides, once so many device-milliseconds more are given to them.
    pub(super) fn standing(&self, more: u64) -> u64 {
        (self.used.saturating_add(more) as f64 / self.weight) as u64
    }
}

impl Load {
    /// One job more, in a schedule that is being made.
    pub(super) fn add(&mut self, devices: u32) {
        self.jobs += 1;
        self.devices += devices;
    }
}

impl FairShare {
    pub(super) fn new(past: Vec<Usage>) -> Self {
        Self { past: past.into_iter().map(|usage| (usage.user, usage)).collect(), live: BTreeMap::new() }
    }

    /// A job got devices.
    pub(super) fn take(&mut self, user: UserId, devices: u32, since: Duration) {
        let load = self.live.entry(user).or_default();
        load.jobs += 1;
        load.devices += devices;
        load.started += u128::from(devices) * since.as_millis();
    }

    /// And gave them back; answers the user's new row when `held` counts.
    pub(super) fn release(
        &mut self,
        user: UserId,
        devices: u32,
        since: Duration,
        held: Duration,
        now: Now,
    ) -> Option<Usage> {
        if let Some(load) = self.live.get_mut(&user) {
            load.jobs -= 1;
            load.devices -= devices;
            load.started -= u128::from(devices) * since.as_millis();
        }
        (held > Duration::ZERO).then(|| {
            let used = decayed(self.past.get(&user), now.wall) + held.as_millis() as u64 * u64::from(devices);
            let usage = Usage { user, device_millis: used, at: now.wall };
            self.past.insert(user, usage);
            usage
        })
    }

    /// What a user has now.
    pub(super) fn load(&self, user: UserId) -> Load {
        self.live.get(&user).copied().unwrap_or_default()
    }

    /// Device-milliseconds, with what runs now.
    pub(super) fn used(&self, user: UserId, now: Now) -> u64 {
        let load = self.load(user);
        let running = (u128::from(load.devices) * now.mono.as_millis()).saturating_sub(load.started);
        decayed(self.past.get(&user), now.wall).saturating_add(u64::try_from(running).unwrap_or(u64::MAX))
    }
}

fn decayed(usage: Option<&Usage>, now: UnixMillis) -> u64 {
    usage.map_or(0, |usage| {
        let age = now.0.saturating_sub(usage.at.0) as f64;
        (usage.device_millis as f64 * (-age / HALF_LIFE.as_millis() as f64).exp2()) as u64
    })
}
