//! Base models: directories under `base_roots`, registered in place, judged from their headers by `lorikeet inspect base`.

use crate::{
    access::{Actor, Refusal},
    cluster::{Action, Cluster, Inspect, Now, job, put},
    record::{Base, BaseState, Receipt, Record},
};
use lorikeet_protocol::{
    file::NamedFile,
    id::BaseId,
    inspect::{Fault, Inspection},
};
use std::path::PathBuf;

impl Base {
    pub(crate) fn inspection(&self) -> Option<Inspect> {
        (self.state == BaseState::Validating).then(|| Inspect::Base { id: self.id, path: self.path.clone() })
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
        if self.bases.values().any(|base| base.name == name) {
            return Err(Refusal::conflict(format!("a base model named `{name}` is registered")));
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
        match result {
            Ok(Inspection::Base(findings)) => {
                base.state = BaseState::Ready;
                base.findings = Some(findings);
                base.files = files;
            }
            Ok(Inspection::Refused { faults }) => (base.state, base.faults) = (BaseState::Error, faults),
            Ok(Inspection::Dataset(_) | Inspection::Job(_)) => {
                (base.state, base.faults) =
                    (BaseState::Error, vec![job::fault("the inspection answered another question")])
            }
            Err(message) => (base.state, base.faults) = (BaseState::Error, vec![job::fault(&message)]),
        }
        out.push(put(Record::Base(base.clone())));
        let broken = (base.state == BaseState::Error).then(|| Fault {
            line: None,
            path: base.name.clone(),
            message: "the base model cannot be used".into(),
        });
        self.wake_submitted(|job| job.base == id, broken, now, out);
    }
}
