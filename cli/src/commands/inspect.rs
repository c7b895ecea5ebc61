//! `lorikeet inspect …`: judges a user's file and prints one [`Inspection`], whatever it finds. Started by the coordinator as a
//! child process, so that a file that is a trap takes nothing down but this process; its limits it sets itself, before it
//! opens anything.

pub(super) mod base;
mod dataset;
pub(super) mod job;
mod limits;
mod parent;

pub(super) use dataset::format as dataset_format;

use crate::{
    args::{Inspect as Args, Inspection as Limited},
    failure::Failure,
    output::Output,
};
use lorikeet_dataset::{DatasetError, Tokenizer, TokenizerError};
use lorikeet_protocol::inspect::{DatasetFindings, Fault, Inspection, NAMED_FAULTS};
use std::path::{Path, PathBuf};

/// Judges and prints. A file that cannot be used is a finding, not a failure of this command.
pub(crate) fn run(output: Output, limited: &Limited) -> Result<(), Failure> {
    parent::end_with()?;
    limits::set(limited.memory_bytes, limited.seconds)?;
    let args = &limited.what;
    limits::fence(output, args)?;
    let found = match args {
        Args::Dataset { file } => dataset::inspect(file, None).map(Inspection::Dataset),
        Args::Base { directory } => base::inspect(directory).map(Inspection::Base),
        Args::Job { base, dataset, validation } => {
            job::inspect(base, (dataset.as_path(), validation.as_deref()), &job::question()?).map(Inspection::Job)
        }
    };
    let mut found = found.unwrap_or_else(|faults| Inspection::Refused { faults });
    match args {
        Args::Dataset { file } => hide(&mut found, &[file]),
        Args::Base { directory } => hide(&mut found, &[directory]),
        Args::Job { base, dataset, validation } => {
            hide(&mut found, &[base, dataset].into_iter().chain(validation).collect::<Vec<_>>());
        }
    }
    output.object(&found)
}

/// Takes the coordinator's paths out of what its users read: what lies in a directory is called by its name there.
fn hide(found: &mut Inspection, paths: &[&PathBuf]) {
    let faults = match found {
        Inspection::Refused { faults } | Inspection::Dataset(DatasetFindings { errors: faults, .. }) => faults,
        Inspection::Base(_) | Inspection::Job(_) => return,
    };
    for fault in faults {
        for path in paths {
            let path = path.display().to_string();
            fault.message = fault.message.replace(&format!("{path}/"), "").replace(&path, "the file");
        }
    }
}

/// What `lorikeet dataset check` tells, without limits: the file is the person's own.
pub(super) fn check(file: &Path, base: Option<&Path>) -> Result<DatasetFindings, Vec<Fault>> {
    let tokenizer = base.map(Tokenizer::load).transpose().map_err(|error| vec![tokenizer_fault(&error)])?;
    dataset::inspect(file, tokenizer.as_ref())
}

fn fault(path: impl Into<String>, message: impl Into<String>) -> Fault {
    Fault { line: None, path: path.into(), message: message.into() }
}

pub(super) fn tokenizer_fault(error: &TokenizerError) -> Fault {
    fault("tokenizer.json", crate::failure::chain(error))
}

/// Every fault of a file, or the one reason why it cannot be read at all.
pub(super) fn dataset_faults(error: DatasetError) -> Vec<Fault> {
    if let DatasetError::Faulty { faults, .. } = error {
        return faults.listed.into_iter().take(NAMED_FAULTS).map(line_fault).collect();
    }
    vec![fault("$", crate::failure::chain(&error))]
}

/// In the wire's words.
pub(super) fn line_fault(found: lorikeet_dataset::Fault) -> Fault {
    Fault { line: Some(found.line), path: found.path, message: found.message }
}
