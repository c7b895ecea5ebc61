//! GPUs that were here and are not named any more: a card that fell off its bus is found by its absence alone.
//!
//! One look says little, for a driver may be busy; a GPU that several looks in a row miss has vanished, and what ran on it has no device.
//! It stays on the list, so that a person sees what is missing, until it is back or the agent starts anew.

use super::Seen;
use lorikeet_protocol::{
    id::DeviceId,
    job::{Device, DeviceKind},
};
use std::collections::BTreeMap;

/// Looks in a row that miss a GPU before it has vanished: at the default pace a quarter of a minute.
const LOOKS: u32 = 3;

/// Missing GPUs that are kept in mind: as many as a machine has. A card that is cut into other parts again and again leaves names behind.
const MISSING: usize = 16;

/// Which GPUs were seen, and by how many looks in a row each was missed.
#[derive(Debug, Default)]
pub(super) struct Roll {
    known: BTreeMap<DeviceId, (Device, u32)>,
}

impl Roll {
    /// Calls the roll: who is missing joins the devices as unusable, and who has vanished with this look joins the faults.
    pub(super) fn call(&mut self, seen: &mut Seen) {
        self.known.values_mut().for_each(|(_, missed)| *missed += 1);
        for device in seen.devices.iter().filter(|device| matches!(device.kind, DeviceKind::Cuda { .. })) {
            self.known.insert(device.id.clone(), (device.clone(), 0));
        }
        self.forget_the_longest_missing();
        for (id, (device, missed)) in self.known.iter().filter(|(_, (_, missed))| *missed > 0) {
            let usable = Err("it is missing: its driver does not name it any more".to_owned());
            seen.devices.push(Device { usable, free_bytes: 0, ..device.clone() });
            if *missed == LOOKS {
                seen.faults.insert(id.clone(), "it vanished: its driver does not name it any more".into());
            }
        }
    }

    /// Those that no test can reach.
    pub(super) fn missing(&self) -> impl Iterator<Item = &DeviceId> {
        self.known.iter().filter(|(_, (_, missed))| *missed > 0).map(|(id, _)| id)
    }

    /// Whether a GPU was missed so few times that its driver may only have been busy.
    pub(super) fn may_return(&self, device: &DeviceId) -> bool {
        self.known.get(device).is_some_and(|(_, missed)| (1..LOOKS).contains(missed))
    }

    /// Whether a GPU has been missed so often that it is not expected back.
    pub(super) fn has_vanished(&self, device: &DeviceId) -> bool {
        self.known.get(device).is_some_and(|(_, missed)| *missed >= LOOKS)
    }

    fn forget_the_longest_missing(&mut self) {
        while self.missing().count() > MISSING {
            let longest = self.known.iter().max_by_key(|(_, (_, missed))| *missed).map(|(id, _)| id.clone());
            longest.and_then(|id| self.known.remove(&id));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gpu_has_vanished_when_three_looks_in_a_row_miss_it_and_that_is_said_once() {
        let mut roll = Roll::default();
        let mut look = |names: &[&str]| {
            let mut seen = Seen { devices: names.iter().map(|name| gpu(name)).collect(), ..Seen::default() };
            roll.call(&mut seen);
            let usable = seen.devices.iter().filter(|device| device.usable.is_ok()).count();
            (seen.devices.len(), usable, seen.faults.len())
        };
        assert_eq!(look(&["a", "b"]), (2, 2, 0));
        assert_eq!([look(&["a"]), look(&["a"]), look(&["a", "b"])], [(2, 1, 0), (2, 1, 0), (2, 2, 0)], "it was busy");
        assert_eq!([look(&["a"]), look(&["a"]), look(&["a"])], [(2, 1, 0), (2, 1, 0), (2, 1, 1)]);
        assert_eq!([look(&["a"]), look(&["a", "b"])], [(2, 1, 0), (2, 2, 0)]);
    }

    #[test]
    fn names_that_a_card_no_longer_has_do_not_pile_up() {
        let mut roll = Roll::default();
        for number in 0..100 {
            let mut seen = Seen { devices: vec![gpu(&format!("MIG-{number}"))], ..Seen::default() };
            roll.call(&mut seen);
            assert!(seen.devices.len() <= MISSING + 1, "{}", seen.devices.len());
        }
        assert_eq!(roll.missing().last().map(|id| id.0.as_str()), Some("MIG-98"), "the latest is still missed");
    }

    fn gpu(name: &str) -> Device {
        Device {
            id: DeviceId(name.into()),
            name: "NVIDIA H200".into(),
            kind: DeviceKind::Cuda { compute: (9, 0), driver: None },
            memory_bytes: 10,
            free_bytes: 10,
            usable: Ok(()),
        }
    }
}
