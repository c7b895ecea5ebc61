//! Dataset × base × settings: what a job comes to, before anything is trained. Nothing is written.

use serde::{Deserialize, Serialize};

use crate::cache::Entry;
use crate::encode::{Encoder, RenderedSample};
use crate::pipeline::{Outcome, Pipeline};
use crate::prepare::CutTotal;
use crate::preview::preview;
use crate::split::split;
use crate::{DatasetError, Faults, OnFault, PrepareConfig, Progress, Tokenizer};

/// What a job comes to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobCheck {
    /// Training examples.
    pub examples: u64,
    /// Held-out examples.
    pub validation_examples: u64,
    /// Tokens of one epoch.
    pub epoch_tokens: u64,
    /// Targets of one epoch.
    pub supervised_tokens: u64,
    /// The longest example of both sides.
    pub longest_tokens: u64,
    /// Targets in the example that has most of them.
    pub most_supervised: u64,
    /// What was cut to fit.
    pub cut: CutTotal,
    /// Worth knowing, not wrong.
    pub warnings: Vec<String>,
    /// Three examples as the model sees them.
    pub rendered: Vec<RenderedSample>,
}

impl JobCheck {
    /// Optimizer steps: the last step of an epoch may be smaller.
    pub const fn steps(&self, batch_size: u64, epochs: u64) -> u64 {
        self.examples.div_ceil(batch_size) * epochs
    }
}

/// Goes through the whole dataset as preparing would.
pub fn check_job(
    config: &PrepareConfig,
    tokenizer: &Tokenizer,
    progress: &mut dyn FnMut(Progress),
    stop: &dyn Fn() -> bool,
) -> Result<JobCheck, DatasetError> {
    let encoder = Encoder { tokenizer, supervise: config.supervise, max_seq_length: config.max_seq_length };
    let (entries, warnings) = entries(config, &config.file, encoder, progress, stop)?;
    let (train, held_out) = match &config.validation_file {
        Some(file) => (entries, self::entries(config, file, encoder, progress, stop)?.0),
        None => {
            let (train, held_out) = split(entries.iter().copied(), config.validation_fraction, config.seed);
            let pick = |numbers: Vec<u32>| numbers.into_iter().map(|number| entries[number as usize]).collect();
            (pick(train), pick(held_out))
        }
    };
    if train.is_empty() {
        return Err(DatasetError::Empty { path: config.file.clone() });
    }
    let mut cut = CutTotal::default();
    train.iter().chain(&held_out).for_each(|entry| cut.add(entry.cut));
    let most = |part: fn(&Entry) -> u32| train.iter().chain(&held_out).map(part).max().map_or(0, u64::from);
    Ok(JobCheck {
        examples: train.len() as u64,
        validation_examples: held_out.len() as u64,
        epoch_tokens: train.iter().map(|entry| u64::from(entry.tokens)).sum(),
        supervised_tokens: train.iter().map(|entry| u64::from(entry.supervised)).sum(),
        longest_tokens: most(|entry| entry.tokens),
        most_supervised: most(|entry| entry.supervised),
        cut,
        warnings,
        rendered: preview(&config.file, &config.filters, encoder)?.samples,
    })
}

fn entries(
    config: &PrepareConfig,
    file: &std::path::Path,
    encoder: Encoder<'_>,
    progress: &mut dyn FnMut(Progress),
    stop: &dyn Fn() -> bool,
) -> Result<(Vec<Entry>, Vec<String>), DatasetError> {
    let pipeline = Pipeline { path: file, encoder: Some(encoder), filters: &config.filters, stop };
    let (mut entries, mut faults) = (Vec::new(), Faults::default());
    let summary = pipeline.run(progress, &mut |outcome| {
        match outcome {
            Outcome::Example(_, example) => entries.push(Entry::of(&example)),
            Outcome::NoTarget(..) | Outcome::Filtered(..) => {}
            Outcome::Fault(fault) => faults.push(fault),
        }
        Ok(())
    })?;
    if faults.is_empty() || config.on_fault == OnFault::Skip {
        return Ok((entries, summary.warnings));
    }
    Err(DatasetError::Faulty { path: file.to_owned(), faults: faults.concluded() })
}
