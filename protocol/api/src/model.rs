//! `/api/models`: what came out of a job. A model is the record, the adapter its files.

use crate::{jobfile::JobFile, timestamp::Timestamp};
use lorikeet_protocol::{
    file::NamedFile,
    id::{DatasetId, Hash, JobId, ModelId, UserId},
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A model's record.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Model {
    /// `mdl_…`
    #[schema(value_type = String)]
    pub id: ModelId,
    /// Whose.
    #[schema(value_type = String)]
    pub owner: UserId,
    /// What made it.
    #[schema(value_type = String)]
    pub job: JobId,
    /// What people call that; null: a coordinator of before does not say.
    #[serde(default)]
    pub job_name: Option<String>,
    /// What people call it.
    pub name: String,
    /// `1.0.0`
    pub version: String,
    /// For people.
    pub description: Option<String>,
    /// Where it is.
    pub status: ModelStatus,
    /// The base model it belongs on, by name.
    pub base: String,
    /// The dataset, by name.
    pub dataset: String,
    /// The dataset.
    #[schema(value_type = String)]
    pub dataset_id: DatasetId,
    /// What the dataset's bytes were.
    #[schema(value_type = Option<String>)]
    pub dataset_hash: Option<Hash>,
    /// The adapter's files.
    pub files: Vec<FileView>,
    /// Bytes of all of them.
    pub size_bytes: u64,
    /// `training_summary.json`, as the trainer wrote it.
    #[schema(value_type = Option<Object>)]
    pub summary: Option<serde_json::Value>,
    /// How it was trained: the job file with every key filled.
    pub configuration: JobFile,
    /// When the job was done.
    pub created_at: Timestamp,
}

/// Where a model is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum ModelStatus {
    /// Here.
    Stored,
    /// Marked as in use somewhere.
    Deployed,
    /// Marked as no longer in use.
    Archived,
}

/// `PATCH /api/models/{id}`: what is `None` stays.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PatchModel {
    /// 1–200 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// For people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
}

/// A file of a model, a checkpoint or a base.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct FileView {
    /// Relative to its directory.
    pub path: String,
    /// Bytes.
    pub size_bytes: u64,
    /// BLAKE3.
    #[schema(value_type = String)]
    pub hash: Hash,
}

impl From<&NamedFile> for FileView {
    fn from(file: &NamedFile) -> Self {
        Self { path: file.path.clone(), size_bytes: file.manifest.size, hash: file.manifest.hash }
    }
}
