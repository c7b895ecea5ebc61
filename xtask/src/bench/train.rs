//! Optimizer steps beside PEFT's, on the same base, the same token ids and the same machine at the same time.
//!
//! Every contestant is a process that takes one step for a line on its standard input and answers with a line of JSON. They take
//! turns, so that whatever else the machine does meets all of them alike; the middle of the rounds counts. The first round
//! is not counted: pages are touched and kernels are chosen in it. The machine's own ceiling, the rate of large matrix
//! products, is measured in the same turns. Python plays no part in Lorikeet but here, as the one that is measured against.

use std::io::{BufRead, BufReader, Lines, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, bail};
use clap::Parser;
use serde_json::Value;

use crate::output::{say, table};
use crate::program::Program;
use crate::tree::Tree;

/// Of SmolLM2.
const VOCABULARY: u32 = 49_152;

/// A training step beside PEFT's: tokens per second, peak memory, and the share of what this machine's products reach
#[derive(Parser)]
#[command(
    name = "cargo xtask bench train --",
    after_help = "Example: cargo xtask bench train -- --python ~/venv/bin/python --dropout 0.1"
)]
struct Flags {
    /// A Python with torch, transformers and peft; without one only ours is measured
    #[arg(long)]
    python: Option<PathBuf>,
    /// Rounds that count; one more runs before them
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Number formats that are measured
    #[arg(long, value_delimiter = ',', default_values = ["f32", "bf16"])]
    formats: Vec<String>,
    /// Dropout of the adapters' inputs
    #[arg(long, default_value_t = 0.0)]
    dropout: f64,
    /// Two batches of 4 sequences of 20 to 1,000 tokens in turn instead of 256 each; PEFT pads, and packs as TRL does
    #[arg(long)]
    ragged: bool,
    /// How PEFT lays out sequences of unequal length; each layout is a process more, and one that pads in f32 takes 13 GB
    #[arg(long, value_delimiter = ',', default_values = ["padded", "packed"])]
    layouts: Vec<String>,
    /// The trainer's example `step`, built already
    #[arg(long)]
    program: Option<PathBuf>,
}

/// Measures and prints one table.
pub(crate) fn run(tree: &Tree, rest: &[String]) -> Result<()> {
    let flags = Flags::parse_from([String::new()].iter().chain(rest));
    let program = match &flags.program {
        Some(program) => program.clone(),
        None => build(tree)?,
    };
    let place = Place::lay(tree, program, flags)?;
    let mut contestants = place.contestants()?;
    let mut ceiling = place.start(&place.program, &["ceiling"], "ceiling", "")?;
    for round in 0..=place.flags.rounds {
        let most = ceiling.turn()?;
        ceiling.answers.push(most);
        for contestant in &mut contestants {
            let answer = contestant.turn()?;
            if round > 0 {
                contestant.answers.push(answer);
            }
        }
    }
    report(&contestants, &ceiling)
}

fn build(tree: &Tree) -> Result<PathBuf> {
    Program::new(tree.root(), "cargo build --release --package lorikeet-trainer --example step").run()?;
    Ok(tree.target().join("release/examples/step"))
}

/// The base, the batches, and who runs on them.
struct Place {
    flags: Flags,
    program: PathBuf,
    script: PathBuf,
    base: PathBuf,
    batches: PathBuf,
}

impl Place {
    fn lay(tree: &Tree, program: PathBuf, flags: Flags) -> Result<Place> {
        let folder = tree.target().join("bench-train");
        let (base, batches) = (folder.join("base"), folder.join("batches.json"));
        let made = Command::new(&program).arg("make").arg(&base).status();
        if !made.with_context(|| format!("start {}", program.display()))?.success() {
            bail!("{} cannot make the base", program.display());
        }
        let drawn = serde_json::to_string(&draw(flags.ragged)).context("write the batches")?;
        std::fs::write(&batches, drawn).with_context(|| format!("write {}", batches.display()))?;
        let script = tree.root().join("xtask/src/bench/train_peft.py");
        Ok(Place { flags, program, script, base, batches })
    }

    /// Ours, then PEFT's.
    fn contestants(&self) -> Result<Vec<Contestant>> {
        let (base, batches) = (text(&self.base)?, text(&self.batches)?);
        let dropout = self.flags.dropout.to_string();
        let ours = |dtype: &String| {
            self.start(&self.program, &["run", base, batches, dtype, &dropout], &format!("ours, {dtype}"), dtype)
        };
        let mut all = self.flags.formats.iter().map(ours).collect::<Result<Vec<_>>>()?;
        if let Some(python) = &self.flags.python {
            let even = ["padded".to_owned()];
            let layouts = if self.flags.ragged { &self.flags.layouts[..] } else { &even };
            for (layout, dtype) in
                layouts.iter().flat_map(|layout| self.flags.formats.iter().map(move |dtype| (layout, dtype)))
            {
                let name = if self.flags.ragged { format!("PEFT {layout}, {dtype}") } else { format!("PEFT, {dtype}") };
                let arguments = [text(&self.script)?, base, batches, dtype, &dropout, layout];
                all.push(self.start(python, &arguments, &name, dtype)?);
            }
        }
        Ok(all)
    }

    fn start(&self, program: &Path, arguments: &[&str], name: &str, dtype: &str) -> Result<Contestant> {
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn().with_context(|| format!("start {}", program.display()))?;
        let asks = process.stdin.take();
        let answers = process.stdout.take().expect("its output is a pipe that nobody has taken");
        let says = BufReader::new(answers).lines();
        let (name, dtype) = (name.to_owned(), dtype.to_owned());
        Ok(Contestant { name, dtype, process, asks, says, answers: Vec::new() })
    }
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))
}

/// Batches of four sequences. Ragged, two of lengths drawn evenly from 20 to 1,000; otherwise one of 256 tokens each.
fn draw(ragged: bool) -> Vec<Vec<Vec<u32>>> {
    let mut state = 1u64;
    let mut below = move |most: u32| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 33) % u64::from(most)) as u32
    };
    let mut sequence = |_: usize| {
        let length = if ragged { 20 + below(981) } else { 256 };
        (0..length).map(|_| below(VOCABULARY)).collect()
    };
    (0..if ragged { 2 } else { 1 }).map(|_| (0..4).map(&mut sequence).collect()).collect()
}

/// A process that takes steps.
struct Contestant {
    name: String,
    dtype: String,
    process: Child,
    asks: Option<ChildStdin>,
    says: Lines<BufReader<ChildStdout>>,
    answers: Vec<Value>,
}

impl Drop for Contestant {
    fn drop(&mut self) {
        drop(self.asks.take());
        // It leaves when nothing more is asked; there is nothing to be done about one that does not.
        let _ = self.process.wait();
    }
}

impl Contestant {
    fn turn(&mut self) -> Result<Value> {
        let ended = || format!("{} ended before it answered", self.name);
        let asks = self.asks.as_mut().expect("it is asked until it goes");
        asks.write_all(b"\n").and_then(|()| asks.flush()).with_context(ended)?;
        let line = self.says.next().with_context(ended)?.with_context(ended)?;
        serde_json::from_str(&line).with_context(|| format!("read what {} says", self.name))
    }

    fn rate(&self) -> Result<f64> {
        rate(&self.name, &self.answers)
    }

    fn most(&self, what: &str) -> f64 {
        numbers(&self.answers, what).fold(0.0, f64::max)
    }

    fn total(&self, what: &str) -> f64 {
        numbers(&self.answers, what).sum()
    }
}

/// Tokens per second of the middle round; where rounds differ in their tokens, of all of them together.
fn rate(name: &str, answers: &[Value]) -> Result<f64> {
    let rates = rates(name, answers)?;
    let alike = answers.windows(2).all(|two| two[0]["tokens"] == two[1]["tokens"]);
    let total = |what| numbers(answers, what).sum::<f64>();
    Ok(if alike { rates[rates.len() / 2] } else { total("tokens") / total("seconds") })
}

/// Tokens per second of every round, ascending.
fn rates(name: &str, answers: &[Value]) -> Result<Vec<f64>> {
    let rate = |answer: &Value| Some(answer["tokens"].as_f64()? / answer["seconds"].as_f64()?);
    let rates: Option<Vec<f64>> = answers.iter().map(rate).collect();
    let mut rates = rates.with_context(|| format!("{name} says how many tokens in how many seconds"))?;
    if rates.is_empty() {
        bail!("no round was counted");
    }
    rates.sort_by(f64::total_cmp);
    Ok(rates)
}

fn numbers<'a>(answers: &'a [Value], what: &'a str) -> impl Iterator<Item = f64> + 'a {
    answers.iter().filter_map(move |answer| answer[what].as_f64())
}

/// One line per contestant, then where our time goes.
fn report(contestants: &[Contestant], ceiling: &Contestant) -> Result<()> {
    let ours = contestants.first().context("ours is always there")?;
    let (flops, tokens) = (ours.total("flops"), ours.total("tokens"));
    let theirs: Vec<&Contestant> = contestants.iter().filter(|other| other.name.starts_with("PEFT")).collect();
    let mut heading: Vec<String> = ["", "tokens/s", "least to most", "peak", "of its ceiling"].map(String::from).into();
    heading.extend(theirs.iter().map(|other| format!("against {}", other.name)));
    let mut rows = Vec::new();
    for contestant in contestants {
        let rates = rates(&contestant.name, &contestant.answers)?;
        let (rate, ends) = (contestant.rate()?, (rates[0], rates[rates.len() - 1]));
        let mut row = vec![
            contestant.name.clone(),
            format!("{rate:.0}"),
            format!("{:.0} to {:.0}", ends.0, ends.1),
            format!("{:.0} MB", contestant.most("peak_bytes") / 1e6),
            format!("{:.0} %", 100.0 * rate * flops / tokens / (1e9 * ceiling.most(&contestant.dtype))),
        ];
        for other in &theirs {
            row.push(format!("{:.2}", rate / other.rate()?));
        }
        rows.push(row);
    }
    say("");
    table(&heading.iter().map(String::as_str).collect::<Vec<_>>(), &rows);
    say(format!(
        "\nceiling: {:.0} GFLOP/s in f32, {:.0} in bf16; a step calls for {:.0} MFLOP per token",
        ceiling.most("f32"),
        ceiling.most("bf16"),
        flops / tokens / 1e6
    ));
    for contestant in contestants.iter().filter(|contestant| contestant.name.starts_with("ours")) {
        say_profile(contestant);
    }
    Ok(())
}

/// Milliseconds by operation, of the last step.
fn say_profile(contestant: &Contestant) {
    let spent = contestant.answers.last().and_then(|answer| answer["milliseconds"].as_object());
    let words = spent.into_iter().flatten().map(|(op, time)| format!("{op} {time}"));
    say(format!("{}, milliseconds of the last step: {}", contestant.name, words.collect::<Vec<_>>().join(", ")));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_are_the_same_every_time_and_as_long_as_they_should_be() {
        let lengths = |ragged| -> Vec<usize> { draw(ragged).iter().flatten().map(Vec::len).collect() };
        assert_eq!(lengths(false), [256; 4]);
        let ragged = lengths(true);
        assert!(ragged.len() == 8 && ragged.iter().all(|len| (20..=1000).contains(len)), "{ragged:?}");
        assert_eq!(draw(true), draw(true));
    }

    #[test]
    fn the_middle_of_equal_rounds_counts_and_of_unequal_ones_the_whole() {
        let of = |rounds: &[(u64, f64)]| {
            let answer = |(tokens, seconds): &(u64, f64)| serde_json::json!({"tokens": tokens, "seconds": seconds});
            let answers: Vec<Value> = rounds.iter().map(answer).collect();
            rate("someone", &answers).expect("numbers")
        };
        assert_eq!(of(&[(10, 1.0), (10, 5.0), (10, 2.0)]), 5.0);
        assert_eq!(of(&[(10, 1.0), (50, 9.0)]), 6.0);
    }
}
