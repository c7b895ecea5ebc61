//! What goes before a job that somebody asks about: the devices that jobs ahead of it in line will take, for how long nobody knows.

use super::{
    Candidate, Lookup, Rules,
    fit::Place,
    room::{self, Spot},
};
use lorikeet_protocol::id::{SweepId, UserId};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

/// Looks at nodes and devices: some milliseconds. Who has more of them ahead than that is told no moment.
const LOOKS: usize = 1 << 14;

/// Those who go first, as many at once as their limits allow: of a thousand jobs of a sweep that may hold one device, one takes a device.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    spoken_for: BTreeSet<Spot>,
    /// Of each owner, jobs and their devices.
    owners: BTreeMap<UserId, (u32, u32)>,
    sweeps: BTreeMap<SweepId, u32>,
    looked: usize,
}

impl Ahead {
    /// It takes the devices that are free for it soonest; false: there are none, or its limits let others of its owner go first.
    pub(super) fn join(
        &mut self,
        candidate: &Candidate<'_>,
        places: &[Place<'_>],
        rules: &Rules,
        lookup: &impl Lookup,
        now: Duration,
    ) -> bool {
        if self.is_too_long() || !self.lets(candidate, rules) {
            return false;
        }
        self.looked += places.iter().map(|place| 1 + place.slots.len()).sum::<usize>();
        let Some(room) = room::earliest(candidate, places, &self.spoken_for, lookup, now) else { return false };
        self.spoken_for.extend(room.devices.into_iter().map(|index| (room.place, index)));
        let (jobs, devices) = self.owners.entry(candidate.owner).or_default();
        (*jobs, *devices) = (*jobs + 1, *devices + u32::from(candidate.resources.gpus));
        if let Some((sweep, _)) = candidate.sweep {
            *self.sweeps.entry(sweep).or_default() += 1;
        }
        true
    }

    /// When devices are free for the job that was asked about, as far as that can be known.
    pub(super) fn starts(
        &self,
        candidate: &Candidate<'_>,
        places: &[Place<'_>],
        lookup: &impl Lookup,
        now: Duration,
    ) -> Option<Duration> {
        let room = room::earliest(candidate, places, &self.spoken_for, lookup, now);
        room.filter(|_| !self.is_too_long()).map(|room| room.starts)
    }

    fn is_too_long(&self) -> bool {
        self.looked > LOOKS
    }

    /// Whether its limits let it hold devices beside those that are here already.
    fn lets(&self, candidate: &Candidate<'_>, rules: &Rules) -> bool {
        let (jobs, devices) = self.owners.get(&candidate.owner).copied().unwrap_or_default();
        let wanted = devices + u32::from(candidate.resources.gpus);
        let of_sweep = |sweep| self.sweeps.get(&sweep).copied().unwrap_or(0);
        rules.jobs_per_user.is_none_or(|most| jobs < most)
            && rules.devices_per_user.is_none_or(|most| wanted <= most)
            && candidate.sweep.is_none_or(|(sweep, most)| of_sweep(sweep) < most)
    }
}
