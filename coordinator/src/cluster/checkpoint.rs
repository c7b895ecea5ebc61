//! Checkpoints: which one the next attempt goes on from, and which are kept.
//!
//! The pointer to the latest moves only under the current token, and only forward. A worker that passed it over (its files were damaged on
//! that machine: they were whole when they came here) begins below it, and what it saves counts for the next attempt once it has come as
//! far again. Kept are the last three, the best and the final one and, as long as the job goes on, the one that the pointer names; of a
//! job that is over the last instead of three. The rows of the others stay, marked, and their files go with the next sweep.

use super::{Action, Cluster, Now, command::put_job, job::LiveJob, put};
use crate::record::{Job, Record, StoredCheckpoint};
use lorikeet_protocol::{
    agent::{Checkpoint, CheckpointKind},
    id::AttemptId,
};

/// Enough to go back behind a bad stretch; more would fill the disk.
const KEPT: usize = 3;
/// Of a job that is over: nobody goes on from it, but somebody may want to look.
const KEPT_AT_THE_END: usize = 1;

impl Cluster {
    pub(super) fn checkpointed(
        &mut self,
        attempt: AttemptId,
        checkpoint: Checkpoint,
        current: bool,
        now: Now,
        out: &mut Vec<Action>,
    ) {
        let Some(job) = self.jobs.get_mut(&attempt.job) else { return };
        // The row of a step that the job may go on from stays as it is, whatever is heard late.
        if !current
            && job.checkpoints.iter().any(|row| row.attempt == attempt && row.checkpoint.step == checkpoint.step)
        {
            return;
        }
        let twin = |row: &&StoredCheckpoint| row.attempt == attempt && row.checkpoint.step == checkpoint.step;
        let kind = job
            .checkpoints
            .iter()
            .find(twin)
            .map_or(checkpoint.kind, |row| weightier(row.checkpoint.kind, checkpoint.kind));
        let checkpoint = Checkpoint { kind, ..checkpoint };
        job.checkpoints.retain(|row| !twin(&row));
        let row = StoredCheckpoint {
            attempt,
            owner: job.record.owner,
            checkpoint: checkpoint.clone(),
            at: now.wall,
            orphan: !current,
            removed_at: None,
        };
        out.push(put(Record::Checkpoint(row.clone())));
        let is_ahead = job.record.checkpoint.as_ref().is_none_or(|latest| latest.step <= checkpoint.step);
        if current && is_ahead && checkpoint.step <= job.record.last_step() {
            job.record.checkpoint = Some(checkpoint);
            job.record.infrastructure_failures = 0;
            job.record.blamed.clear();
            put_job(&job.record, out);
        }
        if current {
            job.checkpoints.push(row);
            out.extend(job.thin_checkpoints(KEPT, now).map(|row| put(Record::Checkpoint(row))));
            let node = job.node();
            node.into_iter().for_each(|node| self.praise(node, now, out));
        }
    }
}

/// Two of one step are one row: the reason that keeps it longer counts.
fn weightier(one: CheckpointKind, other: CheckpointKind) -> CheckpointKind {
    let weight = |kind| match kind {
        CheckpointKind::Periodic => 0,
        CheckpointKind::Emergency => 1,
        CheckpointKind::Best => 2,
        CheckpointKind::Final => 3,
    };
    if weight(one) > weight(other) { one } else { other }
}

impl Job {
    /// Its last step, as it was planned or as its worker counts. A checkpoint beyond it would be gone on from for ever.
    fn last_step(&self) -> u64 {
        let planned = self.findings.as_ref().map(|findings| findings.total_steps);
        let counted = self.progress.map(|progress| progress.total_steps);
        planned.into_iter().chain(counted).max().unwrap_or(u64::MAX)
    }
}

impl LiveJob {
    /// The job is over: takes out what nobody needs any more.
    pub(super) fn last_checkpoints(&mut self, now: Now, out: &mut Vec<Action>) {
        out.extend(self.thin_checkpoints(KEPT_AT_THE_END, now).map(|row| put(Record::Checkpoint(row))));
    }

    /// Takes out those that newer ones replace; so many of the newest stay, with the best, the final one and the one to go on from.
    fn thin_checkpoints(&mut self, kept: usize, now: Now) -> impl Iterator<Item = StoredCheckpoint> + use<> {
        let newest = |kind| self.checkpoints.iter().rposition(|row| row.checkpoint.kind == kind);
        let next = self.record.checkpoint.as_ref().filter(|_| self.record.completed_at.is_none());
        let next = next.and_then(|next| self.checkpoints.iter().rposition(|row| row.checkpoint.step == next.step));
        let marked = [newest(CheckpointKind::Best), newest(CheckpointKind::Final), next];
        let recent = self.checkpoints.len().saturating_sub(kept);
        let mut index = 0;
        let stays = |_: &mut StoredCheckpoint| {
            index += 1;
            index > recent || marked.contains(&Some(index - 1))
        };
        let mut stays = stays;
        let gone: Vec<_> = self.checkpoints.extract_if(.., |row| !stays(row)).collect();
        gone.into_iter().map(move |row| StoredCheckpoint { removed_at: Some(now.wall), ..row })
    }
}
