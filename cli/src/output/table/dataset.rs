//! Datasets as tables.

use super::{count, fields, grid, moment, short, size, with_below, word};
use crate::output::View;
use lorikeet_api::dataset::{Dataset, DatasetFault};
use lorikeet_protocol::inspect::{DatasetFindings, Fault};

impl View for Vec<Dataset> {
    fn table(&self) -> String {
        let row = |dataset: &Dataset| {
            [
                dataset.id.to_string(),
                short(&dataset.name, 40),
                word(&dataset.status),
                dataset.format.as_ref().map(word).unwrap_or_default(),
                dataset.training_pairs.map(count).unwrap_or_default(),
                size(dataset.size_bytes),
                moment(dataset.created_at),
            ]
        };
        grid(["id", "name", "status", "format", "pairs", "size", "created"], self.iter().map(row))
    }
}

impl View for Dataset {
    fn table(&self) -> String {
        let table = fields([
            ("id", Some(self.id.to_string())),
            ("name", Some(self.name.clone())),
            ("description", self.description.clone()),
            ("status", Some(word(&self.status))),
            ("format", self.format.as_ref().map(word)),
            ("file", Some(self.file_name.clone())),
            ("size", Some(size(self.size_bytes))),
            ("hash", self.content_hash.map(|hash| hash.to_string())),
            ("conversations", self.conversations.map(count)),
            ("pairs", self.pairs.map(count)),
            ("trainable pairs", self.training_pairs.map(count)),
            ("turns each", self.average_turns.map(|turns| format!("{turns:.1}"))),
            ("created", Some(moment(self.created_at))),
            ("validated", self.validated_at.map(moment)),
            ("warnings", Some(self.warnings.join("\n")).filter(|text| !text.is_empty())),
        ]);
        with_below(table, &title(self.error_count), faults(self.errors.iter().map(Line::from)))
    }
}

impl View for DatasetFindings {
    fn table(&self) -> String {
        // Of what nothing can be read there is nothing to count.
        let some = |text: String| Some(text).filter(|_| self.conversations > 0);
        let table = fields([
            ("format", Some(self.format.as_ref().map_or_else(|| "none that is known".to_owned(), word))),
            ("conversations", some(count(self.conversations))),
            ("pairs", some(count(self.pairs))),
            ("trainable pairs", some(count(self.trainable_pairs))),
            ("turns each", some(format!("{:.1}", self.average_turns))),
            ("tokens", self.tokens.map(count)),
            ("warnings", Some(self.warnings.join("\n")).filter(|text| !text.is_empty())),
        ]);
        let judged = with_below(table, &title(self.error_count), faults(self.errors.iter().map(Line::from)));
        if self.pairs == 0 { judged } else { format!("{judged}\n\n{COUNTED}") }
    }
}

/// How a file comes to have fewer conversations than lines.
const COUNTED: &str = "A pair is one question with its answer. Lines that are the same up to their last answer are one\n\
    conversation, and a conversation is held out as a whole, so that no question held out is seen in training.";

/// One fault, whoever found it.
struct Line<'a>(Option<u64>, &'a str, &'a str);

impl<'a> From<&'a DatasetFault> for Line<'a> {
    fn from(fault: &'a DatasetFault) -> Self {
        Self(fault.line, &fault.path, &fault.message)
    }
}

impl<'a> From<&'a Fault> for Line<'a> {
    fn from(fault: &'a Fault) -> Self {
        Self(fault.line, &fault.path, &fault.message)
    }
}

fn title(faults: u64) -> String {
    match faults {
        1 => "1 fault:".to_owned(),
        many => format!("{} faults:", count(many)),
    }
}

fn faults<'a>(faults: impl Iterator<Item = Line<'a>>) -> Option<String> {
    let rows: Vec<_> = faults
        .map(|Line(line, path, message)| {
            [line.map(|line| line.to_string()).unwrap_or_default(), path.to_owned(), short(message, 200)]
        })
        .collect();
    (!rows.is_empty()).then(|| grid(["line", "path", "what is wrong"], rows))
}

/// Faults of any file, for error messages.
pub(crate) fn fault_lines(faults: &[Fault]) -> String {
    faults.iter().take(10).map(|fault| format!("\n  {}", fault_line(fault))).collect()
}

/// One fault, in one line whatever a template or a file says.
pub(crate) fn fault_line(fault: &Fault) -> String {
    let message = fault.message.replace(['\n', '\r'], " ");
    match fault.line {
        Some(line) => format!("line {line}, {}: {message}", fault.path),
        None if fault.path.is_empty() => message,
        None => format!("{}: {message}", fault.path),
    }
}
