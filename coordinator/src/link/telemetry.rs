//! The newest word of each device about itself: in memory, never through `Cluster`, gone with the session it came in.

use lorikeet_protocol::{
    agent::Telemetry,
    id::{DeviceId, NodeId},
};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Devices of one node: datagrams cost the sender nothing, memory does.
const DEVICES: usize = 64;

/// What every device said last; cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Newest(Arc<Mutex<BTreeMap<NodeId, BTreeMap<DeviceId, Telemetry>>>>);

impl Newest {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<NodeId, BTreeMap<DeviceId, Telemetry>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the devices of a node said last.
    pub fn of(&self, node: NodeId) -> BTreeMap<DeviceId, Telemetry> {
        self.lock().get(&node).cloned().unwrap_or_default()
    }

    /// Datagrams may overtake each other: an older one is dropped.
    pub(super) fn hear(&self, node: NodeId, said: Telemetry) {
        let mut nodes = self.lock();
        let devices = nodes.entry(node).or_default();
        let known = devices.get(&said.device);
        if known.map_or(devices.len() < DEVICES, |known| known.time <= said.time) {
            devices.insert(said.device.clone(), said);
        }
    }

    pub(super) fn forget(&self, node: NodeId) {
        self.lock().remove(&node);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lorikeet_protocol::id::UnixMillis;

    #[test]
    fn a_datagram_that_was_overtaken_changes_nothing() {
        let (newest, node) = (Newest::default(), NodeId(uuid::Uuid::nil()));
        let said = |time, used_bytes| Telemetry::new(DeviceId::cpu(), UnixMillis(time), used_bytes, 10);
        for (time, used) in [(2, 20), (1, 10), (3, 30)] {
            newest.hear(node, said(time, used));
        }
        assert_eq!(newest.of(node), BTreeMap::from([(DeviceId::cpu(), said(3, 30))]));
        newest.forget(node);
        assert_eq!(newest.of(node), BTreeMap::new());
    }
}
