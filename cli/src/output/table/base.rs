//! Base models as tables.

use super::{count, fields, grid, moment, short, size, with_below, word};
use crate::output::View;
use lorikeet_api::base::BaseModel;

impl View for Vec<BaseModel> {
    fn table(&self) -> String {
        let row = |base: &BaseModel| {
            [
                base.id.to_string(),
                short(&base.name, 40),
                word(&base.status),
                base.architecture.clone().unwrap_or_default(),
                base.parameters.map(count).unwrap_or_default(),
                base.dtype.clone().unwrap_or_default(),
                size(base.size_bytes),
            ]
        };
        grid(["id", "name", "status", "architecture", "parameters", "type", "size"], self.iter().map(row))
    }
}

impl View for BaseModel {
    fn table(&self) -> String {
        let table = fields([
            ("id", Some(self.id.to_string())),
            ("name", Some(self.name.clone())),
            ("status", Some(word(&self.status))),
            ("path", self.path.clone()),
            ("architecture", self.architecture.clone()),
            ("parameters", self.parameters.map(count)),
            ("type", self.dtype.clone()),
            ("vocabulary", self.vocabulary.map(count)),
            ("size", Some(size(self.size_bytes))),
            ("created", Some(moment(self.created_at))),
        ]);
        let faults = self.errors.iter().map(|fault| format!("{}: {}", fault.path, fault.message));
        with_below(table, "faults:", Some(faults.collect::<Vec<_>>().join("\n")))
    }
}
