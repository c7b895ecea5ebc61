//! What came of a training, from its events.

use crate::{
    failure::Failure,
    output::{
        View,
        table::{count, fields, span},
    },
};
use lorikeet_protocol::worker::{ADAPTER, EVENTS, EventLine, Plan, Step, WorkerEvent};
use serde::Serialize;
use std::path::{Path, PathBuf};

/// What a person wants to know at the end.
#[derive(Debug, PartialEq, Serialize)]
pub(super) struct Summary {
    adapter: PathBuf,
    examples: u64,
    validation_examples: u64,
    cut_examples: u64,
    cut_tokens: u64,
    trainable_parameters: u64,
    steps: u64,
    first_loss: f64,
    last_loss: f64,
    /// Over the held-out split, before the first step; null without one.
    validation_loss_before: Option<f64>,
    /// Of what came out: the last state, or with early stopping the best.
    validation_loss_after: Option<f64>,
    /// All steps' together.
    seconds: f64,
    tokens_per_second: f64,
}

impl Summary {
    /// Of a finished training.
    pub(super) fn read(directory: &Path, events: &[EventLine]) -> Result<Self, Failure> {
        let events = || events.iter().map(|line| &line.event);
        let gone = |what: &str| {
            let failure = Failure::mistake(format!("{}: what it told has no {what}", directory.join(EVENTS).display()));
            failure.hint("was the directory taken away while it was trained in? its adapter, if it is there, is whole")
        };
        let plan = events().find_map(plan).ok_or_else(|| gone("plan"))?;
        let steps = steps(events());
        let evals: Vec<f64> = events().filter_map(eval).collect();
        let (Some(first), Some(last)) = (steps.first(), steps.last()) else {
            return Err(gone("steps"));
        };
        let (seconds, tokens) = steps.iter().fold((0.0, 0), |sum, step| (sum.0 + step.seconds, sum.1 + step.tokens));
        Ok(Self {
            adapter: directory.join(ADAPTER),
            examples: plan.examples,
            validation_examples: plan.validation_examples,
            cut_examples: plan.cut_examples,
            cut_tokens: plan.cut_tokens,
            trainable_parameters: plan.trainable_parameters,
            steps: last.step,
            first_loss: first.loss,
            last_loss: last.loss,
            validation_loss_before: evals.first().copied(),
            validation_loss_after: result(directory).or(evals.last().copied()),
            seconds,
            tokens_per_second: if seconds > 0.0 { tokens as f64 / seconds } else { 0.0 },
        })
    }
}

impl View for Summary {
    fn table(&self) -> String {
        let pair = |before: f64, after: f64| format!("{before:.4} → {after:.4}");
        let held_out = self.validation_loss_before.zip(self.validation_loss_after);
        fields([
            ("adapter", Some(self.adapter.display().to_string())),
            ("examples", Some(format!("{}, {} held out", count(self.examples), count(self.validation_examples)))),
            (
                "cut to fit",
                (self.cut_examples > 0)
                    .then(|| format!("{} examples, {} tokens", count(self.cut_examples), count(self.cut_tokens))),
            ),
            ("trained", Some(format!("{} parameters", count(self.trainable_parameters)))),
            ("steps", Some(format!("{} in {}", count(self.steps), span(self.seconds)))),
            ("speed", Some(format!("{} tokens/s", count(self.tokens_per_second.round() as u64)))),
            ("loss", Some(pair(self.first_loss, self.last_loss))),
            ("held-out loss", held_out.map(|(before, after)| pair(before, after))),
        ])
    }
}

/// What the adapter itself says of its held-out loss.
fn result(directory: &Path) -> Option<f64> {
    let text = std::fs::read(directory.join(ADAPTER).join("training_summary.json")).ok()?;
    serde_json::from_slice::<serde_json::Value>(&text).ok()?["validation"]["loss_after"].as_f64()
}

/// One per step number: of two lines for one step the later counts.
fn steps<'a>(events: impl Iterator<Item = &'a WorkerEvent>) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    for event in events {
        if let WorkerEvent::Step(step) = event {
            steps.truncate(steps.partition_point(|known| known.step < step.step));
            steps.push(*step);
        }
    }
    steps
}

fn plan(event: &WorkerEvent) -> Option<&Plan> {
    if let WorkerEvent::Plan(plan) = event { Some(plan) } else { None }
}

fn eval(event: &WorkerEvent) -> Option<f64> {
    if let WorkerEvent::Eval { loss, .. } = event { Some(*loss) } else { None }
}
