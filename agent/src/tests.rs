//! The whole agent against the stand-in coordinator and the stand-in worker: real sockets, real processes, a real disk.

#![expect(clippy::wildcard_enum_match_arm, reason = "a test names what it looks for")]

mod absence;
mod attempt;
mod full_disk;
mod scene;
mod speechless;
mod start;

use super::*;
use crate::{
    config::{Choice, Devices, Fake},
    host::tests::offer_on,
    link::stand_in::{Coordinator, Manner, Peer, Shelf, attempt, welcome, within},
    supervisor::stand_in::{End, Script, goes},
};
use lorikeet_protocol::{
    agent::{
        Checkpoint, CheckpointKind, Ended, FromAgent, Hello, Offer, Report, ReportBody, StopHow, ToAgent, Verdict,
        Welcome,
    },
    blob::Refusal,
    id::AttemptId,
    job::{AttemptPhase, FailureClass, Outcome, StopCause},
    worker::{EventLine, HOLDER, Holder, LOCK, WorkerEvent},
};
use scene::*;
use std::{path::Path, time::Duration};
