//! What each device of a node is taken by: a list of attempts with their planned bytes. One that wants to be alone keeps others away.
//!
//! What a node says of its free memory does not hold what an attempt has yet to take, so the ledger remembers of each whether it was
//! there already: planned ─► loaded (it has made a step) ─► seen (the node has looked at its devices since). And until the node looks again,
//! it still holds what has been given back.

use lorikeet_protocol::id::{AttemptId, DeviceId};
use std::collections::BTreeMap;

/// One node's devices, as far as they are taken.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ledger {
    shares: BTreeMap<DeviceId, Vec<Share>>,
    /// Given back since the node has looked at its devices.
    left: BTreeMap<DeviceId, Vec<Share>>,
}

/// What one attempt takes of one device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// Which attempt.
    pub attempt: AttemptId,
    /// What its plan allows it.
    pub planned_bytes: u64,
    /// Whether it wants the device for itself.
    pub exclusive: bool,
    /// Where its memory is.
    pub memory: Memory,
}

/// How far an attempt has come to hold what it was planned with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Memory {
    /// It may hold nothing yet.
    Planned,
    /// It has made a step, and with it taken what it takes.
    Loaded,
    /// And that is in what its node said last of its devices.
    Seen,
}

impl Ledger {
    /// Devices are taken.
    pub fn take(&mut self, devices: &[DeviceId], share: Share) {
        for device in devices {
            self.shares.entry(device.clone()).or_default().push(share);
        }
    }

    /// And given back.
    pub fn release(&mut self, devices: &[DeviceId], attempt: AttemptId) {
        for device in devices {
            let Some(shares) = self.shares.get_mut(device) else { continue };
            let given_back = shares.extract_if(.., |share| share.attempt == attempt);
            self.left.entry(device.clone()).or_default().extend(given_back);
        }
        self.shares.retain(|_, shares| !shares.is_empty());
    }

    /// Who has a device.
    pub fn shares(&self, device: &DeviceId) -> &[Share] {
        self.shares.get(device).map_or(&[], Vec::as_slice)
    }

    /// Who has left it, and may yet be in what its node said last of its memory.
    pub fn left(&self, device: &DeviceId) -> &[Share] {
        self.left.get(device).map_or(&[], Vec::as_slice)
    }

    /// An attempt has made a step.
    pub(super) fn loaded(&mut self, attempt: AttemptId) {
        let shares = self.shares.values_mut().flatten().filter(|share| share.attempt == attempt);
        shares.filter(|share| share.memory == Memory::Planned).for_each(|share| share.memory = Memory::Loaded);
    }

    /// The node has looked at its devices.
    pub(super) fn looked(&mut self) {
        self.left.clear();
        let loaded = self.shares.values_mut().flatten().filter(|share| share.memory == Memory::Loaded);
        loaded.for_each(|share| share.memory = Memory::Seen);
    }

    /// Whoever wants to be alone is.
    pub(super) fn check_invariants(&self) {
        for (device, shares) in &self.shares {
            assert!(shares.len() == 1 || shares.iter().all(|share| !share.exclusive), "{device} is held twice");
        }
    }

    /// Everybody, with their devices.
    pub fn attempts(&self) -> BTreeMap<AttemptId, Vec<DeviceId>> {
        let mut attempts = BTreeMap::<_, Vec<_>>::new();
        for (device, shares) in &self.shares {
            shares.iter().for_each(|share| attempts.entry(share.attempt).or_default().push(device.clone()));
        }
        attempts
    }
}
