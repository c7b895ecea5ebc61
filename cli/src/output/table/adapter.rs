//! Models, and the files of their adapters, as tables.

use super::{fields, grid, moment, short, size, with_below, word};
use crate::output::View;
use lorikeet_api::model::{FileView, Model};
use serde_json::Value;

impl View for Vec<Model> {
    fn table(&self) -> String {
        let row = |model: &Model| {
            [
                model.id.to_string(),
                short(&model.name, 40),
                model.job_name.as_ref().map_or_else(|| model.job.to_string(), |name| short(name, 32)),
                word(&model.status),
                short(&model.base, 24),
                size(model.size_bytes),
                moment(model.created_at),
            ]
        };
        grid(["id", "name", "job", "status", "base", "size", "created"], self.iter().map(row))
    }
}

impl View for Model {
    fn table(&self) -> String {
        let summary = self.summary.as_ref().and_then(|summary| summary.as_object());
        let summary = summary.into_iter().flatten().filter(|(_, value)| !value.is_object() && !value.is_array());
        let summary: Vec<_> = summary.map(|(name, value)| (name.replace('_', " "), value_of(value))).collect();
        let table = fields(
            [
                ("id", Some(self.id.to_string())),
                ("name", Some(self.name.clone())),
                ("version", Some(self.version.clone())),
                ("description", self.description.clone()),
                ("status", Some(word(&self.status))),
                ("job", Some(job(self))),
                ("base", Some(self.base.clone())),
                ("dataset", Some(self.dataset.clone())),
                ("created", Some(moment(self.created_at))),
            ]
            .into_iter()
            .chain(summary.iter().map(|(name, value)| (name.as_str(), Some(value.trim_matches('"').to_owned())))),
        );
        with_below(table, "files:", Some(files(&self.files)))
    }
}

/// What made it, by both of its names.
fn job(model: &Model) -> String {
    model.job_name.as_ref().map_or_else(|| model.job.to_string(), |name| format!("{name} ({})", model.job))
}

/// Six digits of a number are enough for people.
fn value_of(value: &Value) -> String {
    match value.as_f64().filter(|number| number.fract() != 0.0) {
        Some(number) if number.abs() < 1e-3 => format!("{number:.3e}"),
        Some(number) => format!("{number:.4}"),
        None => value.to_string(),
    }
}

fn files(files: &[FileView]) -> String {
    let row = |file: &FileView| [file.path.clone(), size(file.size_bytes), file.hash.to_string()];
    grid(["file", "size", "blake3"], files.iter().map(row))
}
