//! Sweeps and their jobs as tables.

use super::{fields, grid, moment, short, with_below, word};
use crate::output::View;
use lorikeet_api::{
    jobfile::sweep::Values,
    sweep::{Sweep, SweepChild, SweepDryRun, SweepSummary},
};
use lorikeet_protocol::id::JobId;

impl View for Vec<SweepSummary> {
    fn table(&self) -> String {
        let row = |sweep: &SweepSummary| {
            [
                sweep.id.to_string(),
                short(&sweep.name, 32),
                word(&sweep.status),
                format!("{}/{}", sweep.ended, sweep.jobs),
                sweep.best.map(|best| best.job.to_string()).unwrap_or_default(),
                sweep.best.map(|best| format!("{:.4}", best.loss)).unwrap_or_default(),
                moment(sweep.created_at),
            ]
        };
        grid(["id", "name", "status", "over", "best", "its loss", "created"], self.iter().map(row))
    }
}

impl View for Sweep {
    fn table(&self) -> String {
        let whole = &self.summary;
        let ended = format!(
            "{} of {} ({} with an adapter, {} stopped early)",
            whole.ended, whole.jobs, whole.succeeded, whole.stopped_early
        );
        let table = fields([
            ("id", Some(whole.id.to_string())),
            ("name", Some(whole.name.clone())),
            ("status", Some(word(&whole.status))),
            ("over", Some(ended)),
            ("at once", whole.max_parallel.map(|most| most.to_string())),
            (
                "rungs",
                whole.stop.map(|rule| format!("from {} steps, one in {} goes on", rule.min_steps, rule.reduction)),
            ),
            ("best", whole.best.map(|best| format!("{} ({} {:.4})", best.job, measure(self, best.job), best.loss))),
            ("created", Some(moment(whole.created_at))),
            ("completed", whole.completed_at.map(moment)),
        ]);
        let row = |child: &SweepChild| {
            let number = |loss: Option<f64>| loss.map(|loss| format!("{loss:.4}")).unwrap_or_default();
            let stopped = child.stopped_early_at.map(|step| format!("stopped after {step}"));
            let best = if whole.best.is_some_and(|best| best.job == child.job) { ", best" } else { "" };
            [
                child.job.to_string(),
                settings(&child.values),
                stopped.unwrap_or_else(|| word(&child.status)) + best,
                child.step.to_string(),
                number(child.loss),
                number(child.validation_loss),
            ]
        };
        let children = grid(["job", "values", "status", "step", "loss", "validation"], self.children.iter().map(row));
        with_below(table, "jobs:", Some(children))
    }
}

/// What the best was chosen by.
fn measure(sweep: &Sweep, best: JobId) -> &'static str {
    let held_out = sweep.children.iter().any(|child| child.job == best && child.validation_loss.is_some());
    if held_out { "validation loss" } else { "loss" }
}

impl View for SweepDryRun {
    fn table(&self) -> String {
        let jobs = self.values.iter().enumerate().map(|(index, values)| [(index + 1).to_string(), settings(values)]);
        let listed = grid(["job", "values"], jobs);
        format!("{} jobs\n\n{listed}\n\nthe first of them:\n\n{}", self.jobs, self.first.table())
    }
}

/// `lora.rank=8 training.learning_rate=0.0001`
fn settings(values: &Values) -> String {
    values.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(" ")
}
