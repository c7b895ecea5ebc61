//! `/api/base-models`: what is frozen. An ADMIN registers a directory under one of the coordinator's `base_roots`.

use crate::{dataset::DatasetFault, model::FileView, timestamp::Timestamp};
use lorikeet_protocol::id::{BaseId, UserId};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// `POST /api/base-models`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AddBase {
    /// What jobs call it, 1–200 characters; unique.
    pub name: String,
    /// A directory of the coordinator's machine, under one of its `base_roots`.
    pub path: String,
}

/// A base model's record.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct BaseModel {
    /// `base_…`
    #[schema(value_type = String)]
    pub id: BaseId,
    /// What jobs call it.
    pub name: String,
    /// Where it lies on the coordinator's machine; told to an ADMIN only.
    pub path: Option<String>,
    /// How far it is.
    pub status: BaseStatus,
    /// `LlamaForCausalLM`, …
    pub architecture: Option<String>,
    /// Parameters in all.
    pub parameters: Option<u64>,
    /// `BF16`, `F16` or `F32`.
    pub dtype: Option<String>,
    /// Entries of the tokenizer.
    pub vocabulary: Option<u64>,
    /// Whether it brings a chat template of its own.
    pub chat_template: Option<bool>,
    /// Bytes of all files.
    pub size_bytes: u64,
    /// The files a worker needs.
    pub files: Vec<FileView>,
    /// Why it cannot be used.
    pub errors: Vec<DatasetFault>,
    /// Who registered it.
    #[schema(value_type = String)]
    pub added_by: UserId,
    /// When.
    pub created_at: Timestamp,
}

/// How far a base model is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum BaseStatus {
    /// Its files are read and hashed.
    Validating,
    /// Jobs may use it.
    Ready,
    /// They may not; `errors` says why.
    Error,
    /// Its files are no longer what was registered.
    Changed,
}
