//! What a training file holds.

use super::{dataset_faults, line_fault};
use lorikeet_dataset::{Check, DatasetError, Format, Tokenizer, check};
use lorikeet_protocol::inspect::{DatasetFindings, DatasetFormat, Fault, SampleMessage};
use std::path::Path;

/// Counts and faults; with a tokenizer, tokens too. A file of no known format is a finding of its own.
pub(super) fn inspect(file: &Path, tokenizer: Option<&Tokenizer>) -> Result<DatasetFindings, Vec<Fault>> {
    match check(file, tokenizer, &mut |_| (), &|| false) {
        Ok(check) => Ok(trainable(findings(check))),
        Err(error @ DatasetError::UnknownFormat { .. }) => Ok(unknown(dataset_faults(error))),
        Err(error) => Err(dataset_faults(error)),
    }
}

fn findings(check: Check) -> DatasetFindings {
    DatasetFindings {
        format: Some(format(check.format)),
        conversations: check.conversations,
        pairs: check.pairs,
        trainable_pairs: check.trainable_pairs,
        average_turns: check.average_turns_per_conversation,
        tokens: check.tokens,
        warnings: check.warnings,
        errors: check.errors.into_iter().map(line_fault).collect(),
        error_count: check.error_count,
        samples: check.samples.into_iter().map(|sample| sample.messages.into_iter().map(message).collect()).collect(),
    }
}

/// A file without a fault that trains nothing is faulty as a whole.
fn trainable(mut findings: DatasetFindings) -> DatasetFindings {
    if findings.trainable_pairs == 0 && findings.error_count == 0 {
        findings.errors.push(Fault::whole("it holds no pair that can be trained on"));
        findings.error_count = 1;
    }
    findings
}

fn unknown(errors: Vec<Fault>) -> DatasetFindings {
    DatasetFindings {
        format: None,
        conversations: 0,
        pairs: 0,
        trainable_pairs: 0,
        average_turns: 0.0,
        tokens: None,
        warnings: Vec::new(),
        error_count: errors.len() as u64,
        errors,
        samples: Vec::new(),
    }
}

/// In the wire's words.
pub(in crate::commands) fn format(format: Format) -> DatasetFormat {
    match format {
        Format::BrightrunLoraV4 => DatasetFormat::BrightrunLoraV4,
        Format::ChatMessages => DatasetFormat::ChatMessages,
        Format::Sharegpt => DatasetFormat::Sharegpt,
        Format::Alpaca => DatasetFormat::Alpaca,
        Format::PromptCompletion => DatasetFormat::PromptCompletion,
        Format::Text => DatasetFormat::Text,
    }
}

fn message(message: lorikeet_dataset::SampleMessage) -> SampleMessage {
    let content = message.content.chars().take(2_000).collect();
    SampleMessage { role: message.role, content, supervised: message.supervised }
}
