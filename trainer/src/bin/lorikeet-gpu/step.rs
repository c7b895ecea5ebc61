//! `lorikeet-gpu step DIR`: optimizer steps of the base in DIR on the GPU, an adapter of rank 16 on every linear layer. A line of JSON for every
//! number of sequences in one pass, as it comes: tokens per second (the middle of the steps that count, two go before), the most memory that was in
//! use, and, with `--profile`, where one more step spends its time. `beside_peft.py` puts it beside PEFT's.
//!
//! A base is loaded once, since that takes longer than all steps; sizes are tried until one is slower than the one before, has no
//! memory, or could not be done in the time that is left.

use std::error::Error;
use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use lorikeet_trainer::TrainError;
use lorikeet_trainer::config::BaseDtype;
use lorikeet_trainer::ops::machine::Machine;
use lorikeet_trainer::trainee::Trainee;
use serde_json::{Map, Value, json};

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
    let mut trainee = Trainee::new(Machine::gpu(0)?, &wish.dir, wish.dtype, 0.0)?;
    trainee.model().set_recompute(wish.recompute);
    let weights = trainee.model().most_in_use();
    let sequences = wish.sequences(trainee.model().config().vocab_size as u64);
    let mut best: Option<f64> = None;
    for &together in &wish.together {
        let start = Instant::now();
        let mut line = match one_size(&mut trainee, wish, &sequences, together) {
            Ok(line) => line,
            Err(error) => json!({"error": error.to_string()}),
        };
        line["together"] = json!(together);
        line["weights_bytes"] = json!(weights);
        writeln!(out, "{line}")?;
        out.flush()?;
        let Some(speed) = line["tokens_per_second"].as_f64() else { break };
        let slower = best.is_some_and(|best| speed < best);
        best = Some(best.map_or(speed, |best| best.max(speed)));
        if slower || began.elapsed() + start.elapsed() > wish.limit {
            break;
        }
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

fn one_size(trainee: &mut Trainee, wish: &Wish, sequences: &[Vec<u32>], together: usize) -> Result<Value, TrainError> {
    trainee.model().forget_use();
    let mut steps = Vec::new();
    for _ in 0..WARM_UP + COUNTED {
        steps.push(trainee.step(sequences, together)?);
    }
    let peak = trainee.model().most_in_use();
    let mut seconds: Vec<f64> = steps[WARM_UP..].iter().map(|step| step.seconds).collect();
    seconds.sort_by(f64::total_cmp);
    let (middle, step) = (seconds[COUNTED / 2], &steps[WARM_UP]);
    let mut milliseconds = Map::new();
    if wish.profile {
        trainee.model().profile().wait();
        let waited = trainee.step(sequences, together)?;
        for (op, seconds) in &waited.spent {
            milliseconds.insert(format!("{op:?}").to_lowercase(), json!(seconds * 1e3));
        }
        milliseconds.insert("step".into(), json!(waited.seconds * 1e3));
    }
    Ok(json!({
        "tokens_per_second": step.tokens as f64 / middle, "seconds": middle, "loss": [steps[0].loss, steps[WARM_UP + COUNTED - 1].loss],
        "teraflops": step.flops as f64 / middle / 1e12, "peak_bytes": peak, "milliseconds": milliseconds,
    }))
}
