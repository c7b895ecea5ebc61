//! Planned against measured memory: trains random bases of real shapes, from bf16 shards, each in a process of its own, and
//! compares the plan with the most that the process ever held:
//! `cargo run --release -p lorikeet-trainer --example memory -- [DIR] [steps]` (target/bench-memory, 3).

use std::error::Error;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use lorikeet_dataset::write_byte_tokenizer;
use lorikeet_trainer::config::{BaseDtype, Length};
use lorikeet_trainer::event::{Event, Plan};
use lorikeet_trainer::export::{StoredAs, init_base};
use lorikeet_trainer::{Config, Stop, train};
use safetensors::SafeTensors;
use serde_json::{Value, json};

/// Conversations of the data.
const CONVERSATIONS: usize = 24;
/// What a shard holds at most.
const SHARD_BYTES: usize = 200 << 20;

/// One training whose memory is measured.
struct Case {
    name: &'static str,
    base: &'static str,
    dtype: BaseDtype,
    dropout: f64,
    /// Of what the plan would take if it could.
    memory_share: Option<f64>,
}

const fn case(name: &'static str, base: &'static str, dtype: BaseDtype) -> Case {
    Case { name, base, dtype, dropout: 0.0, memory_share: None }
}

const CASES: [Case; 7] = [
    case("smollm2-135m f32", "smollm2-135m", BaseDtype::F32),
    Case { dropout: 0.1, ..case("smollm2-135m f32, dropout", "smollm2-135m", BaseDtype::F32) },
    Case { memory_share: Some(0.55), ..case("smollm2-135m f32, made to fit", "smollm2-135m", BaseDtype::F32) },
    case("smollm2-135m bf16", "smollm2-135m", BaseDtype::Bf16),
    case("smollm2-135m nf4", "smollm2-135m", BaseDtype::Nf4),
    case("qwen2.5-0.5b f32", "qwen2.5-0.5b", BaseDtype::F32),
    case("qwen2.5-0.5b nf4", "qwen2.5-0.5b", BaseDtype::Nf4),
];

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [word, name, dir, steps] = &arguments[..]
        && word == "one"
    {
        let case = CASES.iter().find(|case| case.name == name).ok_or("no such case")?;
        return one(case, Path::new(dir), steps.parse()?);
    }
    let dir = PathBuf::from(arguments.first().map_or("target/bench-memory", String::as_str));
    let steps = arguments.get(1).map_or("3", String::as_str);
    let mut out = std::io::stdout().lock();
    for base in ["smollm2-135m", "qwen2.5-0.5b"] {
        prepare(&dir, base)?;
    }
    writeln!(out, "{:<30} {:>10} {:>10} {:>7}  plan in MiB", "case", "planned", "measured", "off")?;
    for case in &CASES {
        let me = std::env::current_exe()?;
        let answer = Command::new(me).args(["one", case.name]).arg(&dir).arg(steps).output()?;
        if !answer.status.success() {
            return Err(format!("{}: {}", case.name, String::from_utf8_lossy(&answer.stderr)).into());
        }
        out.write_all(&answer.stdout)?;
        out.flush()?;
    }
    Ok(())
}

/// Trains and tells.
fn one(case: &Case, dir: &Path, steps: u64) -> Result<(), Box<dyn Error>> {
    let out = dir.join("attempt");
    let _old = fs::remove_dir_all(&out);
    let mut config = Config::new(dir.join(case.base), dir.join("data.jsonl"), &out);
    config.settings.base_dtype = case.dtype;
    config.settings.length = Length::Steps(steps);
    config.settings.batch_size = 4;
    config.settings.max_seq_length = 1024;
    config.settings.lora.dropout = case.dropout;
    config.settings.validation_fraction = 0.1;
    if let Some(share) = case.memory_share {
        let mut free = None;
        let stop = Stop::new();
        // stopped as soon as the plan is told
        let _stopped = train(&config, &stop, &mut |event| {
            if let Event::Plan(plan) = event {
                free = Some(plan);
                stop.ask(lorikeet_trainer::Wish::Discard);
            }
            Ok(())
        })?;
        let free = free.ok_or("a run tells its plan")?;
        config.memory_limit = Some((free.memory.total as f64 * share) as u64);
    }
    let mut plan = None;
    train(&config, &Stop::new(), &mut |event| {
        if let Event::Plan(told) = event {
            plan = Some(told);
        }
        Ok(())
    })?;
    tell(case.name, &plan.ok_or("a run tells its plan")?)?;
    Ok(fs::remove_dir_all(&out)?)
}

fn tell(name: &str, plan: &Plan) -> Result<(), Box<dyn Error>> {
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let memory = &plan.memory;
    let measured = status("VmHWM:")?;
    let off = 100.0 * (mib(memory.total) - measured) / measured;
    writeln!(
        std::io::stdout(),
        "{name:<30} {:>10.0} {measured:>10.0} {off:>+6.1}%  weights {:.0}, adapters {:.0}, optimizer {:.0}, activations {:.0}, \
         head {:.0}, layer {:.0}, program {:.0}; {} tokens, {} blocks twice",
        mib(memory.total),
        mib(memory.weights),
        mib(memory.adapters),
        mib(memory.optimizer),
        mib(memory.activations),
        mib(memory.head),
        mib(memory.layer),
        mib(memory.program),
        plan.micro_tokens,
        plan.recompute,
    )?;
    Ok(())
}

/// A number of kB of this process, in MiB.
fn status(name: &str) -> Result<f64, Box<dyn Error>> {
    let text = fs::read_to_string("/proc/self/status")?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)).ok_or("the kernel tells it")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<f64>()? / 1024.0)
}

/// Makes a base and the data, unless they are there.
fn prepare(dir: &Path, base: &str) -> Result<(), Box<dyn Error>> {
    let target = dir.join(base);
    if !target.join("model.safetensors.index.json").is_file() {
        write_byte_tokenizer(&target)?;
        init_base(&target, &config(base), 1, StoredAs::Bf16)?;
        shard(&target)?;
    }
    let line = |i: usize| {
        let answer = "and so it goes on and on ".repeat(12 + i * 7 % 22);
        json!({"messages": [{"role": "user", "content": format!("tell me number {i}")},
            {"role": "assistant", "content": answer}]})
    };
    let lines: String = (0..CONVERSATIONS).map(|i| format!("{}\n", line(i))).collect();
    Ok(fs::write(dir.join("data.jsonl"), lines)?)
}

/// Splits `model.safetensors` as transformers would.
fn shard(dir: &Path) -> Result<(), Box<dyn Error>> {
    let whole = dir.join("model.safetensors");
    let bytes = fs::read(&whole)?;
    let tensors = SafeTensors::deserialize(&bytes)?;
    let mut names: Vec<&str> = tensors.names();
    names.sort_unstable();
    let mut shards: Vec<(usize, Vec<&str>)> = vec![(0, Vec::new())];
    for name in names {
        let size = tensors.tensor(name)?.data().len();
        if shards.last().is_some_and(|(held, _)| *held > 0 && held + size > SHARD_BYTES) {
            shards.push((0, Vec::new()));
        }
        let last = shards.last_mut().ok_or("there is a shard")?;
        last.0 += size;
        last.1.push(name);
    }
    let mut map = serde_json::Map::new();
    for (number, (_, names)) in shards.iter().enumerate() {
        let file = format!("model-{:05}-of-{:05}.safetensors", number + 1, shards.len());
        let views: Vec<_> =
            names.iter().map(|name| Ok((*name, tensors.tensor(name)?))).collect::<Result<_, Box<dyn Error>>>()?;
        safetensors::serialize_to_file(views, None, &dir.join(&file))?;
        map.extend(names.iter().map(|name| ((*name).to_owned(), Value::from(file.clone()))));
    }
    fs::write(dir.join("model.safetensors.index.json"), json!({"metadata": {}, "weight_map": map}).to_string())?;
    Ok(fs::remove_file(whole)?)
}

fn config(base: &str) -> Value {
    match base {
        "smollm2-135m" => json!({"architectures": ["LlamaForCausalLM"], "hidden_size": 576, "intermediate_size": 1536,
            "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152,
            "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 100_000, "tie_word_embeddings": true}),
        _ => json!({"architectures": ["Qwen2ForCausalLM"], "hidden_size": 896, "intermediate_size": 4864,
            "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": 151_936,
            "max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "rope_theta": 1_000_000.0, "tie_word_embeddings": true}),
    }
}
