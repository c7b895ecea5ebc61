//! `/api/sweeps`: many jobs of one file, and which of them was the best.

use crate::{
    job::{DryRun, JobStatus},
    jobfile::sweep::{StopRule, Values},
    timestamp::Timestamp,
};
use lorikeet_protocol::id::{JobId, SweepId, UserId};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A sweep without its jobs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SweepSummary {
    /// `sweep_…`
    #[schema(value_type = String)]
    pub id: SweepId,
    /// Whose.
    #[schema(value_type = String)]
    pub owner: UserId,
    /// What people call it.
    pub name: String,
    /// Whether any of its jobs is still to come to an end.
    pub status: SweepStatus,
    /// Its jobs.
    pub jobs: u64,
    /// Of them, those that are over.
    pub ended: u64,
    /// Of those, the ones with an adapter.
    pub succeeded: u64,
    /// Of those that are over, the ones that were not among the best at a rung.
    pub stopped_early: u64,
    /// So many of its jobs hold devices at once.
    pub max_parallel: Option<u32>,
    /// Which of them end early.
    #[schema(value_type = Option<Object>)]
    pub stop: Option<StopRule>,
    /// The best of those that came through: lowest validation loss, or lowest loss where nothing is held out.
    pub best: Option<BestChild>,
    /// When it was submitted.
    pub created_at: Timestamp,
    /// When its last job ended.
    pub completed_at: Option<Timestamp>,
}

/// Where a sweep is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum SweepStatus {
    /// Jobs of it wait or run.
    Running,
    /// All are over.
    Completed,
    /// It was cancelled as a whole.
    Cancelled,
}

/// The best job of a sweep.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct BestChild {
    /// Which.
    #[schema(value_type = String)]
    pub job: JobId,
    /// What it was judged by.
    pub loss: f64,
}

/// A sweep with its jobs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Sweep {
    /// The whole.
    #[serde(flatten)]
    pub summary: SweepSummary,
    /// In the order in which they were submitted.
    pub children: Vec<SweepChild>,
}

/// One job of a sweep.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SweepChild {
    /// Its id.
    #[schema(value_type = String)]
    pub job: JobId,
    /// Its name.
    pub name: String,
    /// What makes it another one: settings by their dotted name.
    #[schema(value_type = Object)]
    pub values: Values,
    /// As in its own record.
    pub status: JobStatus,
    /// Optimizer steps done.
    pub step: u64,
    /// The last step's.
    pub loss: Option<f64>,
    /// The last evaluation's.
    pub validation_loss: Option<f64>,
    /// The step after which it was stopped, if it was not among the best.
    pub stopped_early_at: Option<u64>,
}

/// The answer to `POST /api/sweeps?dry_run=true`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SweepDryRun {
    /// So many jobs would be submitted.
    pub jobs: u64,
    /// What would make each another one, in order.
    #[schema(value_type = Vec<Object>)]
    pub values: Vec<Values>,
    /// What the first of them would come to, and where it would go.
    pub first: DryRun,
}
