//! `lorikeet-gpu step DIR`: optimizer steps of the base in DIR on the GPU, an adapter of rank 16 on every linear layer. A line of JSON for every
//! number of sequences in one pass, as it comes: tokens per second (the middle of the steps that count, two go before), when all of a step was on
//! the stream, the most memory that was in use, and, with `--profile`, what every kernel takes of one more step (for people on standard
//! error). `beside_peft.py` puts it beside PEFT's.
//!
//! The card's ceilings, a device copy and a large bf16 product, are measured behind them in the same run.
//!
//! Where a step is on the stream long before it ends, and the card never has nothing to do, starting it as a CUDA graph would gain nothing.
//!
//! A base is loaded once, since that takes longer than all steps; sizes are tried until one is slower than the one before, has no
//! memory, or could not be done in the time that is left.

use std::error::Error;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lorikeet_trainer::config::BaseDtype;
use lorikeet_trainer::ops::cuda::bench::{self, Ceilings};
use lorikeet_trainer::ops::cuda::timeline::{Recorded, Spent};
use lorikeet_trainer::ops::cuda::{Gpu, GpuError};
use lorikeet_trainer::ops::machine::Machine;
use lorikeet_trainer::trainee::{Measured, Trainee};
use serde_json::{Value, json};

const WARM_UP: usize = 2;
const COUNTED: usize = 5;

/// What is measured.
pub(crate) struct Wish {
    dir: PathBuf,
    /// Tokens of a sequence.
    length: usize,
    /// Of a step.
    sequences: usize,
    /// Sequences in one pass: all that are tried.
    together: Vec<usize>,
    recompute: usize,
    dtype: BaseDtype,
    profile: bool,
    limit: Duration,
    /// What the ceilings are measured with.
    ceilings: bench::Shape,
}

impl Wish {
    pub(crate) fn parse(words: &[String]) -> Result<Wish, String> {
        let mut wish = Wish {
            dir: PathBuf::new(),
            length: 2048,
            sequences: 4,
            together: vec![1],
            recompute: 0,
            dtype: BaseDtype::Bf16,
            profile: false,
            limit: Duration::MAX,
            ceilings: bench::LLAMA_8B,
        };
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let mut values = || -> Result<Vec<usize>, String> {
                let text = words.next().ok_or(format!("{word} wants a number"))?;
                let number = |text: &str| text.parse().ok().filter(|n| *n > 0);
                text.split(',').map(|part| number(part).ok_or(format!("{word} {text}: not a number above 0"))).collect()
            };
            let mut value = || values().map(|values| values[0]);
            match word.as_str() {
                "--length" => wish.length = value()?.max(2),
                "--sequences" => wish.sequences = value()?,
                "--together" => wish.together = values()?,
                "--recompute" => wish.recompute = value()?,
                "--seconds" => wish.limit = Duration::from_secs(value()? as u64),
                "--nf4" => wish.dtype = BaseDtype::Nf4,
                "--profile" => wish.profile = true,
                "--tiny" => wish.ceilings = bench::TINY,
                option if option.starts_with("--") => return Err(format!("{option} is not known")),
                dir => wish.dir = dir.into(),
            }
        }
        if wish.dir.as_os_str().is_empty() { Err("step wants the directory of a base".into()) } else { Ok(wish) }
    }
}

/// Takes the steps. Whether any size was measured.
pub(crate) fn measure(wish: &Wish, out: &mut impl Write) -> Result<bool, Box<dyn Error>> {
    let began = Instant::now();
    let gpu = Arc::new(Gpu::open(0)?);
    let mut trainee = Trainee::new(Machine::Gpu(Arc::clone(&gpu)), &wish.dir, wish.dtype, 0.0)?;
    trainee.model().set_recompute(wish.recompute);
    let weights = trainee.model().most_in_use();
    let sequences = wish.sequences(trainee.model().config().vocab_size as u64);
    let mut best: Option<Size> = None;
    for &together in &wish.together {
        let start = Instant::now();
        let size = Size::measure((&gpu, &mut trainee), wish, &sequences, together);
        let mut line = match &size {
            Ok(size) => size.line.clone(),
            Err(error) => json!({"error": error.to_string()}),
        };
        line["together"] = json!(together);
        line["weights_bytes"] = json!(weights);
        writeln!(out, "{line}")?;
        out.flush()?;
        let Ok(size) = size else { break };
        let slower = best.as_ref().is_some_and(|best| size.seconds > best.seconds);
        if !slower {
            best = Some(size);
        }
        if slower || began.elapsed() + start.elapsed() > wish.limit {
            break;
        }
    }
    // of this very card, warm from the steps, and after them: their memory may be all there is
    drop(trainee);
    let ceilings = bench::ceilings(&gpu, wish.ceilings);
    if let Ok(Ceilings { gigabytes, teraflops }) = ceilings {
        writeln!(out, "{}", json!({"ceilings": {"gigabytes_per_second": gigabytes, "teraflops": teraflops}}))?;
    }
    if let Some(best) = &best {
        best.say(ceilings);
    }
    Ok(best.is_some())
}

impl Wish {
    /// Any ids do; a step's are those of every other.
    fn sequences(&self, vocabulary: u64) -> Vec<Vec<u32>> {
        let id = |place: usize| (place as u64 * 2_654_435_761 % vocabulary) as u32;
        let sequence = |i: usize| (0..self.length).map(|j| id(i * self.length + j)).collect();
        (0..self.sequences).map(sequence).collect()
    }
}

/// What came of one number of sequences in a pass.
struct Size {
    together: usize,
    /// Of a step, and until all of it was on the stream.
    seconds: f64,
    asked: f64,
    /// Of a second.
    teraflops: f64,
    gigabytes: f64,
    recorded: Option<Recorded>,
    line: Value,
}

impl Size {
    fn measure(
        (gpu, trainee): (&Gpu, &mut Trainee),
        wish: &Wish,
        sequences: &[Vec<u32>],
        together: usize,
    ) -> Result<Size, Box<dyn Error>> {
        trainee.model().forget_use();
        let mut steps = Vec::new();
        for _ in 0..WARM_UP + COUNTED {
            steps.push(trainee.step(sequences, together)?);
        }
        let peak = trainee.model().most_in_use();
        let (first, last) = (steps[0].loss, steps[WARM_UP + COUNTED - 1].loss);
        let counted = &steps[WARM_UP..];
        let (seconds, asked) = (middle(counted, |step| step.seconds), middle(counted, |step| step.asked));
        // what lies there at the peak, weights and what the backward pass needs, a pass reads twice or writes and reads
        let passes = sequences.len().div_ceil(together) as f64;
        let (teraflops, gigabytes) =
            (counted[0].flops as f64 / seconds / 1e12, 2.0 * passes * peak as f64 / seconds / 1e9);
        let mut line = json!({
            "tokens_per_second": counted[0].tokens as f64 / seconds, "seconds": seconds, "asked_seconds": asked,
            "loss": [first, last], "teraflops": teraflops, "gigabytes_per_second": gigabytes, "peak_bytes": peak,
        });
        // what was measured stays measured where this fails
        let recorded = wish.profile.then(|| profile(gpu, trainee, sequences, together));
        let recorded = recorded.and_then(|recorded| match recorded {
            Ok((recorded, nothing)) => {
                line["profile"] = as_json(&recorded, nothing);
                Some(recorded)
            }
            Err(error) => {
                say(&format!("a step with events around every launch failed to {error}"));
                None
            }
        });
        Ok(Size { together, seconds, asked, teraflops, gigabytes, recorded, line })
    }

    fn say(&self, ceilings: Result<Ceilings, GpuError>) {
        let (whole, asked) = (self.seconds * 1e3, self.asked * 1e3);
        say(&format!("a step, {} together: {whole:.2} ms, all of it on the stream after {asked:.2} ms", self.together));
        match ceilings {
            Err(error) => say(&format!("the card's ceilings are not known: failed to {error}")),
            Ok(Ceilings { gigabytes, teraflops }) => {
                let share = |ours: f64, most: f64| format!("{ours:.1}, {:.1} % of {most:.1}", 100.0 * ours / most);
                say(&format!("TFLOP/s: {} of a large product", share(self.teraflops, teraflops)));
                say(&format!("GB/s at the least: {} of a device copy", share(self.gigabytes, gigabytes)));
            }
        }
        let Some(recorded) = &self.recorded else { return };
        say(&table(recorded));
        let nothing = self.line["profile"]["nothing_milliseconds"].as_f64().unwrap_or_default();
        say(&format!("where the card waits for the host a launch is given {:.1} µs for nothing", nothing * 1e3));
    }
}

fn middle(steps: &[Measured], of: impl Fn(&Measured) -> f64) -> f64 {
    let mut values: Vec<f64> = steps.iter().map(of).collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// What one more step puts on the stream, and milliseconds of a launch of nothing.
fn profile(
    gpu: &Gpu,
    trainee: &mut Trainee,
    sequences: &[Vec<u32>],
    together: usize,
) -> Result<(Recorded, f64), Box<dyn Error>> {
    let mut recorded = Recorded::default();
    // the first time makes the events
    for _ in 0..2 {
        gpu.record();
        let taken = trainee.step(sequences, together);
        recorded = gpu.recorded()?;
        taken?;
    }
    Ok((recorded, gpu.time_of_nothing()?))
}

/// A kernel that has less of a step has no line of its own.
const LEAST_SHARE: f64 = 0.5;

/// A line for every kernel that counts, the longest first.
fn table(recorded: &Recorded) -> String {
    let share = |milliseconds: f64| 100.0 * milliseconds / recorded.milliseconds.max(1e-9);
    let line = |name: &str, milliseconds: f64, launches: usize| {
        format!("{name:<34} {milliseconds:>10.3} {:>6.1} % {launches:>9}", share(milliseconds))
    };
    let mut lines =
        vec![format!("{:<34} {:>10} {:>8} {:>9} {:>8}", "on the card", "ms", "of it", "launches", "TFLOP/s")];
    let counts = recorded.spent.partition_point(|spent| share(spent.milliseconds) >= LEAST_SHARE);
    let (large, small) = recorded.spent.split_at(counts);
    for spent in large {
        let rate = if spent.teraflops() > 0.0 { format!(" {:>8.1}", spent.teraflops()) } else { String::new() };
        lines.push(line(&spent.work.to_string(), spent.milliseconds, spent.launches) + &rate);
    }
    let sum = |of: fn(&Spent) -> f64| small.iter().map(of).sum::<f64>();
    let (milliseconds, launches) = (sum(|spent| spent.milliseconds), sum(|spent| spent.launches as f64));
    lines.push(line(&format!("{} others", small.len()), milliseconds, launches as usize));
    lines.push(line("nothing to do", recorded.idle, 0));
    lines.push(line("all", recorded.milliseconds, recorded.launches()));
    lines.join("\n")
}

fn as_json(recorded: &Recorded, nothing: f64) -> Value {
    let kernel = |spent: &Spent| {
        let (milliseconds, teraflops) = (spent.milliseconds, spent.teraflops());
        json!({"name": spent.work.to_string(), "milliseconds": milliseconds, "launches": spent.launches, "teraflops": teraflops})
    };
    json!({
        "kernels": recorded.spent.iter().map(kernel).collect::<Vec<_>>(), "milliseconds": recorded.milliseconds,
        "idle_milliseconds": recorded.idle, "launches": recorded.launches(), "nothing_milliseconds": nothing,
    })
}

/// To people, beside the lines that a program reads.
fn say(text: &str) {
    // who is told has gone away: there is nobody left to tell that to
    let _ = writeln!(std::io::stderr(), "{text}");
}
