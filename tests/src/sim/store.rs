//! The coordinator's virtual disk: rows by their keys, as redb would keep them, and nothing of a batch that was not committed.

use lorikeet_coordinator::{
    cluster::Loaded,
    record::{
        Attempt, Base, Dataset, Job, JoinSecret, Model, Node, Record, Replay, StoredCheckpoint, Sweep, Token, Usage,
        User,
    },
};
use lorikeet_protocol::id::{AttemptId, BaseId, DatasetId, Hash, JobId, ModelId, NodeId, SweepId, TokenId, UserId};
use std::collections::BTreeMap;

/// What is durable.
#[derive(Debug, Default)]
pub(super) struct Store {
    users: BTreeMap<UserId, User>,
    tokens: BTreeMap<TokenId, Token>,
    secrets: BTreeMap<Hash, JoinSecret>,
    pub(super) nodes: BTreeMap<NodeId, Node>,
    datasets: BTreeMap<DatasetId, Dataset>,
    bases: BTreeMap<BaseId, Base>,
    pub(super) jobs: BTreeMap<JobId, Job>,
    pub(super) attempts: BTreeMap<AttemptId, Attempt>,
    checkpoints: BTreeMap<(AttemptId, u64), StoredCheckpoint>,
    pub(super) models: BTreeMap<ModelId, Model>,
    replays: BTreeMap<(Option<UserId>, String), Replay>,
    usages: BTreeMap<UserId, Usage>,
    pub(super) sweeps: BTreeMap<SweepId, Sweep>,
    audits: u64,
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
                Record::Orphan(_) => {}
                Record::Forgotten(row) => {
                    self.jobs.remove(&row.id);
                    self.attempts.retain(|id, _| id.job != row.id);
                    self.checkpoints.retain(|(id, _), _| id.job != row.id);
                }
            }
        }
    }

    /// As a coordinator finds it that starts.
    pub(super) fn load(&self) -> Loaded {
        Loaded {
            restored: None,
            generation: 1,
            users: self.users.values().cloned().collect(),
            tokens: self.tokens.values().cloned().collect(),
            secrets: self.secrets.values().cloned().collect(),
            nodes: self.nodes.values().cloned().collect(),
            datasets: self.datasets.values().cloned().collect(),
            bases: self.bases.values().cloned().collect(),
            jobs: self.jobs.values().cloned().collect(),
            attempts: self.attempts.values().cloned().collect(),
            checkpoints: self.checkpoints.values().cloned().collect(),
            replays: self.replays.values().cloned().collect(),
            usages: self.usages.values().copied().collect(),
            sweeps: self.sweeps.values().cloned().collect(),
            audits: self.audits,
        }
    }

    /// Whether the attempt is its job's current one, as the blob link asks.
    pub(super) fn is_current(&self, attempt: AttemptId) -> bool {
        self.jobs.get(&attempt.job).is_some_and(|job| job.current_attempt() == Some(attempt))
    }
}
