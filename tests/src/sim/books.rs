//! What every batch of rows has to keep to, held against the rows before it. Only what a batch touches is looked at.
//!
//! | rule | seen in |
//! |---|---|
//! | one attempt of a job at a time, each token above the one before; what has ended stays ended | every attempt's row |
//! | a device is one attempt's, or several's that share it and fit together | attempts that begin |
//! | nobody has more jobs or devices than the limits allow | attempts that begin |
//! | what a job waits for comes before its devices | every job's row |
//! | the checkpoint to go on from never goes back, and its every file is here | every job's, checkpoint's and model's row |
//! | a job is charged what its attempts held, no more and no less | every job's row |
//! | a terminal state is never left; only what is over is forgotten, and it never comes back | every row |
//! | what is decided about a job, a node or a device is written down: phases follow from each other, numbers have no gaps | audit records |

use super::store::Store;
use lorikeet_coordinator::{
    cluster::{job::JobState, schedule::Rules},
    record::{Attempt, Audit, Closed, Job, Node, Record, StoredCheckpoint},
};
use lorikeet_protocol::{
    file::NamedFile,
    id::{AttemptId, DeviceId, Hash, JobId, NodeId, UnixMillis, UserId},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

type Kept = Result<(), String>;

/// Of every device here.
pub(super) const DEVICE_BYTES: u64 = 80 << 30;

/// What one attempt takes of a device.
#[derive(Debug, Clone, Copy)]
struct Share {
    planned_bytes: u64,
    alone: bool,
}

/// What follows from the rows, added up as they come.
#[derive(Debug, Default)]
pub(super) struct Books {
    rules: Rules,
    devices: BTreeMap<(NodeId, DeviceId), BTreeMap<AttemptId, Share>>,
    /// Attempts that have not ended.
    open: BTreeMap<JobId, AttemptId>,
    /// A user's jobs that hold devices, and the devices.
    users: BTreeMap<UserId, (u32, u32)>,
    /// What the attempts of a job held.
    held: BTreeMap<JobId, Duration>,
    pub(super) forgotten: BTreeSet<JobId>,
    /// Files that the coordinator has; `false`: no row names them yet, and a crash takes them along.
    pub(super) blobs: BTreeMap<Hash, bool>,
}

/// Rows of a batch, as far as they were looked at: the newest of each.
#[derive(Default)]
struct Batch<'a> {
    jobs: BTreeMap<JobId, &'a Job>,
    attempts: BTreeMap<AttemptId, &'a Attempt>,
    nodes: BTreeMap<NodeId, &'a Node>,
    /// Decisions about nodes that the rows show, and those that are written down.
    decided: BTreeMap<NodeId, (u32, u32)>,
    /// Where each job's phases lead, as far as they are written down.
    phases: BTreeMap<JobId, String>,
    audits: Vec<&'a Audit>,
}

impl Books {
    pub(super) fn new(rules: Rules) -> Self {
        Self { rules, ..Self::default() }
    }

    /// A batch becomes durable.
    pub(super) fn take(&mut self, records: &[Record], store: &Store) -> Kept {
        let mut batch = Batch::default();
        for record in records {
            self.never_returns(record)?;
            match record {
                Record::Job(job) => self.job(job, &mut batch, store)?,
                Record::Attempt(attempt) => self.attempt(attempt, &mut batch, store)?,
                Record::Checkpoint(row) if !row.orphan && row.removed_at.is_none() => self.checkpoint(row)?,
                Record::Model(model) => self.are_here(&model.files, || format!("the model of {}", model.job))?,
                Record::Node(node) => decided(node, &mut batch, store),
                Record::Audit(audit) => written_down(audit, &mut batch, store)?,
                Record::Forgotten(job) => self.forgets(job, store)?,
                _ => {}
            }
        }
        batch.jobs.values().try_for_each(|job| self.adds_up(job, &batch))?;
        told(&batch, store)
    }

    fn never_returns(&self, record: &Record) -> Kept {
        let job = match record {
            Record::Job(job) => job.id,
            Record::Attempt(attempt) => attempt.id.job,
            Record::Checkpoint(checkpoint) => checkpoint.attempt.job,
            _ => return Ok(()),
        };
        if self.forgotten.contains(&job) {
            return Err(format!("{job} was forgotten and came back: {record:?}"));
        }
        Ok(())
    }

    fn job<'a>(&mut self, job: &'a Job, batch: &mut Batch<'a>, store: &Store) -> Kept {
        let before = batch.jobs.insert(job.id, job).or(store.jobs.get(&job.id));
        let step = |job: &Job| job.checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.step);
        if let Some(before) = before {
            if before.phase().is_terminal() && before.state != job.state {
                return Err(format!("{} was {:?} and became {:?}", job.id, before.state, job.state));
            }
            if step(job) < step(before) {
                return Err(format!("{} went back from step {} to {}", job.id, step(before), step(job)));
            }
        }
        // By the clock of that time, which may be set back later.
        let early = job.start.not_before.zip(job.queued_at).is_some_and(|(moment, queued)| queued < moment);
        let held_back = !job.waits_for.is_empty() || job.start.hold && !job.released || early;
        if matches!(job.state, JobState::Placed { .. }) && held_back {
            return Err(format!("{} has devices though it waits for something else: {:?}", job.id, job.start));
        }
        Ok(())
    }

    fn attempt<'a>(&mut self, row: &'a Attempt, batch: &mut Batch<'a>, store: &Store) -> Kept {
        let id = row.id;
        let before = batch.attempts.insert(id, row).or(store.attempts.get(&id));
        let Some(before) = before else { return self.begins(row, store) };
        match (&before.end, &row.end) {
            (None, Some(end)) => self.ends(row, end.held),
            (Some(_), None) => return Err(format!("{id} had ended and goes on")),
            (Some(before), Some(after)) if before != after => return Err(format!("{id} ended twice")),
            _ => {}
        }
        Ok(())
    }

    fn begins(&mut self, row: &Attempt, store: &Store) -> Kept {
        let id = row.id;
        if let Some(last) = store.attempts_of(id.job).next_back().filter(|last| last.id >= id) {
            return Err(format!("{id} came after {}", last.id));
        }
        if let Some(open) = self.open.insert(id.job, id) {
            return Err(format!("{id} was placed while {open} had not ended"));
        }
        let alone = store.jobs.get(&id.job).is_none_or(|job| job.spec.resources.exclusive);
        let share = Share { planned_bytes: row.planned_bytes, alone };
        for (member, device) in row.members.iter().flat_map(|member| member.devices.iter().map(move |id| (member, id)))
        {
            let shares = self.devices.entry((member.node, device.clone())).or_default();
            shares.insert(id, share);
            let planned: u64 = shares.values().map(|share| share.planned_bytes).sum();
            if shares.len() > 1 && (shares.values().any(|share| share.alone) || planned > DEVICE_BYTES) {
                return Err(format!("{device} is given to too many: {shares:?}"));
            }
        }
        let (jobs, devices) = self.users.entry(row.owner).or_default();
        (*jobs, *devices) = (*jobs + 1, *devices + devices_of(row));
        let Rules { jobs_per_user, devices_per_user, .. } = self.rules;
        if jobs_per_user.is_some_and(|most| *jobs > most) || devices_per_user.is_some_and(|most| *devices > most) {
            return Err(format!("{} has {jobs} jobs on {devices} devices: {:?}", row.owner, self.rules));
        }
        Ok(())
    }

    fn ends(&mut self, row: &Attempt, held: Duration) {
        self.open.remove(&row.id.job);
        for member in &row.members {
            for device in &member.devices {
                if let Some(shares) = self.devices.get_mut(&(member.node, device.clone())) {
                    shares.remove(&row.id);
                }
            }
        }
        if let Some((jobs, devices)) = self.users.get_mut(&row.owner) {
            (*jobs, *devices) = (*jobs - 1, *devices - devices_of(row));
        }
        *self.held.entry(row.id.job).or_default() += held;
    }

    /// A whole checkpoint is one whose files are here.
    fn checkpoint(&mut self, row: &StoredCheckpoint) -> Kept {
        self.are_here(&row.checkpoint.files, || format!("step {} of {}", row.checkpoint.step, row.attempt))
    }

    fn are_here(&mut self, files: &[NamedFile], of: impl Fn() -> String) -> Kept {
        for file in files {
            match self.blobs.get_mut(&file.manifest.hash) {
                Some(named) => *named = true,
                None => return Err(format!("{} counts, and its {} is not here", of(), file.path)),
            }
        }
        Ok(())
    }

    fn forgets(&mut self, job: &Job, store: &Store) -> Kept {
        self.forgotten.insert(job.id);
        match store.jobs.get(&job.id) {
            Some(known) if known.phase().is_terminal() && known == job => Ok(()),
            known => Err(format!("{} was forgotten as {:?}, and it is {known:?}", job.id, job.state)),
        }
    }

    /// At the end of a batch its rows agree.
    fn adds_up(&self, job: &Job, batch: &Batch<'_>) -> Kept {
        let (id, charged) = (job.id, self.held.get(&job.id).copied().unwrap_or_default());
        if job.held != charged {
            return Err(format!("{id} is charged {:?}, and its attempts held {charged:?}", job.held));
        }
        if job.current_attempt() != self.open.get(&id).copied() {
            return Err(format!(
                "{id} is {:?}, and its attempt that has not ended {:?}",
                job.state,
                self.open.get(&id)
            ));
        }
        let said = batch.phases.get(&id);
        if said.is_some_and(|said| *said != word(job)) {
            return Err(format!("{id} is {}, and the records lead to {said:?}", word(job)));
        }
        Ok(())
    }
}

fn devices_of(row: &Attempt) -> u32 {
    row.members.iter().map(|member| member.devices.len() as u32).sum()
}

fn word(job: &Job) -> String {
    format!("{:?}", job.phase()).to_lowercase()
}

/// What was decided about a node by then.
fn decisions(node: &Node) -> (Option<Closed>, bool, Option<&str>, Option<Option<UnixMillis>>) {
    let trial = node.probation.as_ref();
    (node.closed, node.quarantine.is_some(), trial.map(|trial| &*trial.reason), trial.map(|trial| trial.until))
}

fn decided<'a>(node: &'a Node, batch: &mut Batch<'a>, store: &Store) {
    let before = batch.nodes.insert(node.id, node).or(store.nodes.get(&node.id));
    if before.is_none_or(|before| decisions(before) != decisions(node)) {
        batch.decided.entry(node.id).or_default().0 += 1;
    }
}

fn written_down<'a>(audit: &'a Audit, batch: &mut Batch<'a>, store: &Store) -> Kept {
    batch.audits.push(audit);
    if audit.number != store.audits + batch.audits.len() as u64 {
        return Err(format!("record {} follows {} others after {}", audit.number, batch.audits.len(), store.audits));
    }
    if let Ok(node) = audit.subject.parse::<NodeId>() {
        batch.decided.entry(node).or_default().1 += 1;
    }
    let (Ok(job), "job.phase") = (audit.subject.parse::<JobId>(), audit.action.as_str()) else { return Ok(()) };
    let before = batch.phases.get(&job).cloned();
    let before = before.unwrap_or_else(|| store.jobs.get(&job).map_or("submitted".into(), word));
    if audit.before.as_ref() != Some(&before) {
        return Err(format!("{job} was {before}, and the record says {:?}", audit.before));
    }
    batch.phases.insert(job, audit.after.clone().unwrap_or_default());
    Ok(())
}

/// Whatever was decided has a record.
fn told(batch: &Batch<'_>, store: &Store) -> Kept {
    for (node, (decided, told)) in &batch.decided {
        if decided > told {
            return Err(format!("{decided} things were decided about {node}, and {told} are written down"));
        }
    }
    for (id, job) in &batch.jobs {
        let before = store.jobs.get(id).map_or("submitted".to_owned(), word);
        if before != word(job) && !batch.phases.contains_key(id) {
            return Err(format!("{id} was {before} and is {}, and no record says so", word(job)));
        }
        let known = store.jobs.contains_key(id) || batch.audits.iter().any(|audit| is_submission(audit, job));
        if !known {
            return Err(format!("nobody is on record for having submitted {id}"));
        }
    }
    Ok(())
}

fn is_submission(audit: &Audit, job: &Job) -> bool {
    match audit.action.as_str() {
        "job.submit" => audit.subject == job.id.to_string(),
        "sweep.submit" => job.sweep.is_some_and(|sweep| audit.subject == sweep.to_string()),
        _ => false,
    }
}
