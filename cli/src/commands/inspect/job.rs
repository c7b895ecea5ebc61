//! What a job comes to: dataset × base × settings. Nothing is written and nothing is loaded.

use super::{base, dataset_faults, fault, tokenizer_fault};
use crate::failure::Failure;
use lorikeet_dataset::{JobCheck, OnFault, PrepareConfig, Supervise, Tokenizer, check_job};
use lorikeet_plan::{AdapterShape, BaseDtype, ModelConfig, Processor, Quantisation, Settings, Wish, fit};
use lorikeet_protocol::{
    inspect::{Fault, JobFindings, JobQuestion, RenderedExample, RenderedPart},
    job::{self, MicroTokens, Task, Train, Training, TrainingLength},
};
use lorikeet_trainer::{Trained, config::Device};
use std::{
    io::{self, Read},
    path::{Path, PathBuf},
};

/// A job's settings are a few kilobytes.
const MAX_QUESTION_BYTES: u64 = 1 << 20;

/// From standard input.
pub(super) fn question() -> Result<JobQuestion, Failure> {
    let mut text = String::new();
    let read = io::stdin().take(MAX_QUESTION_BYTES).read_to_string(&mut text);
    read.map_err(|error| Failure::mistake(format!("read the job's settings from standard input: {error}")))?;
    serde_json::from_str(&text).map_err(|error| Failure::mistake(format!("read the job's settings as JSON: {error}")))
}

/// Examples, steps, tokens and memory.
pub(super) fn inspect(
    base: &Path,
    data: (&Path, Option<&Path>),
    question: &JobQuestion,
) -> Result<JobFindings, Vec<Fault>> {
    let Task::Train(train) = &question.job.task;
    let unusable = |faults| of_base(&question.job.base, faults);
    let config = base::config(base).map_err(unusable)?;
    let tokenizer = Tokenizer::load(base).map_err(|error| unusable(vec![tokenizer_fault(&error)]))?;
    let trained = trained(&config, train)?;
    let prepare = prepare(train, data);
    let check = check_job(&prepare, &tokenizer, &mut |_| (), &|| false).map_err(dataset_faults)?;
    let memory = |processor| {
        let stored = stored(&config, train.training.base_dtype, processor);
        let wish = wish(trained, &train.training, (check.longest_tokens, check.epoch_tokens), (processor, stored));
        fit(&config, &wish).map_or_else(|short| short.least.memory.total, |fitted| fitted.memory.total)
    };
    Ok(JobFindings {
        total_steps: steps(&train.training, &check),
        cpu_bytes: memory(Processor::Cpu),
        cuda_bytes: memory(Processor::Cuda),
        ..findings(check)
    })
}

/// Beside the dataset's faults, those of the base say whose they are.
fn of_base(name: &str, faults: Vec<Fault>) -> Vec<Fault> {
    faults.into_iter().map(|Fault { path, message, .. }| fault(format!("base {name}, {path}"), message)).collect()
}

fn findings(check: JobCheck) -> JobFindings {
    let part = |piece: lorikeet_dataset::Piece| RenderedPart { text: piece.text, supervised: piece.supervised };
    let example = |sample: lorikeet_dataset::RenderedSample| RenderedExample {
        parts: sample.pieces.into_iter().map(part).collect(),
    };
    JobFindings {
        examples: check.examples,
        validation_examples: check.validation_examples,
        total_steps: 0,
        epoch_tokens: check.epoch_tokens,
        supervised_tokens: check.supervised_tokens,
        longest_tokens: check.longest_tokens,
        cut_examples: check.cut.examples,
        cut_tokens: check.cut.tokens,
        cpu_bytes: 0,
        cuda_bytes: 0,
        rendered: check.rendered.into_iter().map(example).collect(),
    }
}

fn steps(training: &Training, check: &JobCheck) -> u64 {
    match training.length {
        TrainingLength::Epochs(epochs) => check.steps(training.batch_size.into(), epochs.into()),
        TrainingLength::Steps(steps) => steps.into(),
    }
}

pub(in crate::commands) fn prepare(train: &Train, (dataset, validation): (&Path, Option<&Path>)) -> PrepareConfig {
    let training = &train.training;
    PrepareConfig {
        file: dataset.to_owned(),
        validation_file: validation.map(Path::to_owned),
        validation_fraction: training.validation_fraction,
        max_seq_length: training.max_seq_length as usize,
        supervise: match training.supervise {
            job::Supervise::Assistant => Supervise::Assistant,
            job::Supervise::Last => Supervise::Last,
            job::Supervise::Completion => Supervise::Completion,
            job::Supervise::All => Supervise::All,
        },
        seed: training.seed,
        filters: lorikeet_worker::filters(&train.data),
        on_fault: OnFault::Refuse,
        cache_dir: PathBuf::new(),
    }
}

/// What is trained, module by module as the trainer would place it.
fn trained(config: &ModelConfig, train: &Train) -> Result<AdapterShape, Vec<Fault>> {
    let trained = Trained::new(config, &lorikeet_worker::settings(&train.training, &train.lora, Device::Cpu));
    let trained = trained.map_err(|error| vec![fault("lora.target_modules", crate::failure::chain(&error))])?;
    Ok(trained.shape())
}

/// What there is to fit: the largest step is so many of the longest example, or all there is.
pub(in crate::commands) fn wish(
    trained: AdapterShape,
    training: &Training,
    (longest, all): (u64, u64),
    (processor, base_dtype): (Processor, BaseDtype),
) -> Wish {
    let longest = longest.max(1);
    let settings = Settings {
        adapters: vec![trained],
        base_dtype,
        processor,
        tokens_per_micro: 0,
        longest_segment: longest as usize,
        supervised_rows: 0,
        recompute: 0,
    };
    Wish {
        settings,
        step_tokens: (u64::from(training.batch_size) * longest).min(all.max(longest)) as usize,
        micro_tokens: match training.micro_tokens {
            MicroTokens::Tokens(tokens) => Some(tokens as usize),
            MicroTokens::Auto => None,
        },
        recompute: None,
        available: None,
        alone: true,
    }
}

/// How a processor keeps the frozen weights of a job: as their files hold them, where that is in fewer bits already.
pub(in crate::commands) fn stored(config: &ModelConfig, dtype: job::BaseDtype, processor: Processor) -> BaseDtype {
    let asked = match (dtype, processor) {
        (job::BaseDtype::Auto, Processor::Cuda) | (job::BaseDtype::Bf16, _) => BaseDtype::Bf16,
        (job::BaseDtype::Auto, Processor::Cpu) | (job::BaseDtype::F32, _) => BaseDtype::F32,
        (job::BaseDtype::Int8, _) => BaseDtype::Int8,
        (job::BaseDtype::Nf4, _) => BaseDtype::Nf4,
    };
    config.quantisation.map_or(asked, Quantisation::dtype)
}
