//! The paths of all routes, said once for the server and its clients. `{id}` stands where an id goes, as axum and OpenAPI write it.

/// POST creates a dataset; GET lists (`page`, `pageSize`, `status`, `name`, `search`, `sort`).
pub const DATASETS: &str = "/api/datasets";
/// GET one; DELETE it.
pub const DATASET: &str = "/api/datasets/{id}";
/// POST: a fresh signed upload URL.
pub const DATASET_UPLOAD_URL: &str = "/api/datasets/{id}/upload-url";
/// POST: everything was sent.
pub const DATASET_CONFIRM: &str = "/api/datasets/{id}/confirm";
/// POST: validate again.
pub const DATASET_VALIDATE: &str = "/api/datasets/{id}/validate";
/// GET: how far validation is.
pub const DATASET_VALIDATION_STATUS: &str = "/api/datasets/{id}/validation-status";
/// HEAD and PATCH, with the signature of an upload URL: the core of tus 1.0.
pub const UPLOAD: &str = "/api/uploads/{id}";
/// POST registers a base model; GET lists.
pub const BASES: &str = "/api/base-models";
/// GET one; DELETE it.
pub const BASE: &str = "/api/base-models/{id}";
/// POST submits a job file (`?dry_run=true` only says what would happen); GET lists (`page`, `pageSize`, `status`, `name`, `search`).
pub const JOBS: &str = "/api/training-jobs";
/// The same under a shorter name.
pub const JOBS_ALIAS: &str = "/api/jobs";
/// GET one; PATCH: another priority.
pub const JOB: &str = "/api/training-jobs/{id}";
/// POST.
pub const JOB_CANCEL: &str = "/api/training-jobs/{id}/cancel";
/// POST: it saves its state and waits.
pub const JOB_PAUSE: &str = "/api/training-jobs/{id}/pause";
/// POST: it goes on.
pub const JOB_RESUME: &str = "/api/training-jobs/{id}/resume";
/// POST: one that was held goes on its way.
pub const JOB_RELEASE: &str = "/api/training-jobs/{id}/release";
/// POST: it saves a checkpoint now and goes on.
pub const JOB_CHECKPOINT: &str = "/api/training-jobs/{id}/checkpoint";
/// POST: the same again, as a new job.
pub const JOB_RETRY: &str = "/api/training-jobs/{id}/retry";
/// GET: why it is where it is.
pub const JOB_WHY: &str = "/api/training-jobs/{id}/why";
/// GET: one point per step (`from` names the first step).
pub const JOB_METRICS: &str = "/api/training-jobs/{id}/metrics";
/// GET: what the worker said (`page`, `pageSize`).
pub const JOB_LOGS: &str = "/api/training-jobs/{id}/logs";
/// GET.
pub const JOB_CHECKPOINTS: &str = "/api/training-jobs/{id}/checkpoints";
/// GET: server-sent events, resumable by `Last-Event-ID`.
pub const JOB_EVENTS: &str = "/api/training-jobs/{id}/events";
/// POST submits a job file with `[sweep]` (`?dry_run=true` only counts its jobs); GET lists.
pub const SWEEPS: &str = "/api/sweeps";
/// GET one with its jobs.
pub const SWEEP: &str = "/api/sweeps/{id}";
/// POST: every job of it that is not over.
pub const SWEEP_CANCEL: &str = "/api/sweeps/{id}/cancel";
/// GET lists.
pub const MODELS: &str = "/api/models";
/// GET one; PATCH; DELETE.
pub const MODEL: &str = "/api/models/{id}";
/// GET: `artifact=all|adapter-model|adapter-config|tokenizer`, a tar stream.
pub const MODEL_DOWNLOAD: &str = "/api/models/{id}/download";
/// GET lists.
pub const NODES: &str = "/api/nodes";
/// GET one; DELETE: it is retired for ever.
pub const NODE: &str = "/api/nodes/{id}";
/// POST: it takes nothing new.
pub const NODE_CORDON: &str = "/api/nodes/{id}/cordon";
/// POST: what is there saves its state and goes elsewhere.
pub const NODE_DRAIN: &str = "/api/nodes/{id}/drain";
/// POST: it takes work again; a quarantine ends as well.
pub const NODE_OPEN: &str = "/api/nodes/{id}/open";
/// POST: its certificates are worth nothing from now on, its connections close, and what is placed on it goes elsewhere.
pub const NODE_REVOKE: &str = "/api/nodes/{id}/revoke";
/// POST: a join string.
pub const JOIN_TOKENS: &str = "/api/nodes/join-tokens";
/// POST makes a bearer token; GET lists.
pub const TOKENS: &str = "/api/tokens";
/// DELETE withdraws one.
pub const TOKEN: &str = "/api/tokens/{id}";
/// GET: who the token says the caller is.
pub const ME: &str = "/api/me";
/// GET, without a token.
pub const HEALTH: &str = "/api/health";
/// GET, without a token.
pub const VERSION: &str = "/api/version";
/// GET, for administrators: everything that a coordinator cannot make again (`full`: and its files), a tar stream.
pub const BACKUP: &str = "/api/backup";
/// GET, without a token: the certificate of the CA that signs.
pub const CA: &str = "/api/ca";
/// GET: where the rotation of the CA is; POST begins one.
pub const CA_ROTATION: &str = "/api/ca/rotation";
/// POST: the older CA is forgotten.
pub const CA_ROTATION_FINISH: &str = "/api/ca/rotation/finish";
/// GET, without a token: this API as an OpenAPI document.
pub const OPENAPI: &str = "/api/openapi.json";

/// A route with its `{id}` filled in.
pub fn with_id(route: &str, id: impl std::fmt::Display) -> String {
    route.replace("{id}", &id.to_string())
}
