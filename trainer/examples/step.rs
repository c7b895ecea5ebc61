//! Optimizer steps of a base of SmolLM2-135M's shape, one for every line on standard input: what `cargo xtask bench train` puts
//! beside PEFT.
//!
//! ```text
//! step make DIR                          writes the base: random numbers around zero in bf16, gains of one
//! step ceiling                           per line: GFLOP/s of large products, the most this machine gives
//! step run DIR BATCHES DTYPE DROPOUT     per line: one step of the next batch, the base in f32 or bf16
//! ```
//! BATCHES is JSON, a list of batches of sequences of token ids; every token but a sequence's first is a target. Each answer
//! is one line of JSON.

use std::error::Error;
use std::io::{BufRead, Write};
use std::path::Path;
use std::time::Instant;

use lorikeet_plan::{BaseDtype, ModelConfig, tensors};
use lorikeet_trainer::ops::bf16::Matrix;
use lorikeet_trainer::ops::machine::Machine;
use lorikeet_trainer::ops::matmul::{View, ViewMut};
use lorikeet_trainer::trainee::{Measured, Trainee};
use serde_json::{Map, Value, json};

const CONFIG: &str = r#"{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536,
    "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152, "hidden_act": "silu",
    "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 100000.0, "tie_word_embeddings": true,
    "torch_dtype": "bfloat16"}"#;
type Answer = Result<Value, Box<dyn Error>>;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["make", dir] => write_model(Path::new(dir)),
        ["ceiling"] => answer(|| Ok(ceiling())),
        ["run", dir, batches, dtype, dropout] => {
            let batches: Vec<Vec<Vec<u32>>> = serde_json::from_slice(&std::fs::read(batches)?)?;
            let mut trainee = Trainee::new(Machine::default(), Path::new(dir), base_dtype(dtype)?, dropout.parse()?)?;
            let mut batches = batches.iter().cycle();
            answer(|| {
                let batch = batches.next().ok_or("there are no batches")?;
                measured(&trainee.step(batch, batch.len())?)
            })
        }
        _ => Err("expected `make DIR`, `ceiling` or `run DIR BATCHES DTYPE DROPOUT`".into()),
    }
}

/// One answer for every line that comes, until no more do.
fn answer(mut next: impl FnMut() -> Answer) -> Result<(), Box<dyn Error>> {
    let mut out = std::io::stdout().lock();
    for line in std::io::stdin().lock().lines() {
        line?;
        writeln!(out, "{}", next()?)?;
        out.flush()?;
    }
    Ok(())
}

fn base_dtype(word: &str) -> Result<BaseDtype, Box<dyn Error>> {
    match word {
        "f32" => Ok(BaseDtype::F32),
        "bf16" => Ok(BaseDtype::Bf16),
        _ => Err(format!("expected f32 or bf16, not {word}").into()),
    }
}

fn measured(step: &Measured) -> Answer {
    let mut milliseconds = Map::new();
    let mut rest = step.seconds;
    for (op, seconds) in &step.spent {
        rest -= seconds;
        milliseconds.insert(format!("{op:?}").to_lowercase(), json!((seconds * 1e3).round()));
    }
    milliseconds.insert("rest".into(), json!((rest * 1e3).round()));
    Ok(json!({
        "seconds": step.seconds, "tokens": step.tokens, "loss": step.loss, "flops": step.flops, "peak_bytes": peak_bytes()?,
        "milliseconds": milliseconds,
    }))
}

/// The best of a few products of 2,048 × 2,048 × 2,048, in both formats.
fn ceiling() -> Value {
    const SIDE: usize = 2048;
    let (a, b) = (vec![0.5f32; SIDE * SIDE], vec![0.25f32; SIDE * SIDE]);
    let brain = vec![half::bf16::from_f32(0.25); SIDE * SIDE];
    let mut c = vec![0.0f32; SIDE * SIDE];
    let gigaflops = |product: &mut dyn FnMut()| {
        let seconds = |_| {
            let start = Instant::now();
            product();
            start.elapsed().as_secs_f64()
        };
        2.0 * (SIDE * SIDE * SIDE) as f64 / (0..4).map(seconds).fold(f64::INFINITY, f64::min) / 1e9
    };
    let view = |x| View::new(x, SIDE, SIDE);
    let f32 = gigaflops(&mut || ViewMut::new(&mut c, SIDE, SIDE).set(view(&a).times(view(&b))));
    let bf16 = gigaflops(&mut || Matrix::new(&brain, SIDE, SIDE).backward(&a, &mut c));
    json!({ "f32": f32, "bf16": bf16 })
}

/// Small even numbers around zero, gains of one, as bf16.
fn write_model(dir: &Path) -> Result<(), Box<dyn Error>> {
    std::fs::create_dir_all(dir)?;
    std::fs::write(dir.join("config.json"), CONFIG)?;
    let specs = tensors(&ModelConfig::parse(CONFIG)?);
    let mut state = 1u32;
    let data: Vec<(String, Vec<usize>, Vec<u8>)> = specs
        .into_iter()
        .map(|spec| {
            let gain = spec.shape.len() == 1;
            let numbers = (0..spec.shape.iter().product::<usize>()).flat_map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let x = (state >> 8) as f32 / 16_777_216.0 - 0.5;
                half::bf16::from_f32(if gain { 1.0 } else { 0.1 * x }).to_le_bytes()
            });
            let bytes = numbers.collect();
            (spec.name, spec.shape, bytes)
        })
        .collect();
    let views = data.iter().map(|(name, shape, bytes)| {
        safetensors::tensor::TensorView::new(safetensors::Dtype::BF16, shape.clone(), bytes).map(|view| (name, view))
    });
    let views: Vec<_> = views.collect::<Result<_, _>>()?;
    let about = std::collections::HashMap::from([("format".to_owned(), "pt".to_owned())]);
    Ok(safetensors::serialize_to_file(views, Some(about), &dir.join("model.safetensors"))?)
}

fn peak_bytes() -> Result<u64, Box<dyn Error>> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).ok_or("no VmHWM")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
}
