//! Base models: directories under `base_roots`, registered in place, judged from their headers by `lorikeet inspect base`.

use crate::{
    access::{Actor, Refusal},
    cluster::{
        Action, Cause, Cluster, Inspect, Now,
        job::{JobState, Obstacle},
        put,
    },
    record::{Base, BaseState, Receipt, Record},
};
use lorikeet_protocol::{
    file::NamedFile,
    id::{BaseId, Hash, JobId},
    inspect::{Fault, Inspection},
};
use std::path::PathBuf;

impl Base {
    pub(crate) fn inspection(&self) -> Option<Inspect> {
        (self.state == BaseState::Validating).then(|| Inspect::Base { id: self.id, path: self.path.clone() })
    }
}

impl Base {
    /// What its files are.
    pub(crate) fn hashes(&self) -> Vec<Hash> {
        self.files.iter().map(|file| file.manifest.hash).collect()
    }

    /// Whether models may have been made on it: then its name stands for those files, wherever they are now.
    fn was_ready(&self) -> bool {
        !self.files.is_empty()
    }

    /// Registered anew: what could not be used, or changed, is read again. One that is fine stays as it is.
    fn judge_again(&mut self, out: &mut Vec<Action>) -> Receipt {
        if matches!(self.state, BaseState::Error | BaseState::Changed) {
            self.state = BaseState::Validating;
            out.push(put(Record::Base(self.clone())));
            out.extend(self.inspection().map(Action::Inspect));
        }
        Receipt::Base(self.id)
    }
}

impl Cluster {
    pub(crate) fn register_base(
        &mut self,
        actor: Actor,
        id: BaseId,
        name: String,
        path: PathBuf,
        now: Now,
        out: &mut Vec<Action>,
    ) -> Result<Receipt, Refusal> {
        actor.require_admin("register base models")?;
        if let Some(known) = self.bases.values_mut().find(|base| base.name == name) {
            let needed = || self.jobs.values().any(|job| job.record.base == known.id);
            if known.path != path && (known.state != BaseState::Error || known.was_ready() || needed()) {
                return Err(taken(known));
            }
            known.path = path;
            return Ok(known.judge_again(out));
        }
        let base = Base {
            id,
            name,
            owner: actor.owner()?,
            path,
            state: BaseState::Validating,
            findings: None,
            files: vec![],
            faults: vec![],
            created: now.wall,
            deleted_at: None,
        };
        out.push(put(Record::Base(base.clone())));
        out.extend(base.inspection().map(Action::Inspect));
        self.bases.insert(id, base);
        Ok(Receipt::Base(id))
    }

    pub(crate) fn remove_base(
        &mut self,
        actor: Actor,
        id: BaseId,
        now: Now,
        out: &mut Vec<Action>,
    ) -> Result<Receipt, Refusal> {
        actor.require_admin("remove base models")?;
        if let Some(job) = self.jobs.values().find(|job| job.record.base == id) {
            return Err(Refusal::conflict(format!("job {} needs the base model", job.record.id)));
        }
        let mut base = self.bases.remove(&id).ok_or_else(|| Refusal::not_found("base model"))?;
        base.deleted_at = Some(now.wall);
        out.push(put(Record::Base(base)));
        Ok(Receipt::Base(id))
    }

    pub(crate) fn base_inspected(
        &mut self,
        id: BaseId,
        result: Result<Inspection, String>,
        files: Vec<NamedFile>,
        now: Now,
        out: &mut Vec<Action>,
    ) {
        let Some(base) = self.bases.get_mut(&id).filter(|base| base.state == BaseState::Validating) else { return };
        let before = base.hashes();
        base.faults = vec![];
        match result {
            Ok(Inspection::Base(findings)) => {
                base.state = BaseState::Ready;
                base.findings = Some(findings);
                base.files = files;
            }
            Ok(Inspection::Refused { faults }) => (base.state, base.faults) = (BaseState::Error, faults),
            Ok(Inspection::Dataset(_) | Inspection::Job(_)) => {
                (base.state, base.faults) =
                    (BaseState::Error, vec![Fault::whole("the inspection answered another question")])
            }
            Err(message) => (base.state, base.faults) = (BaseState::Error, vec![Fault::whole(message)]),
        }
        out.push(put(Record::Base(base.clone())));
        let broken = (base.state == BaseState::Error).then(|| Fault {
            line: None,
            path: base.name.clone(),
            message: "the base model cannot be used".into(),
        });
        let same = before.is_empty() || before == base.hashes();
        if base.state == BaseState::Ready {
            self.unblock(id, same, now, out);
        }
        self.wake_submitted(|job| job.base == id, broken, now, out);
    }

    /// A chunk did not match its hash. Every base that names the file is closed, and its waiting jobs with it.
    pub(crate) fn mark_changed(
        &mut self,
        actor: Actor,
        file: Hash,
        now: Now,
        out: &mut Vec<Action>,
    ) -> Result<Receipt, Refusal> {
        actor.require_admin("close base models")?;
        let names = |base: &&mut Base| base.files.iter().any(|named| named.manifest.hash == file);
        let ready = self.bases.values_mut().filter(|base| base.state == BaseState::Ready);
        let closed = ready.filter(names).map(|base| {
            base.state = BaseState::Changed;
            // Without the directory's path: everybody reads this, and the path is the administrators'.
            let message = "its files are no longer what was registered; restore them and register the directory again";
            base.faults = vec![Fault::whole(message.to_owned())];
            out.push(put(Record::Base(base.clone())));
            base.id
        });
        let closed: Vec<BaseId> = closed.collect();
        // What waits for something else would be let go over weights that it was not judged with.
        let waits = |job: &JobState| matches!(job, JobState::Queued | JobState::Blocked(_));
        for id in closed.iter().flat_map(|base| self.jobs_in(*base, waits)).collect::<Vec<_>>() {
            self.settle(id, JobState::Queued, &Cause::default(), now, out);
        }
        Ok(closed.first().map_or(Receipt::Done, |id| Receipt::Base(*id)))
    }

    /// What waited for the files: goes on if they are the same again, else begins anew.
    fn unblock(&mut self, base: BaseId, same: bool, now: Now, out: &mut Vec<Action>) {
        for id in self.jobs_in(base, |state| *state == JobState::Blocked(Obstacle::BaseChanged)) {
            // One that waits for another of them has gone with it.
            let Some(job) = self.jobs.get(&id) else { continue };
            let begun = job.record.checkpoint.is_some();
            let state = if same || begun { JobState::Queued } else { JobState::Submitted };
            self.settle(id, state, &Cause::default(), now, out);
        }
    }

    fn jobs_in(&self, base: BaseId, wanted: impl Fn(&JobState) -> bool) -> Vec<JobId> {
        let there = self.jobs.values().filter(|job| job.record.base == base && wanted(&job.record.state));
        there.map(|job| job.record.id).collect()
    }
}

/// Only administrators are told, so the path may be.
fn taken(base: &Base) -> Refusal {
    let (name, path) = (&base.name, base.path.display());
    Refusal::conflict(format!("the base model named `{name}` lies in another directory, {path}"))
}
