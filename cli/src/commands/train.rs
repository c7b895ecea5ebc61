//! `lorikeet train`: one attempt directory, one training, no cluster.
//!
//! The directory is the same as a worker's under an agent. Run again, the command goes on from the newest whole checkpoint; with
//! other settings it refuses, because two trainings in one directory would be neither.

mod directory;
mod summary;

use super::{gpu, local};
use crate::{
    args::Train,
    failure::Failure,
    interrupt, logging,
    output::{
        Output, View,
        progress::{Point, TrainingProgress},
        table::plan::Planned,
    },
};
use directory::Directory;
use lorikeet_api::{JobFile, Presets};
use lorikeet_protocol::{
    id::DeviceId,
    job::JobSpec,
    worker::{EventLine, Level, Spec, Stage, WorkerEvent},
};
use lorikeet_worker::{Bond, Exit, Hold, Terms};
use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};
use summary::Summary;

/// Trains to an outcome and tells it. Stopped is neither: the state is kept, and the exit code is that of an interrupted command.
pub(crate) fn run(output: Output, args: &Train) -> Result<ExitCode, Failure> {
    logging::start("warn");
    if args.gpu {
        gpu::there()?;
    }
    let spec = spec(args)?;
    let (directory, hold) = Directory::open(&args.out, &spec)?;
    if let Some(files) = directory.finished() {
        directory.check(&spec, &files)?;
        output.note(&format!("{} was finished already; this is what came of it", args.out.display()));
    } else {
        let exit = train(hold, args);
        let last = directory.last();
        if let Some(WorkerEvent::Stopped { step, checkpoint, .. }) = &last {
            output.note(&stopped(*step, checkpoint.as_deref(), &args.out));
            return Ok(ExitCode::from(interrupt::EXIT));
        }
        judge(exit, last.as_ref(), &args.out)?;
    }
    output.answer(&Summary::read(directory.path(), &directory.events())?)?;
    Ok(ExitCode::SUCCESS)
}

fn stopped(step: u64, checkpoint: Option<&str>, out: &Path) -> String {
    let saved = match checkpoint {
        Some(_) => format!("stopped after step {step}; the state is saved in {}", out.join("checkpoints").display()),
        None => "stopped; there was nothing new to save".to_owned(),
    };
    format!("{saved}\nrun the same command again to go on")
}

fn spec(args: &Train) -> Result<Spec, Failure> {
    let base = local::base(&args.base)?;
    let dataset = regular(&args.dataset, "the training file")?;
    let init_adapter = args.init_adapter.as_deref().map(local::adapter).transpose()?;
    let validation =
        args.validation_dataset.as_deref().map(|file| regular(file, "the file to evaluate on")).transpose()?;
    let out = absolute(&args.out)?;
    let mut file = file(&base, &dataset);
    file.data.validation_dataset = args.validation_dataset.as_deref().map(name);
    file.init_adapter = args.init_adapter.as_deref().map(name);
    Ok(Spec {
        attempt: None,
        job: job(file, args.preset.as_deref(), &args.set)?,
        base,
        dataset,
        validation,
        init_adapter,
        cache: out.join("cache"),
        devices: vec![if args.gpu { DeviceId("gpu".into()) } else { DeviceId::cpu() }],
        threads: args.threads,
    })
}

/// A job file that names what lies here.
pub(super) fn file(base: &Path, dataset: &Path) -> JobFile {
    JobFile::new(name(base), name(dataset))
}

/// The settings, as a job file would give them.
pub(super) fn job(mut file: JobFile, preset: Option<&str>, set: &[(String, String)]) -> Result<JobSpec, Failure> {
    file.preset = preset.map(str::to_owned);
    for (key, value) in set {
        if key == "data.validation_dataset" {
            return Err(Failure::mistake(format!(
                "--set {key}: without a cluster --validation-dataset names the file"
            )));
        }
        let means_something = ["training.", "data.", "lora."].iter().any(|section| key.starts_with(section));
        if !means_something && key != "name" {
            // What is no key of a job at all is told as that.
            file.clone().set(key, value).map_err(|faults| Failure::fields("--set", &faults))?;
            return Err(Failure::mistake(format!(
                "--set {key}: only training.*, data.*, lora.* and name mean something without a cluster"
            )));
        }
        file.set(key, value).map_err(|faults| Failure::fields("--set", &faults))?;
    }
    file.resolve(&Presets::embedded()).map_err(|faults| Failure::fields("the job", &faults))
}

fn name(path: &Path) -> String {
    path.file_name().map_or_else(|| "unnamed".to_owned(), |name| name.to_string_lossy().chars().take(200).collect())
}

pub(super) fn existing(path: &Path, what: &str) -> Result<PathBuf, Failure> {
    path.canonicalize().map_err(|error| Failure::file(&format!("open {what}"), path, &error))
}

/// A file that can be read and has an end.
fn regular(path: &Path, what: &str) -> Result<PathBuf, Failure> {
    crate::file::open(&format!("open {what}"), path)?;
    existing(path, what)
}

/// With the working directory before it, so that even `.` has a name and a parent.
pub(super) fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    std::path::absolute(path).map_err(|error| Failure::file("find", path, &error))
}

/// In this process; Ctrl-C saves and leaves, a second one leaves at once.
fn train(hold: Hold, args: &Train) -> Exit {
    let mut display = Display { progress: TrainingProgress::new(), steps: 0 };
    let terms = Terms { bond: Bond::None, memory_limit: args.memory, gpu: args.gpu };
    let exit = lorikeet_worker::run_watched(hold, terms, &mut |_, line| display.show(line));
    display.progress.finish();
    exit
}

/// What is shown of a worker's events.
struct Display {
    progress: TrainingProgress,
    steps: u64,
}

impl Display {
    fn show(&mut self, line: &EventLine) {
        match &line.event {
            WorkerEvent::Stage { stage: Stage::Training } if self.steps > 0 => self.progress.total(self.steps),
            WorkerEvent::Stage { stage } => self.progress.stage(stage_words(*stage)),
            WorkerEvent::Plan(plan) => {
                self.progress.note(&Planned::from(plan).table());
                self.steps = plan.total_steps;
                if plan.from_step > 0 {
                    self.progress.note(&format!("going on from step {}", plan.from_step));
                }
            }
            WorkerEvent::Log { level: Level::Warning | Level::Error, message } => self.progress.note(message),
            WorkerEvent::Step(step) => {
                let tokens_per_second = (step.seconds > 0.0).then(|| step.tokens as f64 / step.seconds);
                self.progress.step(Point { step: step.step, loss: step.loss, tokens_per_second });
            }
            WorkerEvent::Eval { step, loss, .. } => {
                self.progress.note(&format!("step {step}: validation loss {loss:.4}"));
            }
            WorkerEvent::Sample { step, prompt, text } => {
                self.progress.note(&format!("step {step}: {prompt}\n  {}", text.replace('\n', "\n  ")));
            }
            WorkerEvent::Log { level: Level::Info, .. }
            | WorkerEvent::Checkpoint { .. }
            | WorkerEvent::Finished { .. }
            | WorkerEvent::Stopped { .. }
            | WorkerEvent::Failed { .. } => {}
        }
    }
}

fn stage_words(stage: Stage) -> &'static str {
    match stage {
        Stage::Data => "reading the data",
        Stage::Loading => "loading the base model",
        Stage::Training => "training",
        Stage::Validating => "evaluating",
        Stage::Saving => "saving",
    }
}

/// The outcome as a failure, unless it is an adapter.
fn judge(exit: Exit, outcome: Option<&WorkerEvent>, out: &Path) -> Result<(), Failure> {
    match (exit, outcome) {
        (Exit::Finished, _) => Ok(()),
        (_, Some(WorkerEvent::Failed { class, message, hint })) => {
            Err(Failure::of_trainer(*class, format!("the training failed: {message}"), hint.clone()))
        }
        (exit, _) => {
            Err(Failure::mistake(format!("the training could not be recorded in {} ({exit:?})", out.display()))
                .hint("is there space on its disk, and may it be written to?"))
        }
    }
}
