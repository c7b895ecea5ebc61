//! The core, event by event, one file a theme. [`Scene`](scene::Scene) holds a host and a clock, checks the invariants after every
//! event and loops records and reports back the way the driver does.

#![expect(clippy::wildcard_enum_match_arm, reason = "a test names what it looks for")]

mod any_order;
mod checkpoint;
mod ending;
mod energy;
mod forgetting;
mod offer;
mod order;
mod quarantine;
mod restart;
mod scene;

use super::*;
use lorikeet_protocol::{
    agent::{Checkpoint, CheckpointKind, Ended, Metered, ReportBody},
    file::{FileManifest, NamedFile},
    id::{AttemptToken, DeviceId, Hash, JobId, NodeId, UnixMillis},
    job::{
        AttemptPhase, BaseDtype, DataFilter, DeviceKind, Every, FailureClass, GpuRequest, JobSpec, Lora, Method,
        MicroTokens, OnLost, Policy, Prefer, Resources, Schedule, Supervise, Task, Train, Training, TrainingLength,
    },
    worker::{EventLine, Exit, Plan, Step, WorkerEvent},
};
use scene::*;

pub(crate) use scene::offer_on;
