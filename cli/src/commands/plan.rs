//! `lorikeet plan`: what a training would take, from the base's texts and headers. No weight is read.

use super::{
    inspect::{base, dataset_faults, job, tokenizer_fault},
    local, train,
};
use crate::{
    args::Plan as Args,
    failure::{Failure, chain},
    output::{
        Output,
        table::{dataset::fault_line, plan::Planned},
    },
};
use lorikeet_dataset::{Tokenizer, check_job};
use lorikeet_plan::{Processor, Wish, fit, parameters};
use lorikeet_protocol::{
    inspect::Fault,
    job::{Task, Train},
};
use lorikeet_trainer::{TrainError, Trained, config::Device};
use std::path::Path;

/// Plans and tells. A training that does not fit is a mistake of the settings.
pub(crate) fn run(output: Output, args: &Args) -> Result<(), Failure> {
    let directory = local::base(&args.base)?;
    let dataset = args.dataset.as_deref().map(|dataset| train::existing(dataset, "the training file")).transpose()?;
    let file = train::file(&directory, dataset.as_deref().unwrap_or(&directory));
    let spec = train::job(file, args.preset.as_deref(), &args.set)?;
    let Task::Train(train) = &spec.task;
    let config = base::config(&directory).map_err(|faults| refused(&faults))?;
    let (device, processor) = if args.gpu { (Device::Gpu(0), Processor::Cuda) } else { (Device::Cpu, Processor::Cpu) };
    let settings = lorikeet_worker::settings(&train.training, &train.lora, device);
    let trained = Trained::new(&config, &settings).map_err(unplannable)?;
    device.takes(&config, &settings).map_err(unplannable)?;
    let lengths = lengths(&directory, dataset.as_deref(), train).map_err(|faults| refused(&faults))?;
    let stored = job::stored(&config, train.training.base_dtype, processor);
    let wish = job::wish(trained.shape(), &train.training, lengths, (processor, stored));
    let fitted =
        fit(&config, &Wish { available: args.memory, ..wish }).map_err(|short| too_large(TrainError::from(*short)))?;
    output.answer(&Planned {
        base_parameters: parameters(&config),
        trainable_parameters: trained.trained() as u64,
        longest_tokens: lengths.0,
        micro_tokens: fitted.micro_tokens as u64,
        recompute: fitted.recompute as u64,
        memory_bytes: fitted.memory.total,
        memory: lorikeet_worker::memory(&fitted.memory),
        modules: trained.matched().iter().map(lorikeet_worker::modules).collect(),
    })
}

/// Tokens of the longest example, and of all.
fn lengths(base: &Path, dataset: Option<&Path>, train: &Train) -> Result<(u64, u64), Vec<Fault>> {
    let Some(dataset) = dataset else { return Ok((train.training.max_seq_length.into(), u64::MAX)) };
    let tokenizer = Tokenizer::load(base).map_err(|error| vec![tokenizer_fault(&error)])?;
    let check =
        check_job(&job::prepare(train, (dataset, None)), &tokenizer, &mut |_| (), &|| false).map_err(dataset_faults)?;
    Ok((check.longest_tokens, check.epoch_tokens))
}

fn unplannable(error: TrainError) -> Failure {
    Failure::mistake(format!("the training cannot be planned: {}", chain(&error)))
}

fn refused(faults: &[Fault]) -> Failure {
    let first = faults.first().map(fault_line).unwrap_or_default();
    Failure::mistake(format!("the training cannot be planned: {first}"))
}

fn too_large(error: TrainError) -> Failure {
    let failure = Failure::mistake(format!("the training does not fit: {error}"));
    match error.hint() {
        Some(hint) => failure.hint(&hint),
        None => failure,
    }
}
