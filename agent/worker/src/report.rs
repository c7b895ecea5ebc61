//! The trainer's events to the lines of `events.jsonl`.

use lorikeet_protocol::agent::CheckpointKind;
use lorikeet_protocol::job::{FailureClass, StopCause};
use lorikeet_protocol::worker::{
    CHECKPOINTS, Level, Memory, Modules, Plan, Reached, Stage, Step, WorkerEvent, WrittenFile,
};
use lorikeet_trainer::event::{self, Event, FileRecord, MemoryPlan, Outcome};
use lorikeet_trainer::lora::Matched;
use lorikeet_trainer::{FailureClass as Trouble, TrainError};

use rustix::io::Errno;

use crate::spec::SpecError;

/// What the system says of a disk that broke, was pulled out, or went read-only.
const DISK_ERRORS: [Errno; 6] = [Errno::IO, Errno::ROFS, Errno::NODEV, Errno::NXIO, Errno::STALE, Errno::REMOTEIO];

/// One event as a line; none for what means nothing to others.
pub(crate) fn event(event: Event) -> Option<WorkerEvent> {
    Some(match event {
        Event::Stage(stage) => WorkerEvent::Stage { stage: self::stage(stage) },
        Event::Plan(plan) => WorkerEvent::Plan(self::plan(&plan)),
        Event::Log { level, message } => log(level, message),
        Event::Step(step) => WorkerEvent::Step(self::step(&step)),
        Event::Eval(event::Eval { step, epoch: _, loss, perplexity, base_loss, tokens, seconds }) => {
            // exp() of a loss beyond 709 is infinite, and that has no JSON
            return (loss.is_finite() && perplexity.is_finite()).then_some(WorkerEvent::Eval {
                step,
                loss,
                perplexity,
                base_loss,
                tokens,
                seconds,
            });
        }
        Event::Checkpoint(saved) => WorkerEvent::Checkpoint {
            step: saved.step,
            loss: saved.loss,
            kind: kind(saved.kind),
            path: folder(&saved.name),
        },
        Event::Sample(event::Sample { step, prompt, text }) => WorkerEvent::Sample { step, prompt, text },
        // a line per step is in the run's own metrics
        Event::GradNorms { .. } => return None,
    })
}

/// An end that is no failure.
pub(crate) fn outcome(outcome: Outcome, cause: StopCause) -> WorkerEvent {
    match outcome {
        Outcome::Finished { step, files } => match files.into_iter().map(written).collect() {
            Some(files) => WorkerEvent::Finished { step, files },
            None => failure(&TrainError::Internal("a file's hash is no hash".into())),
        },
        Outcome::Stopped { step, checkpoint } => {
            WorkerEvent::Stopped { step, checkpoint: checkpoint.map(|name| folder(&name)), cause }
        }
    }
}

/// A failure, with its class and what would help.
pub(crate) fn failure(error: &TrainError) -> WorkerEvent {
    let hint = error.hint();
    WorkerEvent::Failed { class: class(error), message: error.to_string(), hint }
}

/// The attempt directory holds no spec that can be read.
pub(crate) fn unreadable(error: &SpecError) -> WorkerEvent {
    WorkerEvent::Failed { class: FailureClass::Settings, message: error.to_string(), hint: None }
}

/// Whose doing a failure of the trainer is, in the protocol's words.
pub fn class(error: &TrainError) -> FailureClass {
    match error.class() {
        Trouble::Config | Trouble::Checkpoint => FailureClass::Settings,
        Trouble::Base => FailureClass::Base,
        Trouble::Dataset => FailureClass::Dataset,
        Trouble::NotFinite => FailureClass::NonFinite,
        Trouble::OutOfMemory => FailureClass::OutOfMemory,
        Trouble::DiskFull => FailureClass::DiskFull,
        Trouble::Io => file_trouble(error),
        Trouble::Device => FailureClass::Hardware,
        Trouble::RankLost | Trouble::Internal => FailureClass::Internal,
    }
}

/// Trouble with a file is never a device's, which would be taken out for it. A disk that does not do its work is as good as full:
/// another machine's may. Anything else is a file of ours that is not as we left it.
fn file_trouble(error: &TrainError) -> FailureClass {
    let of_the_disk = if let TrainError::Io { source, .. } = error {
        Errno::from_io_error(source).is_some_and(|errno| DISK_ERRORS.contains(&errno))
    } else {
        // the one receiver of events is the journal
        matches!(error, TrainError::Report(_))
    };
    if of_the_disk { FailureClass::DiskFull } else { FailureClass::Internal }
}

fn stage(stage: event::Stage) -> Stage {
    match stage {
        event::Stage::Data => Stage::Data,
        event::Stage::Loading => Stage::Loading,
        event::Stage::Training => Stage::Training,
        event::Stage::Validating => Stage::Validating,
        event::Stage::Saving => Stage::Saving,
    }
}

fn log(level: event::Level, message: String) -> WorkerEvent {
    match level {
        event::Level::Info => WorkerEvent::Log { level: Level::Info, message },
        event::Level::Warning => WorkerEvent::Log { level: Level::Warning, message },
    }
}

fn plan(plan: &event::Plan) -> Plan {
    Plan {
        examples: plan.examples,
        validation_examples: plan.validation_examples,
        conversations: plan.conversations,
        total_steps: plan.total_steps,
        epoch_tokens: plan.epoch_tokens,
        supervised_tokens: plan.supervised_tokens,
        longest_tokens: plan.longest_tokens,
        cut_examples: plan.cut_examples,
        cut_tokens: plan.cut_tokens,
        trainable_parameters: plan.trainable_parameters,
        base_parameters: plan.base_parameters,
        micro_tokens: plan.micro_tokens,
        memory_bytes: plan.memory.total,
        memory: memory(&plan.memory),
        recompute: plan.recompute,
        modules: plan.modules.iter().map(modules).collect(),
        from_step: plan.from_step,
        reached: plan.reached.map(|event::Reached { epoch, loss, lr }| Reached { epoch, loss, lr }),
    }
}

/// A memory plan as others read it.
pub fn memory(plan: &MemoryPlan) -> Memory {
    let MemoryPlan { weights, adapters, optimizer, activations, token_and_layer, head, layer, program, total: _ } =
        *plan;
    Memory { weights, adapters, optimizer, activations, token_and_layer, head, layer, program }
}

/// Matched modules as others read them.
pub fn modules(matched: &Matched) -> Modules {
    let Matched { module, layers, count, rank, alpha, inputs, outputs, parameters } = matched.clone();
    Modules { module, layers, count, rank, alpha, inputs, outputs, parameters }
}

fn step(step: &event::Step) -> Step {
    let event::Step { step, epoch, loss, lr, grad_norm, tokens, supervised_tokens, seconds } = *step;
    Step { step, epoch, loss, lr, grad_norm, tokens, supervised_tokens, seconds }
}

fn kind(kind: event::CheckpointKind) -> CheckpointKind {
    match kind {
        event::CheckpointKind::Periodic => CheckpointKind::Periodic,
        event::CheckpointKind::Best => CheckpointKind::Best,
        event::CheckpointKind::Final => CheckpointKind::Final,
        event::CheckpointKind::Emergency => CheckpointKind::Emergency,
    }
}

fn folder(name: &str) -> String {
    format!("{CHECKPOINTS}/{name}")
}

fn written(file: FileRecord) -> Option<WrittenFile> {
    Some(WrittenFile { hash: file.blake3.parse().ok()?, path: file.path, size: file.size })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Error;
    use std::path::Path;

    #[test]
    fn trouble_with_a_file_is_the_disks_or_ours_and_never_a_devices() {
        for (errno, expected) in [
            (Errno::NOSPC, FailureClass::DiskFull),
            (Errno::DQUOT, FailureClass::DiskFull),
            (Errno::IO, FailureClass::DiskFull),
            (Errno::ROFS, FailureClass::DiskFull),
            (Errno::NOENT, FailureClass::Internal),
            (Errno::ACCESS, FailureClass::Internal),
            (Errno::MFILE, FailureClass::Internal),
        ] {
            let error = TrainError::io("write", Path::new("checkpoint"))(errno.into());
            assert_eq!(class(&error), expected, "{errno:?}");
        }
        assert_eq!(class(&TrainError::Report(Error::other("torn"))), FailureClass::DiskFull);
    }
}
