//! `lorikeet-gpu step DIR`: optimizer steps of the base in DIR on the GPU, an adapter of rank 16 on every linear layer. One line of JSON:
//! tokens per second (the middle of the steps that count, two go before), the most memory that was in use, and, with `--profile`,
//! where one more step spends its time when every operation is waited for. `beside_peft.py` puts it beside PEFT's.

use std::path::PathBuf;

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
    /// Sequences in one pass.
    together: usize,
    recompute: usize,
    dtype: BaseDtype,
    profile: bool,
}

impl Wish {
    pub(crate) fn parse(words: &[String]) -> Result<Wish, String> {
        let (length, sequences, dtype) = (2048, 4, BaseDtype::Bf16);
        let mut wish =
            Wish { dir: PathBuf::new(), length, sequences, together: 1, recompute: 0, dtype, profile: false };
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let mut value = || -> Result<usize, String> {
                let text = words.next().ok_or(format!("{word} wants a number"))?;
                text.parse().ok().filter(|n| *n > 0).ok_or(format!("{word} {text}: not a number above 0"))
            };
            match word.as_str() {
                "--length" => wish.length = value()?.max(2),
                "--sequences" => wish.sequences = value()?,
                "--together" => wish.together = value()?,
                "--recompute" => wish.recompute = value()?,
                "--nf4" => wish.dtype = BaseDtype::Nf4,
                "--profile" => wish.profile = true,
                option if option.starts_with("--") => return Err(format!("{option} is not known")),
                dir => wish.dir = dir.into(),
            }
        }
        if wish.dir.as_os_str().is_empty() { Err("step wants the directory of a base".into()) } else { Ok(wish) }
    }
}

/// Takes the steps.
pub(crate) fn measure(wish: &Wish) -> Result<String, TrainError> {
    let mut trainee = Trainee::new(Machine::gpu(0)?, &wish.dir, wish.dtype, 0.0)?;
    trainee.model().set_recompute(wish.recompute);
    let vocabulary = trainee.model().config().vocab_size as u64;
    let weights = trainee.model().most_in_use();
    // any ids do; a step's are those of every other
    let id = |place: usize| (place as u64 * 2_654_435_761 % vocabulary) as u32;
    let sequence = |i: usize| (0..wish.length).map(|j| id(i * wish.length + j)).collect();
    let sequences: Vec<Vec<u32>> = (0..wish.sequences).map(sequence).collect();
    let mut steps = Vec::new();
    for _ in 0..WARM_UP + COUNTED {
        steps.push(trainee.step(&sequences, wish.together)?);
    }
    let peak = trainee.model().most_in_use();
    let mut seconds: Vec<f64> = steps[WARM_UP..].iter().map(|step| step.seconds).collect();
    seconds.sort_by(f64::total_cmp);
    let (middle, step) = (seconds[COUNTED / 2], &steps[WARM_UP]);
    let mut milliseconds = Map::new();
    if wish.profile {
        trainee.model().profile().wait();
        let waited = trainee.step(&sequences, wish.together)?;
        for (op, seconds) in &waited.spent {
            milliseconds.insert(format!("{op:?}").to_lowercase(), json!(seconds * 1e3));
        }
        milliseconds.insert("step".into(), json!(waited.seconds * 1e3));
    }
    let line: Value = json!({
        "tokens_per_second": step.tokens as f64 / middle, "seconds": middle, "loss": [steps[0].loss, steps[WARM_UP + COUNTED - 1].loss],
        "teraflops": step.flops as f64 / middle / 1e12, "weights_bytes": weights, "peak_bytes": peak, "milliseconds": milliseconds,
    });
    Ok(line.to_string())
}
