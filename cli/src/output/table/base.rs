//! Base models as tables.

use super::{count, fields, grid, moment, short, size, with_below, word};
use crate::output::View;
use lorikeet_api::{base::BaseModel, dataset::DatasetFault};

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
        let table = grid(["id", "name", "status", "architecture", "parameters", "type", "size"], self.iter().map(row));
        let why = |base: &BaseModel| {
            let place = base.path.as_ref().map(|path| format!(" ({path})")).unwrap_or_default();
            base.errors.first().map(|fault| format!("{}{place}: {}", base.name, in_words(fault)))
        };
        with_below(table, "cannot be used:", Some(self.iter().filter_map(why).collect::<Vec<_>>().join("\n")))
    }
}

/// A fault of the whole directory has no file.
pub(crate) fn in_words(fault: &DatasetFault) -> String {
    let place = if fault.path.is_empty() { String::new() } else { format!("{}: ", fault.path) };
    format!("{place}{}", fault.message)
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
        with_below(table, "faults:", Some(self.errors.iter().map(in_words).collect::<Vec<_>>().join("\n")))
    }
}
