//! What a base directory holds, from its texts and headers; no weight is read.

use super::{fault, tokenizer_fault};
use lorikeet_dataset::{TemplateSource, Tokenizer};
use lorikeet_plan::{Base, BaseFault, ModelConfig, WeightDtype, inspect_base};
use lorikeet_protocol::{
    file::is_plain_path,
    inspect::{BaseFindings, Fault},
};
use std::path::Path;

/// Config, tensors and tokenizer, each against the others.
pub(super) fn inspect(directory: &Path) -> Result<BaseFindings, Vec<Fault>> {
    let base = inspect_base(directory);
    let tokenizer = Tokenizer::load(directory);
    let mut faults: Vec<_> = base.faults.iter().map(base_fault).collect();
    match (&tokenizer, &base.config) {
        (Err(error), _) => faults.push(tokenizer_fault(error)),
        (Ok(tokenizer), Some(config)) => {
            faults.extend(tokenizer.check_fits(config.vocab_size).err().map(|error| tokenizer_fault(&error)));
        }
        (Ok(_), None) => {}
    }
    let odd = base.files.iter().find(|file| !is_plain_path(&file.name));
    faults.extend(
        odd.map(|file| fault(file.name.clone(), "its name cannot be kept; expected letters, digits, `.`, `-`, `_`")),
    );
    match (tokenizer, faults.is_empty()) {
        (Ok(tokenizer), true) => Ok(findings(base, &tokenizer)),
        _ => Err(faults),
    }
}

/// A sound base's shape.
pub(in crate::commands) fn config(directory: &Path) -> Result<ModelConfig, Vec<Fault>> {
    let base = inspect_base(directory);
    let faults = base.faults.iter().map(base_fault).collect();
    base.config.filter(|_| base.fault_count == 0).ok_or(faults)
}

fn findings(base: Base, tokenizer: &Tokenizer) -> BaseFindings {
    BaseFindings {
        architecture: base.architecture.unwrap_or_default(),
        parameters: base.parameters,
        config_json: base.config_text,
        dtype: dtype(base.dtype),
        vocabulary: tokenizer.entries() as u64,
        chat_template: tokenizer.template_source() == TemplateSource::Model,
        files: base.files.into_iter().map(|file| file.name).collect(),
    }
}

fn dtype(dtype: Option<WeightDtype>) -> String {
    let name = dtype.and_then(|dtype| serde_json::to_value(dtype).ok());
    name.and_then(|name| name.as_str().map(str::to_uppercase)).unwrap_or_default()
}

fn base_fault(found: &BaseFault) -> Fault {
    let hint = found.hint.as_ref().map(|hint| format!("; {hint}")).unwrap_or_default();
    fault(found.file.clone(), format!("{}{hint}", found.message))
}
