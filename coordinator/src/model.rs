//! Models: the records of finished adapters. They are made in the turn that records a success (`cluster/attempt.rs`).

use crate::{
    access::{Actor, Refusal},
    cluster::{Action, Cluster, Now, put},
    record::{Model, Receipt, Record},
};
use lorikeet_api::name;
use lorikeet_protocol::{file::NamedFile, id::ModelId};

impl Model {
    /// Whether it is still there, with all of these files.
    pub(crate) fn holds(&self, files: &[NamedFile]) -> bool {
        self.deleted_at.is_none() && files.iter().all(|file| self.files.contains(file))
    }
}

impl Cluster {
    pub(crate) fn patch_model(
        actor: Actor,
        id: ModelId,
        row: Option<Model>,
        name: Option<String>,
        description: Option<String>,
        out: &mut Vec<Action>,
    ) -> Result<Receipt, Refusal> {
        let mut model = own_model(actor, id, row)?;
        if let Some(name) = name {
            if !name::is_name(&name) {
                return Err(Refusal::invalid("name", format!("expected {}", name::NAME)));
            }
            model.name = name;
        }
        model.description = description.or(model.description);
        out.push(put(Record::Model(model)));
        Ok(Receipt::Model(id))
    }

    pub(crate) fn delete_model(
        actor: Actor,
        id: ModelId,
        row: Option<Model>,
        now: Now,
        out: &mut Vec<Action>,
    ) -> Result<Receipt, Refusal> {
        let mut model = own_model(actor, id, row)?;
        model.deleted_at = Some(now.wall);
        out.push(put(Record::Model(model)));
        Ok(Receipt::Model(id))
    }
}

fn own_model(actor: Actor, id: ModelId, row: Option<Model>) -> Result<Model, Refusal> {
    actor.find(row.filter(|row| row.id == id && row.deleted_at.is_none()), |model| model.owner, "model")
}
