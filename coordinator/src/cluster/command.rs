//! What can be asked of the cluster, and the commands about people, tokens and joining.

use super::{
    Action, Cause, Cluster, LiveJob, LiveNode, Now, Rows, Shown, Subject, put,
    schedule::Why,
    share::Sharing,
    submit::{adapter_files, refuse_to_guess},
    sweep::NewSweep,
};
use crate::{
    access::{Actor, Context, Refusal, Role},
    record::{Base, Dataset, Dependency, Job, JoinSecret, Model, Node, Receipt, Record, Token, User},
};
use lorikeet_api::jobfile::start::Start;
use lorikeet_protocol::{
    file::FileManifest,
    id::{AttemptId, BaseId, DatasetId, DeviceId, Hash, JobId, ModelId, NodeId, SweepId, TokenId, UnixMillis, UserId},
    inspect::{DatasetFormat, JobFindings},
    job::{Device, Intent, JobSpec},
};
use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, time::Duration};

/// The field that names the dataset to evaluate on.
pub(super) const VALIDATION: &str = "data.validation_dataset";

/// What the names in a job stand for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Named<'a> {
    pub(super) base: &'a Base,
    pub(super) dataset: &'a Dataset,
    /// Evaluated on, where it is no part of the other.
    pub(super) validation: Option<&'a Dataset>,
}

impl Named<'_> {
    /// Every file of theirs.
    pub(super) fn files(&self) -> Vec<Hash> {
        let datasets = [self.dataset].into_iter().chain(self.validation);
        let manifests = datasets.filter_map(|dataset| dataset.manifest.as_ref());
        self.base.hashes().into_iter().chain(manifests.map(|manifest| manifest.hash)).collect()
    }
}

/// A change. New ids and the hashes of new secrets come with it.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "the fields are the records'")]
pub enum Command {
    CreateUser {
        id: UserId,
        email: String,
        name: String,
        role: Role,
    },
    CreateToken {
        id: TokenId,
        user: UserId,
        name: String,
        hash: Hash,
        expires: Option<UnixMillis>,
    },
    RevokeToken {
        id: TokenId,
    },
    CreateJoinSecret {
        hash: Hash,
        expires: UnixMillis,
    },
    Join {
        secret: Hash,
        key: Hash,
        name: String,
        node: NodeId,
    },
    RecordCertificate {
        node: NodeId,
        serial: String,
        /// At a join: the CA that signed it, the only one that the machine knows.
        joined: Option<Hash>,
    },
    OpenNode {
        id: NodeId,
    },
    CordonNode {
        id: NodeId,
    },
    DrainNode {
        id: NodeId,
        patience: Duration,
    },
    RetireNode {
        id: NodeId,
    },
    RevokeNode {
        id: NodeId,
    },
    /// Keys leave the coordinator: it is written down who took them.
    TakeBackup,
    /// A CA is made that follows this one, and signs from now on.
    BeginRotation {
        current: Hash,
    },
    /// The CA before `next` is forgotten.
    FinishRotation {
        /// `None`: no rotation is under way.
        next: Option<Hash>,
        /// Also if nodes are cut off by it.
        force: bool,
    },
    CreateDataset {
        id: DatasetId,
        name: String,
        description: Option<String>,
        file_name: String,
        size: u64,
        format: Option<DatasetFormat>,
    },
    ConfirmDataset {
        id: DatasetId,
        manifest: FileManifest,
    },
    ValidateDataset {
        id: DatasetId,
    },
    DeleteDataset {
        id: DatasetId,
    },
    RegisterBase {
        id: BaseId,
        name: String,
        path: PathBuf,
    },
    RemoveBase {
        id: BaseId,
    },
    /// Bytes of a base model are no longer what was registered.
    MarkChanged {
        file: Hash,
    },
    SubmitJob {
        id: JobId,
        spec: Box<JobSpec>,
        start: Start,
    },
    SubmitSweep(Box<NewSweep>),
    CancelSweep {
        id: SweepId,
        reason: Option<String>,
    },
    ReleaseJob {
        id: JobId,
    },
    SetPriority {
        id: JobId,
        priority: u8,
    },
    RetryJob {
        old: JobId,
        new: JobId,
    },
    CancelJob {
        id: JobId,
        reason: Option<String>,
    },
    SetIntent {
        id: JobId,
        intent: Intent,
    },
    SaveNow {
        id: JobId,
    },
    PatchModel {
        id: ModelId,
        name: Option<String>,
        description: Option<String>,
    },
    DeleteModel {
        id: ModelId,
    },
    /// These ended before that moment, and are not kept any longer.
    ForgetJobs {
        ids: Vec<JobId>,
        before: UnixMillis,
    },
}

impl Command {
    /// Whether it names what may be over, of which only the store knows: whoever runs turns gives it those [`Rows`], in a batch of its own.
    pub fn names_finished(&self) -> bool {
        let waits = self.conditions().is_some_and(|start| !start.after.is_empty());
        waits
            || self.begins_with().is_some_and(|spec| spec.init_adapter.is_some())
            || matches!(
                self,
                Self::RetryJob { .. } | Self::PatchModel { .. } | Self::DeleteModel { .. } | Self::ForgetJobs { .. }
            )
    }

    /// When what is submitted may start.
    pub(crate) fn conditions(&self) -> Option<&Start> {
        if let Self::SubmitSweep(sweep) = self {
            return Some(&sweep.start);
        }
        if let Self::SubmitJob { start, .. } = self { Some(start) } else { None }
    }

    /// What is submitted; the jobs of a sweep begin with the same adapter.
    pub(crate) fn begins_with(&self) -> Option<&JobSpec> {
        if let Self::SubmitSweep(sweep) = self {
            return sweep.children.first().map(|(_, _, spec)| spec);
        }
        if let Self::SubmitJob { spec, .. } = self { Some(spec) } else { None }
    }

    /// What the audit record calls it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::CreateUser { .. } => "user.create",
            Self::CreateToken { .. } => "token.create",
            Self::RevokeToken { .. } => "token.revoke",
            Self::CreateJoinSecret { .. } => "node.invite",
            Self::Join { .. } => "node.join",
            Self::RecordCertificate { .. } => "node.certify",
            Self::OpenNode { .. } => "node.open",
            Self::CordonNode { .. } => "node.cordon",
            Self::DrainNode { .. } => "node.drain",
            Self::RetireNode { .. } => "node.retire",
            Self::RevokeNode { .. } => "node.revoke",
            Self::TakeBackup => "backup.take",
            Self::BeginRotation { .. } => "ca.rotate",
            Self::FinishRotation { .. } => "ca.finish",
            Self::CreateDataset { .. } => "dataset.create",
            Self::ConfirmDataset { .. } => "dataset.confirm",
            Self::ValidateDataset { .. } => "dataset.validate",
            Self::DeleteDataset { .. } => "dataset.delete",
            Self::RegisterBase { .. } => "base.register",
            Self::RemoveBase { .. } => "base.remove",
            Self::MarkChanged { .. } => "base.changed",
            Self::SubmitJob { .. } => "job.submit",
            Self::SubmitSweep(_) => "sweep.submit",
            Self::CancelSweep { .. } => "sweep.cancel",
            Self::ReleaseJob { .. } => "job.release",
            Self::SetPriority { .. } => "job.priority",
            Self::RetryJob { .. } => "job.retry",
            Self::CancelJob { .. } => "job.cancel",
            Self::SetIntent { .. } => "job.intent",
            Self::SaveNow { .. } => "job.checkpoint",
            Self::PatchModel { .. } => "model.change",
            Self::DeleteModel { .. } => "model.delete",
            Self::ForgetJobs { .. } => "job.forget",
        }
    }
}

/// A question that memory answers.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "the fields are ids")]
pub enum Query {
    /// Nothing: answered when everything before is durable.
    Barrier,
    /// Whose token is this?
    Authenticate(Hash),
    /// All nodes, as they are now.
    Nodes,
    /// Why does this job wait?
    Why(JobId),
    /// Which of these jobs cannot start as machines and limits are?
    Stuck(Vec<JobId>),
    /// What a job's words for base and dataset stand for; with the models that its `init_adapter` may mean.
    Resolve { spec: Box<JobSpec>, adapters: Vec<Model> },
    /// Where would this job go?
    DryRun { spec: Box<JobSpec>, findings: JobFindings },
    /// What a job that is to start so would wait for; with the rows of jobs that it names by id.
    Conditions { start: Start, named: Vec<Job> },
    /// Is it still being judged?
    IsJudged(Subject),
    /// Since when its node has been silent.
    Unreachable(JobId),
    /// May this node read this file for this attempt?
    MayFetch { node: NodeId, attempt: AttemptId, file: Hash },
    /// Which other nodes give this file to this node, for this attempt?
    Givers { node: NodeId, attempt: AttemptId, file: Hash },
    /// Is this a certificate of the node's?
    KnowsCertificate { node: NodeId, shown: Shown },
    /// May this node bring files of this attempt?
    MayUpload { node: NodeId, attempt: AttemptId },
}

/// An answer.
#[derive(Debug, Clone, PartialEq)]
#[expect(missing_docs, reason = "each follows its query")]
pub enum Answer {
    Receipt(Receipt),
    Barrier,
    Actor(Option<Actor>),
    Nodes(Vec<NodeStatus>),
    Why(Option<Why>),
    Stuck(BTreeMap<JobId, Why>),
    Conditions(Vec<Dependency>),
    Resolved {
        base: Box<Base>,
        dataset: Box<Dataset>,
        validation: Option<Box<Dataset>>,
    },
    Unreachable(Option<UnixMillis>),
    Allowed(bool),
    /// None: the attempt does not name the file, or is not the node's.
    Givers(Option<Vec<(NodeId, SocketAddr)>>),
}

/// A node as it is now.
#[derive(Debug, Clone, PartialEq)]
pub struct NodeStatus {
    /// What is remembered of it.
    pub record: Node,
    /// Whether its agent is connected.
    pub connected: bool,
    /// Its agent's version.
    pub version: Option<String>,
    /// From its config.
    pub labels: BTreeMap<String, String>,
    /// As last reported.
    pub devices: Vec<Device>,
    /// When it was last heard, since this process started.
    pub seen: Option<UnixMillis>,
    /// Since when its lease is over.
    pub unreachable_since: Option<UnixMillis>,
    /// Attempts placed on it, with the devices they hold.
    pub attempts: Vec<(AttemptId, Vec<DeviceId>)>,
    /// What it said of its cache in this session.
    pub sharing: Option<Sharing>,
}

impl Cluster {
    pub(super) fn command(
        &mut self,
        context: &Context,
        command: Command,
        rows: Rows,
        now: Now,
        out: &mut Vec<Action>,
    ) -> Result<Receipt, Refusal> {
        let (name, actor, cause) = (command.name(), context.actor, Cause::of(context));
        let is_join = matches!(command, Command::Join { .. });
        let judged = match command {
            Command::CreateUser { id, email, name, role } => {
                self.create_user(actor, User { id, email, name, role, created: now.wall }, out)
            }
            Command::CreateToken { id, user, name, hash, expires } => {
                let token = Token { id, owner: user, name, hash, created: now.wall, expires, deleted_at: None };
                self.create_token(actor, token, now, out)
            }
            Command::RevokeToken { id } => self.revoke_token(actor, id, now, out),
            Command::CreateJoinSecret { hash, expires } => {
                self.invite(actor, JoinSecret { hash, expires, used: None }, now, out)
            }
            Command::Join { secret, key, name, node } => self.join(actor, secret, key, name, node, now, out),
            Command::RecordCertificate { node, serial, joined } => self.certify(actor, node, serial, joined, out),
            Command::OpenNode { id } => self.open_node(actor, id, now, out),
            Command::CordonNode { id } => self.cordon_node(actor, id, now, out),
            Command::DrainNode { id, patience } => self.drain_node(actor, id, patience, now, out),
            Command::RetireNode { id } => self.retire_node(actor, id, now, out),
            Command::RevokeNode { id } => self.revoke_node(actor, id, &cause, now, out),
            Command::TakeBackup => actor.require_admin("take a backup").map(|()| Receipt::Done),
            Command::BeginRotation { current } => {
                actor.require_admin("rotate the certificate authority").map(|()| Receipt::Authority(current))
            }
            Command::FinishRotation { next, force } => self.finish_rotation(actor, next, force),
            Command::CreateDataset { id, name, description, file_name, size, format } => {
                self.create_dataset(actor, Dataset::new(id, name, description, file_name, size, format, now), out)
            }
            Command::ConfirmDataset { id, manifest } => self.confirm_dataset(actor, id, manifest, now, out),
            Command::ValidateDataset { id } => self.validate_dataset(actor, id, out),
            Command::DeleteDataset { id } => self.delete_dataset(actor, id, now, out),
            Command::RegisterBase { id, name, path } => self.register_base(actor, id, name, path, now, out),
            Command::RemoveBase { id } => self.remove_base(actor, id, now, out),
            Command::MarkChanged { file } => self.mark_changed(actor, file, now, out),
            Command::SubmitJob { id, spec, start } => self.submit(actor, id, *spec, start, &rows, now, out),
            Command::SubmitSweep(sweep) => self.submit_sweep(actor, *sweep, &rows, now, out),
            Command::CancelSweep { id, reason } => self.cancel_sweep(actor, id, reason, &cause, now, out),
            Command::ReleaseJob { id } => self.release(actor, id, &cause, now, out),
            Command::SetPriority { id, priority } => self.set_priority(actor, id, priority, now, out),
            Command::RetryJob { old, new } => self.retry(actor, old, new, rows, now, out),
            Command::CancelJob { id, reason } => self.cancel(actor, id, reason, &cause, now, out),
            Command::SetIntent { id, intent } => self.set_intent(actor, id, intent, &cause, now, out),
            Command::SaveNow { id } => self.save_now(actor, id, out),
            Command::PatchModel { id, name, description } => {
                Self::patch_model(actor, id, rows.model, name, description, out)
            }
            Command::DeleteModel { id } => Self::delete_model(actor, id, rows.model, now, out),
            Command::ForgetJobs { before, .. } => self.forget(actor, before, rows, &cause, now, out),
        };
        if let (Err(refusal), true) = (&judged, is_join) {
            self.refuse("node.join.refused", &cause, String::new(), refusal.to_string(), now, out);
        }
        let receipt = judged?;
        self.audit(&cause, name, super::subject_of(receipt), (None, None), now, out);
        Ok(receipt)
    }

    pub(super) fn answer(&self, actor: Actor, query: Query, now: Now) -> Result<Answer, Refusal> {
        Ok(match query {
            Query::Barrier => Answer::Barrier,
            Query::Authenticate(hash) => Answer::Actor(self.authenticate(hash, now)),
            Query::Nodes => Answer::Nodes(self.present_nodes().map(LiveNode::status).collect()),
            Query::Why(id) => Answer::Why(self.why(self.visible(actor, id)?.record.id, now)),
            Query::Stuck(ids) => Answer::Stuck(self.stuck(actor, &ids, now)),
            Query::Resolve { spec, adapters } => {
                let Named { base, dataset, validation } = self.resolve(actor, &spec)?;
                adapter_files(actor, &spec, base, &adapters)?;
                Answer::Resolved {
                    base: Box::new(base.clone()),
                    dataset: Box::new(dataset.clone()),
                    validation: validation.cloned().map(Box::new),
                }
            }
            Query::DryRun { spec, findings } => Answer::Why(self.dry_run(actor, &spec, &findings, now)?),
            Query::Conditions { start, named } => Answer::Conditions(self.dependencies(actor, &start, &named)?),
            Query::IsJudged(subject) => Answer::Allowed(self.inspection(subject).is_some()),
            Query::Unreachable(id) => Answer::Unreachable(self.unreachable_since(self.visible(actor, id)?, now)),
            Query::MayFetch { node, attempt, file } => Answer::Allowed(self.may_fetch(node, attempt, file)),
            Query::Givers { node, attempt, file } => Answer::Givers(self.givers(node, attempt, file, now)),
            Query::KnowsCertificate { node, shown } => Answer::Allowed(self.knows_certificate(node, &shown)),
            Query::MayUpload { node, attempt } => Answer::Allowed(self.current(node, attempt).is_some()),
        })
    }

    pub(super) fn resolve(&self, actor: Actor, spec: &JobSpec) -> Result<Named<'_>, Refusal> {
        let base = self.bases.values().find(|base| base.name == spec.base || base.id.to_string() == spec.base);
        let base = base.ok_or_else(|| {
            Refusal::invalid("base", format!("no base model `{}`; `lorikeet base list` names them", spec.base))
        })?;
        let dataset = self.dataset_named(actor, "dataset", &spec.dataset)?;
        let validation = spec.validation_dataset.as_deref();
        let validation = validation.map(|name| self.dataset_named(actor, VALIDATION, name)).transpose()?;
        Ok(Named { base, dataset, validation })
    }

    fn dataset_named(&self, actor: Actor, field: &'static str, name: &str) -> Result<&Dataset, Refusal> {
        let by_id = name.parse().ok().and_then(|id: DatasetId| self.datasets.get(&id));
        if let Some(dataset) = by_id.filter(|dataset| actor.sees(dataset.owner)) {
            return Ok(dataset);
        }
        let called = self.datasets.values().filter(|dataset| actor.sees(dataset.owner) && dataset.name == name);
        let (own, others): (Vec<_>, Vec<_>) = called.partition(|dataset| Some(dataset.owner) == actor.user());
        let found = if own.is_empty() { others } else { own };
        // An upload that broke off does not hide what came before it; where nothing can be used the newest says why.
        let (broken, sound): (Vec<_>, Vec<_>) = found.into_iter().partition(|dataset| dataset.is_broken());
        refuse_to_guess(field, name, &sound)?;
        sound
            .last()
            .or(broken.last())
            .copied()
            .ok_or_else(|| Refusal::invalid(field, format!("no dataset `{name}`; `lorikeet dataset list` names them")))
    }

    pub(super) fn visible(&self, actor: Actor, id: JobId) -> Result<&LiveJob, Refusal> {
        actor.find(self.jobs.get(&id), |job: &&LiveJob| job.record.owner, "job")
    }

    /// The job as it is, for commands.
    pub(super) fn visible_mut(&mut self, actor: Actor, id: JobId) -> Result<&mut LiveJob, Refusal> {
        actor.find(self.jobs.get_mut(&id), |job: &&mut LiveJob| job.record.owner, "job")
    }
}

/// A job's row goes into the batch, and its watchers hear of it.
pub(crate) fn put_job(job: &Job, out: &mut Vec<Action>) {
    out.push(put(Record::Job(Box::new(job.clone()))));
    out.push(Action::JobChanged(job.id));
}
