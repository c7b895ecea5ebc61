//! Events in, actions out: the core's rules, one sentence each.

use super::{
    command::Query,
    job::{Failure, JobState, Obstacle},
    *,
};
use crate::access::{Actor, Idempotency, Role};
use lorikeet_protocol::{
    agent::*,
    file::{FileManifest, NamedFile},
    id::*,
    inspect::{DatasetFindings, Fault, Inspection, JobFindings},
    job::*,
};
use proptest::prelude::*;
use schedule::{Lack, Limit, Rules, WhyNot};
use std::collections::BTreeSet;

mod access;
mod attempt;
mod base;
mod blame;
mod checkpoint;
mod conversation;
mod depend;
mod inputs;
mod job;
mod life;
mod model;
mod node;
mod pass;
mod queue;
mod restored;
mod retention;
mod room;
mod rotation;
mod share;
mod silence;
mod sweep;
mod world;
