//! `/api/datasets`: training files, uploaded once, validated by a child process, named by jobs.

use crate::timestamp::Timestamp;
use lorikeet_protocol::{
    id::{DatasetId, Hash, UserId},
    inspect::{self, DatasetFormat},
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The largest training file: 10 GiB.
pub const MAX_SIZE_BYTES: u64 = 10 << 30;

/// `POST /api/datasets`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CreateDataset {
    /// 1–200 characters. Where several of one's own that can be used have it, a job names one by its id.
    pub name: String,
    /// At most 255 bytes; never used as a path.
    pub file_name: String,
    /// What will be uploaded.
    pub size_bytes: u64,
    /// `None`: found out by validation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub format: Option<DatasetFormat>,
    /// For people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
}

/// The answer to it, and to `POST …/{id}/upload-url`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct DatasetCreated {
    /// The record, `UPLOADING`.
    pub dataset: Dataset,
    /// Where the bytes go: speaks the core of tus 1.0. Absolute, or a path of this server.
    pub upload_url: String,
    /// When that URL stops working.
    pub expires_at: Timestamp,
}

/// `POST /api/datasets/{id}/confirm`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ConfirmDataset {
    /// BLAKE3 of what was sent; compared when given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub hash: Option<Hash>,
}

/// A training file's record.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Dataset {
    /// `ds_…`
    #[schema(value_type = String)]
    pub id: DatasetId,
    /// Whose.
    #[schema(value_type = String)]
    pub owner: UserId,
    /// What people call it.
    pub name: String,
    /// For people.
    pub description: Option<String>,
    /// As declared or found; `None` until then.
    #[schema(value_type = Option<String>)]
    pub format: Option<DatasetFormat>,
    /// How far it is.
    pub status: DatasetStatus,
    /// What it was called where it came from.
    pub file_name: String,
    /// Declared size.
    pub size_bytes: u64,
    /// BLAKE3, once it is here whole.
    #[schema(value_type = Option<String>)]
    pub content_hash: Option<Hash>,
    /// Conversations in it.
    pub conversations: Option<u64>,
    /// Pairs in it, with or without a target.
    pub pairs: Option<u64>,
    /// Pairs that can be trained on.
    pub training_pairs: Option<u64>,
    /// Turns per conversation.
    pub average_turns: Option<f64>,
    /// Null until a base model is named.
    pub tokens: Option<u64>,
    /// Whether a job may use it.
    pub training_ready: bool,
    /// Worth knowing, not wrong.
    pub warnings: Vec<String>,
    /// The first hundred faults.
    pub errors: Vec<DatasetFault>,
    /// How many there are in all.
    pub error_count: u64,
    /// The first conversations, before rendering.
    pub samples: Vec<Vec<SampleMessage>>,
    /// When the record was made.
    pub created_at: Timestamp,
    /// When the last byte came.
    pub uploaded_at: Option<Timestamp>,
    /// When validation last ended.
    pub validated_at: Option<Timestamp>,
}

/// How far a dataset is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum DatasetStatus {
    /// Bytes are still to come, or to be confirmed.
    Uploading,
    /// `lorikeet inspect dataset` reads it.
    Validating,
    /// Jobs may use it.
    Ready,
    /// They may not; `errors` says why.
    Error,
}

/// Something wrong in a training file or a base directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct DatasetFault {
    /// From 1, where the file has lines.
    pub line: Option<u64>,
    /// JSON path, tensor or file name.
    pub path: String,
    /// What is wrong and what would be right.
    pub message: String,
}

impl From<inspect::Fault> for DatasetFault {
    fn from(fault: inspect::Fault) -> Self {
        Self { line: fault.line, path: fault.path, message: fault.message }
    }
}

/// A message of a sample.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SampleMessage {
    /// system, user or assistant.
    pub role: String,
    /// At most 2,000 characters.
    pub content: String,
    /// Whether the loss counts it.
    pub supervised: bool,
}

impl From<inspect::SampleMessage> for SampleMessage {
    fn from(message: inspect::SampleMessage) -> Self {
        Self { role: message.role, content: message.content, supervised: message.supervised }
    }
}

/// `GET /api/datasets/{id}/validation-status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ValidationStatus {
    /// How far it is.
    pub status: DatasetStatus,
    /// Whether a job may use it.
    pub training_ready: bool,
    /// The first hundred faults.
    pub errors: Vec<DatasetFault>,
    /// How many there are in all.
    pub error_count: u64,
}
