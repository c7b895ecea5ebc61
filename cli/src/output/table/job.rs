//! Jobs, and what is told about them, as tables.

use super::{count, dollars, fields, grid, moment, short, size, span, with_below, word};
use crate::output::View;
use lorikeet_api::{
    JobFile,
    job::{
        CheckpointView, DryRun, FairShare, Findings, Job, JobStatus, LogLine, MetricsPoint, NodeReason, Why, WhyCode,
    },
};
use lorikeet_protocol::job::{Intent, Phase};

impl View for Vec<Job> {
    fn table(&self) -> String {
        let row = |job: &Job| {
            [
                job.id.to_string(),
                short(&job.name, 32),
                state(job),
                format!("{:.0} %", job.progress),
                steps(job),
                job.loss.map(|loss| format!("{loss:.4}")).unwrap_or_default(),
                job.validation_loss.map(|loss| format!("{loss:.4}")).unwrap_or_default(),
                job.node_name.clone().filter(|_| job.status != JobStatus::Queued).unwrap_or_default(),
                moment(job.created_at),
            ]
        };
        grid(["id", "name", "status", "done", "step", "loss", "validation", "node", "created"], self.iter().map(row))
    }
}

/// Its status, and where exactly it is where that says more: what is paused or blocked does not go on by itself.
fn state(job: &Job) -> String {
    match job.phase {
        Phase::Validating | Phase::Blocked | Phase::Paused | Phase::Finalizing | Phase::Cancelling => {
            format!("{} ({})", word(&job.status), word(&job.phase))
        }
        Phase::Queued if job.never => format!("{} (cannot start)", word(&job.status)),
        Phase::Submitted
        | Phase::Queued
        | Phase::Assigned
        | Phase::Preparing
        | Phase::Running
        | Phase::Succeeded
        | Phase::Failed
        | Phase::Rejected
        | Phase::Expired
        | Phase::Cancelled => word(&job.status),
    }
}

/// What its owner wants of it and it has not come to yet.
fn wanted(job: &Job) -> &'static str {
    match job.intent {
        Intent::Pause if job.phase != Phase::Paused && !job.status.is_terminal() => ", to be paused",
        Intent::Run | Intent::Pause | Intent::Cancel => "",
    }
}

/// They cost no retry.
fn bad_ends(job: &Job) -> String {
    format!("{} since the last checkpoint, none of them its own", job.infrastructure_failures)
}

/// Short jobs draw little.
fn energy(kwh: f64) -> String {
    if kwh < 0.1 { format!("{:.2} Wh", kwh * 1e3) } else { format!("{kwh:.3} kWh") }
}

fn steps(job: &Job) -> String {
    match job.total_steps {
        Some(total) => format!("{}/{total}", job.step),
        None => String::new(),
    }
}

impl View for Job {
    fn table(&self) -> String {
        let error = self.error.as_ref();
        // One that waits is on no node, whatever it was on before.
        let waits = self.status == JobStatus::Queued;
        let (attempt, node) = if waits { ("last attempt", "last node") } else { ("attempt", "node") };
        fields([
            ("id", Some(self.id.to_string())),
            ("name", Some(self.name.clone())),
            ("status", Some(format!("{} ({}){}", word(&self.status), word(&self.phase), wanted(self)))),
            ("reason", self.reason.clone()),
            ("error", error.map(|error| error.message.clone())),
            ("hint", error.and_then(|error| error.hint.clone())),
            ("base", Some(format!("{} ({})", self.base, self.base_id))),
            ("dataset", Some(format!("{} ({})", self.dataset, self.dataset_id))),
            ("preset", self.spec.preset.clone()),
            ("training", settings(training(&self.spec))),
            ("adapter", settings(adapter(&self.spec))),
            ("priority", Some(self.priority.to_string())),
            ("parent", self.parent.map(|parent| parent.to_string())),
            ("sweep", self.sweep.map(|sweep| sweep.to_string())),
            ("retries", Some(self.retries.to_string()).filter(|_| self.retries > 0)),
            ("bad ends", Some(bad_ends(self)).filter(|_| self.infrastructure_failures > 0)),
            ("step", Some(steps(self)).filter(|text| !text.is_empty())),
            ("epoch", self.epoch.map(|epoch| format!("{epoch:.2}"))),
            ("loss", self.loss.map(|loss| format!("{loss:.4}"))),
            ("validation loss", self.validation_loss.map(|loss| format!("{loss:.4}"))),
            ("learning rate", self.learning_rate.map(|rate| format!("{rate:.2e}"))),
            ("tokens/s", self.tokens_per_second.map(|speed| count(speed.round() as u64))),
            ("time left", self.seconds_left.map(span)),
            ("cost", Some(dollars(self.current_cost_micros)).filter(|_| self.current_cost_micros > 0)),
            ("energy", self.energy_kwh.map(energy)),
            (attempt, self.attempt.map(|attempt| attempt.to_string())),
            (node, self.node_name.clone().or(self.node.map(|node| node.to_string()))),
            ("model", self.model.map(|model| model.to_string())),
            ("created", Some(moment(self.created_at))),
            ("started", self.started_at.map(moment)),
            ("completed", self.completed_at.map(moment)),
        ])
    }
}

/// Of a setting its key, as behind `--set`, and its value.
type Setting = (&'static str, Option<String>);

/// What is asked for of a training first; JSON has every key.
fn training(spec: &JobFile) -> [Setting; 8] {
    let keys = &spec.training;
    [
        ("learning_rate", keys.learning_rate.map(|rate| format!("{rate:e}"))),
        ("batch_size", keys.batch_size.map(|size| size.to_string())),
        ("epochs", keys.epochs.map(|epochs| epochs.to_string())),
        ("max_steps", keys.max_steps.map(|steps| steps.to_string())),
        ("max_seq_length", keys.max_seq_length.map(|tokens| tokens.to_string())),
        ("schedule", keys.schedule.clone()),
        ("seed", keys.seed.map(|seed| seed.to_string())),
        ("method", keys.method.clone().filter(|method| method != "lora")),
    ]
}

/// What is asked for of an adapter first; full training makes none.
fn adapter(spec: &JobFile) -> [Setting; 4] {
    let keys = &spec.lora;
    let is_made = spec.training.method.as_deref() != Some("full");
    [
        ("rank", keys.rank.map(|rank| rank.to_string())),
        ("alpha", keys.alpha.map(|alpha| alpha.to_string())),
        ("dropout", keys.dropout.map(|dropout| dropout.to_string())),
        ("init_adapter", spec.init_adapter.clone()),
    ]
    .map(|(key, value)| (key, value.filter(|_| is_made)))
}

/// `rank 16, alpha 32`
fn settings<const N: usize>(settings: [Setting; N]) -> Option<String> {
    let told: Vec<_> = settings.into_iter().filter_map(|(key, value)| Some(format!("{key} {}", value?))).collect();
    (!told.is_empty()).then(|| told.join(", "))
}

impl View for Why {
    fn table(&self) -> String {
        because(("phase", word(&self.phase)), self)
    }
}

/// A reason under what it is the reason of.
fn because((title, what): (&str, String), why: &Why) -> String {
    let table = fields([
        (title, Some(what)),
        ("why", Some(why.summary.clone())),
        ("waits for", Some(why.waits_for.join(", ")).filter(|jobs| !jobs.is_empty())),
        ("place in line", why.position.map(|place| place.to_string())),
        ("fair share", why.fair_share.map(fair_share)),
        ("expected start", why.expected_start.map(moment)),
    ]);
    let row = |node: &NodeReason| {
        let fits = if node.fits { "yes" } else { "no" };
        let namesakes = why.nodes.iter().filter(|other| other.name == node.name).count();
        let name = if namesakes > 1 { format!("{} ({})", node.name, node.node) } else { node.name.clone() };
        [name, fits.to_owned(), node.code.clone(), node.message.clone()]
    };
    let nodes = (!why.nodes.is_empty()).then(|| grid(["node", "fits", "reason", "message"], why.nodes.iter().map(row)));
    with_below(table, "nodes:", nodes)
}

/// What would become of a job that was only thought of.
fn would(why: &Why) -> String {
    let would = match why.code {
        _ if why.phase == Phase::Rejected => "be rejected",
        _ if why.never => "never start",
        WhyCode::Free => "start at once",
        WhyCode::Devices => "wait for a device",
        WhyCode::Limit
        | WhyCode::BackOff
        | WhyCode::After
        | WhyCode::Held
        | WhyCode::NotBefore
        | WhyCode::BaseChanged
        | WhyCode::Unreachable
        | WhyCode::Phase => "wait",
    };
    format!("it would {would}; nothing was submitted")
}

/// What decides among jobs of one priority.
fn fair_share(share: FairShare) -> String {
    let hours = share.device_seconds as f64 / 3_600.0;
    format!("{hours:.1} device-hours used, weight {}", share.weight)
}

impl View for DryRun {
    fn table(&self) -> String {
        let found = self.findings.as_ref().map(findings).unwrap_or_default();
        let faults = self.faults.iter().map(|fault| format!("{}: {}", fault.path, fault.message));
        let below = with_below(
            because(("dry run", would(&self.why)), &self.why),
            "faults:",
            Some(faults.collect::<Vec<_>>().join("\n")),
        );
        if found.is_empty() { below } else { format!("{found}\n\n{below}") }
    }
}

fn findings(found: &Findings) -> String {
    let cut = format!("{} examples, {} tokens", count(found.cut_examples), count(found.cut_tokens));
    fields([
        ("examples", Some(count(found.examples))),
        ("held out", Some(count(found.validation_examples))),
        ("steps", Some(count(found.total_steps))),
        ("tokens per epoch", Some(count(found.epoch_tokens))),
        ("supervised", Some(count(found.supervised_tokens))),
        ("longest example", Some(format!("{} tokens", count(found.longest_tokens)))),
        ("cut", Some(cut).filter(|_| found.cut_examples > 0)),
        ("memory on a CPU", Some(size(found.cpu_bytes))),
        ("memory on a GPU", Some(size(found.cuda_bytes))),
    ])
}

impl View for Vec<MetricsPoint> {
    fn table(&self) -> String {
        let number =
            |value: Option<f64>, digits: usize| value.map(|value| format!("{value:.digits$}")).unwrap_or_default();
        let row = |point: &MetricsPoint| {
            [
                point.step.to_string(),
                number(point.epoch, 2),
                number(point.training_loss, 4),
                number(point.validation_loss, 4),
                point.learning_rate.map(|rate| format!("{rate:.2e}")).unwrap_or_default(),
                number(point.gradient_norm, 3),
                number(point.tokens_per_second, 0),
            ]
        };
        grid(["step", "epoch", "loss", "validation", "rate", "gradient", "tokens/s"], self.iter().map(row))
    }
}

impl View for Vec<LogLine> {
    fn table(&self) -> String {
        self.iter().map(log_line).collect::<Vec<_>>().join("\n")
    }
}

/// One line of a log.
pub(crate) fn log_line(line: &LogLine) -> String {
    // Further lines are set in, so that none of them looks like a line of its own.
    format!("{}  {:<7}  {}", moment(line.time), word(&line.level), line.message.replace('\n', "\n    "))
}

impl View for Vec<CheckpointView> {
    fn table(&self) -> String {
        let best = self.iter().filter_map(|checkpoint| checkpoint.validation_loss).min_by(f64::total_cmp);
        let row = |checkpoint: &CheckpointView| {
            let mark = if checkpoint.validation_loss == best { " (best)" } else { "" };
            [
                checkpoint.step.to_string(),
                word(&checkpoint.kind),
                format!("{:.4}", checkpoint.loss),
                checkpoint.validation_loss.map(|loss| format!("{loss:.4}{mark}")).unwrap_or_default(),
                size(checkpoint.size_bytes),
                checkpoint.attempt.to_string(),
                checkpoint.created_at.map(moment).unwrap_or_default(),
            ]
        };
        grid(["step", "kind", "loss", "validation", "size", "attempt", "created"], self.iter().map(row))
    }
}
