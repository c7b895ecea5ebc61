//! What of an attempt outlives the agent: enough to take it up again, and no more. One JSON file each, kept by `records`.

use super::Account;
use lorikeet_protocol::{
    agent::{Offer, StopHow},
    id::{AttemptId, BootId, DeviceId, UnixMillis},
    job::{AttemptPhase, StopCause},
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, sync::Arc, time::Duration};

/// One attempt, between two lives of the agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// What is to be done.
    #[serde(with = "shared")]
    pub offer: Arc<Offer>,
    /// The furthest phase that was reported.
    pub phase: AttemptPhase,
    /// When it was accepted, by the wall clock.
    pub accepted_wall: UnixMillis,
    /// The boot in which the two times below mean something.
    pub boot: BootId,
    /// When it was accepted, since boot.
    pub accepted: Duration,
    /// When its worker was first seen to hold the lock, since boot.
    pub running: Option<Duration>,
    /// Whether a worker was ever started: from then on its lock and its events tell the truth.
    pub spawned: bool,
    /// Bytes in use of each of its devices when its worker was started, where that was known.
    #[serde(default)]
    pub used_before: BTreeMap<DeviceId, u64>,
    /// What its devices drew for it; none where an agent began it that did not know, for then the rest would look like the whole.
    #[serde(default)]
    pub energy: Option<Account>,
    /// Whether it was asked to stop.
    pub stop: Option<(StopHow, StopCause)>,
    /// Which of its devices failed by its driver's own word, and how: that is what the attempt ends of, whatever its worker says.
    pub device_fault: Option<String>,
    /// The `seq` of the last checkpoint event that was dealt with.
    pub checkpoints_through: u64,
    /// The `seq` of the last event seen.
    pub last_event: u64,
    /// The `seq` up to which the coordinator keeps its events.
    pub events_through: u64,
}

impl Record {
    /// Whose.
    pub fn id(&self) -> AttemptId {
        self.offer.attempt
    }
}

/// An `Arc` as what is in it.
mod shared {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};
    use std::sync::Arc;

    pub(super) fn serialize<T: Serialize, S: Serializer>(value: &Arc<T>, serializer: S) -> Result<S::Ok, S::Error> {
        T::serialize(value, serializer)
    }

    pub(super) fn deserialize<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Arc<T>, D::Error> {
        T::deserialize(deserializer).map(Arc::new)
    }
}
