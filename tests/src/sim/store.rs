//! The coordinator's virtual disk: rows by their keys, as redb would keep them, and nothing of a batch that was not committed.

use lorikeet_coordinator::{
    cluster::Loaded,
    record::{
        Attempt, Base, Dataset, Job, JoinSecret, Model, Node, Orphan, Record, Replay, StoredCheckpoint, Sweep, Token,
        Usage, User,
    },
};
use lorikeet_protocol::id::{
    AttemptId, AttemptToken, BaseId, DatasetId, Hash, JobId, ModelId, NodeId, SweepId, TokenId, UnixMillis, UserId,
};
use std::collections::BTreeMap;

/// What is durable.
#[derive(Debug, Default)]
pub(super) struct Store {
    users: BTreeMap<UserId, User>,
    tokens: BTreeMap<TokenId, Token>,
    secrets: BTreeMap<Hash, JoinSecret>,
    pub(super) nodes: BTreeMap<NodeId, Node>,
    datasets: BTreeMap<DatasetId, Dataset>,
    pub(super) bases: BTreeMap<BaseId, Base>,
    pub(super) jobs: BTreeMap<JobId, Job>,
    pub(super) attempts: BTreeMap<AttemptId, Attempt>,
    checkpoints: BTreeMap<(AttemptId, u64), StoredCheckpoint>,
    pub(super) models: BTreeMap<ModelId, Model>,
    replays: BTreeMap<(Option<UserId>, String), Replay>,
    usages: BTreeMap<UserId, Usage>,
    pub(super) sweeps: BTreeMap<SweepId, Sweep>,
    pub(super) orphans: BTreeMap<AttemptId, Orphan>,
    pub(super) audits: u64,
}

impl Store {
    /// One transaction.
    pub(super) fn commit(&mut self, records: Vec<Record>) {
        for record in records {
            match record {
                Record::User(row) => drop(self.users.insert(row.id, row)),
                Record::Token(row) => drop(self.tokens.insert(row.id, row)),
                Record::JoinSecret(row) => drop(self.secrets.insert(row.hash, row)),
                Record::Node(row) => drop(self.nodes.insert(row.id, row)),
                Record::Dataset(row) => drop(self.datasets.insert(row.id, row)),
                Record::Base(row) => drop(self.bases.insert(row.id, row)),
                Record::Job(row) => drop(self.jobs.insert(row.id, *row)),
                Record::Attempt(row) => drop(self.attempts.insert(row.id, row)),
                Record::Checkpoint(row) => drop(self.checkpoints.insert((row.attempt, row.checkpoint.step), row)),
                Record::Model(row) => drop(self.models.insert(row.id, row)),
                Record::Replay(row) => drop(self.replays.insert((row.owner, row.key.clone()), row)),
                Record::Usage(row) => drop(self.usages.insert(row.user, row)),
                Record::Sweep(row) => drop(self.sweeps.insert(row.id, *row)),
                Record::Audit(row) => self.audits = row.number,
                Record::Orphan(row) => drop(self.orphans.insert(row.attempt, row)),
                Record::Forgotten(row) => {
                    self.jobs.remove(&row.id);
                    self.attempts.retain(|id, _| id.job != row.id);
                    self.checkpoints.retain(|(id, _), _| id.job != row.id);
                    self.orphans.retain(|id, _| id.job != row.id);
                }
            }
        }
    }

    /// As a coordinator finds it that starts: the rows that `coordinator/src/driver/load.rs` reads, and no others.
    pub(super) fn load(&self) -> Loaded {
        let live: Vec<_> = self.jobs.values().filter(|job| !job.phase().is_terminal()).cloned().collect();
        let current = live.iter().filter_map(|job| self.attempts.get(&job.current_attempt()?)).cloned().collect();
        let of_live = |row: &&StoredCheckpoint| live.binary_search_by_key(&row.attempt.job, |job| job.id).is_ok();
        Loaded {
            restored: None,
            generation: 1,
            users: self.users.values().cloned().collect(),
            tokens: self.tokens.values().cloned().collect(),
            secrets: self.secrets.values().cloned().collect(),
            nodes: self.nodes.values().cloned().collect(),
            datasets: self.datasets.values().filter(|row| row.deleted_at.is_none()).cloned().collect(),
            bases: self.bases.values().filter(|row| row.deleted_at.is_none()).cloned().collect(),
            attempts: current,
            checkpoints: self.checkpoints.values().filter(of_live).cloned().collect(),
            jobs: live,
            replays: self.replays.values().cloned().collect(),
            usages: self.usages.values().copied().collect(),
            sweeps: self.sweeps.values().cloned().collect(),
            audits: self.audits,
        }
    }

    /// The job's attempts, oldest first.
    pub(super) fn attempts_of(&self, job: JobId) -> impl DoubleEndedIterator<Item = &Attempt> {
        let id = |generation, number| AttemptId { job, token: AttemptToken { generation, number } };
        self.attempts.range(id(0, 0)..=id(u32::MAX, u32::MAX)).map(|(_, row)| row)
    }

    /// Jobs that ended before this moment, with their models, as the coordinator's sweep reads them.
    pub(super) fn ended_before(&self, moment: UnixMillis) -> impl Iterator<Item = JobId> {
        let old = move |job: &&Job| job.completed_at.is_some_and(|ended| ended < moment);
        self.jobs.values().filter(old).map(|job| job.id)
    }

    /// Whether the attempt is its job's current one, as the blob link asks.
    pub(super) fn is_current(&self, attempt: AttemptId) -> bool {
        self.jobs.get(&attempt.job).is_some_and(|job| job.current_attempt() == Some(attempt))
    }
}
