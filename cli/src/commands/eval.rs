//! `lorikeet eval`: how well a model predicts a file, and how well its base does; told to, how often each answers as the file does.

use super::{
    exact::{self, Count},
    local::{Local, failed},
};
use crate::{
    args::Eval as Args,
    failure::Failure,
    output::{
        Output, View,
        table::{count, fields, span},
    },
};
use lorikeet_dataset::{PrepareConfig, Prepared, prepare};
use lorikeet_trainer::{
    TrainError, evaluate,
    lora::AdapterView,
    model::{LossSum, Model},
};
use serde::Serialize;
use std::time::Instant;

/// Tokens of one pass: enough to keep every core busy.
const MICRO_TOKENS: usize = 1024;

/// The answer.
#[derive(Debug, PartialEq, Serialize)]
struct Evaluation {
    examples: u64,
    tokens: u64,
    /// Over how many the mean is taken.
    supervised_tokens: u64,
    loss: f64,
    perplexity: f64,
    /// The base's own; null without an adapter, where it is the same.
    base_loss: Option<f64>,
    base_perplexity: Option<f64>,
    /// Null when not asked for.
    exact_match: Option<Count>,
    base_exact_match: Option<Count>,
    seconds: f64,
}

/// Weighted by tokens, over every example of the file.
pub(super) fn run(output: Output, args: &Args) -> Result<(), Failure> {
    let local = Local::open(&args.model)?;
    let data = read(&local, args)?;
    let began = Instant::now();
    let of = |adapter: Option<AdapterView<'_>>| loss(&local.model, adapter, &data);
    let sum = of(local.view())?;
    let base = local.view().map(|_| of(None)).transpose()?;
    let (exact_match, base_exact_match) = if args.exact_match { exact_match(&local, args)? } else { (None, None) };
    let mean = |sum: LossSum| sum.sum / sum.count as f64;
    let base_loss = base.map(mean);
    output.answer(&Evaluation {
        examples: data.train.len() as u64,
        tokens: data.report.train_tokens,
        supervised_tokens: sum.count,
        loss: mean(sum),
        perplexity: mean(sum).exp(),
        base_loss,
        base_perplexity: base_loss.map(f64::exp),
        exact_match,
        base_exact_match,
        seconds: began.elapsed().as_secs_f64(),
    })
}

/// The whole file as one set; its tokens are kept no longer than the command runs.
fn read(local: &Local, args: &Args) -> Result<Prepared, Failure> {
    let cache = tempfile::tempdir().map_err(|error| Failure::mistake(format!("make a temporary folder: {error}")))?;
    let config = PrepareConfig {
        validation_fraction: 0.0,
        max_seq_length: args.max_seq_length as usize,
        supervise: args.supervise.into(),
        ..PrepareConfig::new(&args.dataset, cache.path())
    };
    let data = prepare(&config, &local.tokenizer, &mut |_| {}, &|| false);
    data.map_err(|error| failed("read the data", &TrainError::from(error)))
}

fn loss(model: &Model, adapter: Option<AdapterView<'_>>, data: &Prepared) -> Result<LossSum, Failure> {
    let sum = evaluate(model, adapter, &data.train, MICRO_TOKENS, &|| false);
    let sum = sum.map_err(|error| failed("evaluate", &error))?;
    if sum.sum.is_finite() { Ok(sum) } else { Err(Failure::job_failed(format!("the loss is {}", sum.sum))) }
}

/// The model's, and its base's where they are two.
fn exact_match(local: &Local, args: &Args) -> Result<(Option<Count>, Option<Count>), Failure> {
    let questions = exact::questions(&args.dataset, usize::MAX)?;
    let of = |adapter: Option<AdapterView<'_>>| {
        exact::answers(local, adapter.as_ref(), &questions).map(|answers| Some(Count::of(&questions, &answers)))
    };
    let base = if local.view().is_some() { of(None)? } else { None };
    Ok((of(local.view())?, base))
}

impl View for Evaluation {
    fn table(&self) -> String {
        let both = |loss: f64| format!("{loss:.4}, perplexity {:.2}", loss.exp());
        let better = |base: f64| format!("{:+.1} %", 100.0 * (self.loss / base - 1.0));
        fields([
            ("examples", Some(count(self.examples))),
            ("tokens", Some(format!("{}, {} counted", count(self.tokens), count(self.supervised_tokens)))),
            ("loss", Some(both(self.loss))),
            ("base's loss", self.base_loss.map(both)),
            ("change", self.base_loss.map(better)),
            ("exact match", self.exact_match.map(|count| count.to_string())),
            ("base's exact match", self.base_exact_match.map(|count| count.to_string())),
            ("took", Some(span(self.seconds))),
        ])
    }
}
