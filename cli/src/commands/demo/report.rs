//! The demo's last words.

use super::{
    files::{BASE, DATASET, Files},
    sample::{Answers, ExactMatch, Sample},
};
use crate::{
    commands::{exact::Count, program},
    output::{
        View,
        table::{fields, grid, short, span},
    },
};
use lorikeet_api::{job::Job, model::Model};
use lorikeet_protocol::id::{JobId, ModelId};
use serde::Serialize;
use std::{path::PathBuf, time::Duration};

/// Loss over the held-out split.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Losses {
    pub(super) before: f64,
    pub(super) after: f64,
}

impl Losses {
    /// How much of it is gone, in percent.
    fn fall(self) -> f64 {
        100.0 * (1.0 - self.after / self.before)
    }
}

/// Everything worth knowing afterwards.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    folder: PathBuf,
    adapter: PathBuf,
    base: PathBuf,
    dataset: PathBuf,
    job_file: PathBuf,
    job: JobId,
    model: ModelId,
    steps: u64,
    seconds: f64,
    held_out_loss: Option<Losses>,
    /// Null where base or conversations were brought.
    exact_match: Option<ExactMatch>,
    samples: Vec<Sample>,
}

impl Report {
    pub(super) fn new(
        files: &Files,
        job: &Job,
        model: &Model,
        held_out_loss: Option<Losses>,
        answers: Answers,
        took: Duration,
    ) -> Self {
        Self {
            folder: files.folder().to_owned(),
            adapter: files.adapter(),
            base: files.base(),
            dataset: files.dataset(),
            job_file: files.job_file(),
            job: job.id,
            model: model.id,
            steps: job.step,
            seconds: took.as_secs_f64(),
            held_out_loss,
            exact_match: answers.exact_match,
            samples: answers.samples,
        }
    }
}

impl View for Report {
    fn table(&self) -> String {
        let loss = self
            .held_out_loss
            .map(|loss| format!("{:.3} before, {:.3} after: {:.1} % less", loss.before, loss.after, loss.fall()));
        let right = |count: Count| format!("{} of {}", count.right, count.asked);
        let exact = self.exact_match;
        let exact = exact.map(|exact| format!("{} before, {} after", right(exact.before), right(exact.after)));
        let facts = fields([
            ("held-out loss", loss),
            ("right to the letter", exact),
            ("adapter", Some(self.adapter.display().to_string())),
            ("base model", Some(self.base.display().to_string())),
            ("conversations", Some(self.dataset.display().to_string())),
            ("job file", Some(self.job_file.display().to_string())),
            ("took", Some(format!("{} for {} steps", span(self.seconds), self.steps))),
        ]);
        let folder = self.folder.display();
        let samples = grid(["asked", "answer before", "answer after"], self.samples.iter().map(Sample::row));
        // ours learns its task in a few epochs at any rate; of a base that was brought nobody knows how long one takes
        let is_ours = self.base.starts_with(&self.folder);
        let (small, length) = if is_ours { (SMALL, "training.epochs=3") } else { ("", "training.max_steps=50") };
        format!(
            "{samples}\n\n{facts}{small}\n\nTry next:\n  \
             {lorikeet} generate --base {base} --adapter {adapter} --chat {prompt} --temperature 0\n  \
             {lorikeet} dataset check YOUR.jsonl\n  \
             {lorikeet} train --base {base} --dataset {dataset} --out {folder}/run --set {length}\n  \
             {lorikeet} dev --dir {folder}/dev\n\
             and beside it, after the two lines that it says to begin with:\n  \
             {lorikeet} base add {BASE} {base}\n  \
             {lorikeet} dataset add {dataset} --name {DATASET}\n  \
             {lorikeet} submit {job} --follow",
            lorikeet = program(),
            base = self.base.display(),
            adapter = self.adapter.display(),
            prompt = in_a_shell(&self.prompt()),
            dataset = self.dataset.display(),
            job = self.job_file.display(),
        )
    }
}

impl Report {
    /// Something to ask again.
    fn prompt(&self) -> String {
        self.samples.first().map(|sample| short(&printable(&sample.prompt), 96)).unwrap_or_default()
    }
}

impl Sample {
    fn row(&self) -> [String; 3] {
        [&self.prompt, &self.before, &self.after].map(|text| short(&printable(text), 48))
    }
}

/// So that nobody wonders.
const SMALL: &str = "\n\nThe base is a small model of our own that knows a few tasks on words and letters, and no Pig Latin;\n\
    its README.md says how it was made.";

/// A model that has learnt nothing says anything, control characters included.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '·' } else { c }).collect()
}

/// One word for a shell, whatever is in it.
fn in_a_shell(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fall_of_the_loss_is_told_in_percent() {
        assert!((Losses { before: 5.0, after: 2.0 }.fall() - 60.0).abs() < 1e-9);
    }

    #[test]
    fn a_question_is_one_word_for_a_shell() {
        assert_eq!(in_a_shell("Where's it?"), r"'Where'\''s it?'");
    }

    #[test]
    fn what_a_random_model_says_does_no_harm_to_a_terminal() {
        assert_eq!(printable("a\u{1b}[2Jb\n"), "a·[2Jb·");
    }
}
