//! Checkpoints on their way to the coordinator: one at a time, in the order in which they were made.
//!
//! While one is going at most two wait, the newest best and the newest other: a newer one makes an older one needless.

use super::Action;
use lorikeet_protocol::{agent::CheckpointKind, id::AttemptId};
use std::collections::VecDeque;

/// A checkpoint that the worker made.
#[derive(Debug, Clone, PartialEq)]
pub struct CheckpointMade {
    /// The event's `seq`.
    pub seq: u64,
    /// After this step.
    pub step: u64,
    /// The loss of that step.
    pub loss: f64,
    /// Why.
    pub kind: CheckpointKind,
    /// Its folder, relative to the attempt directory.
    pub path: String,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Uploads {
    going: Option<u64>,
    waiting: VecDeque<CheckpointMade>,
}

impl Uploads {
    /// A new one waits, and leaves at once where none is going.
    pub(super) fn add(&mut self, id: AttemptId, made: CheckpointMade, out: &mut Vec<Action>) {
        let best = made.kind == CheckpointKind::Best;
        self.waiting.retain(|older| (older.kind == CheckpointKind::Best) != best);
        self.waiting.push_back(made);
        self.next(id, out);
    }

    /// The one with this `seq` is through, one way or the other; whether it was the one going.
    pub(super) fn through(&mut self, id: AttemptId, seq: u64, out: &mut Vec<Action>) -> bool {
        let ours = self.going == Some(seq);
        if ours {
            self.going = None;
            self.next(id, out);
        }
        ours
    }

    /// Whether nothing is on its way.
    pub(super) fn is_idle(&self) -> bool {
        self.going.is_none()
    }

    fn next(&mut self, id: AttemptId, out: &mut Vec<Action>) {
        if self.going.is_none() {
            let made = self.waiting.pop_front();
            self.going = made.as_ref().map(|made| made.seq);
            out.extend(made.map(|made| Action::UploadCheckpoint(id, made)));
        }
    }

    pub(super) fn check_invariants(&self) {
        assert!(self.waiting.len() <= 2);
        assert!(self.waiting.is_empty() || self.going.is_some());
        assert!(self.waiting.iter().map(|made| made.seq).is_sorted());
    }
}
