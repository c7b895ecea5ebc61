//! Speed and memory of a training step on a randomly initialised model of SmolLM2-135M's shape:
//! `cargo run --release -p lorikeet-trainer --example step -- [sequences] [tokens each] [steps] [dropout]` (4, 256, 3, 0).

use std::error::Error;
use std::io::Write;
use std::path::Path;
use std::time::Instant;

use lorikeet_plan::{ModelConfig, tensors};
use lorikeet_trainer::data::MicroBatch;
use lorikeet_trainer::lora::{self, AdapterView, Dropout, LoraConfig, LoraLayout};
use lorikeet_trainer::model::Model;
use lorikeet_trainer::ops::adamw::{AdamW, adamw, clip_factor, norm};

const CONFIG: &str = r#"{"architectures": ["LlamaForCausalLM"], "hidden_size": 576, "intermediate_size": 1536,
    "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152,
    "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 100000, "tie_word_embeddings": true}"#;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<f64> = std::env::args().skip(1).map(|text| text.parse()).collect::<Result<_, _>>()?;
    let argument = |i: usize, default: f64| arguments.get(i).copied().unwrap_or(default);
    let (sequences, tokens) = (argument(0, 4.0) as usize, argument(1, 256.0) as usize);
    let (steps, p) = (argument(2, 3.0) as u64, argument(3, 0.0));

    let dir = std::env::temp_dir().join("lorikeet-smollm2-shape");
    if !dir.join("model.safetensors").is_file() {
        write_model(&dir)?;
    }
    let model = Model::load(&dir)?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "loaded, {} MB resident at most", peak_megabytes()?)?;
    let config = LoraConfig::plain(16, 32.0, p);
    let layout = LoraLayout::new(model.config(), &config)?;
    let mut params = lora::init(&layout, 1);
    let (mut m, mut v) = (vec![0.0; params.len()], vec![0.0; params.len()]);
    let batch = batch(sequences, tokens);
    for step in 1..=steps {
        let (start, before) = (Instant::now(), model.profile().spent());
        let dropout = (p > 0.0).then_some(Dropout { p, seed: 1 });
        let mut grads = vec![0.0; params.len()];
        let view = AdapterView { layout: &layout, params: &params, dropout };
        let scale = 1.0 / batch.targets.len() as f32;
        let loss = model.forward_backward(&batch, &[view], &[scale], &mut [&mut grads], &|| false)?[0];
        let settings = AdamW { lr: 1e-4, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0 };
        adamw(&mut params, &mut m, &mut v, &grads, settings, step, clip_factor(norm(&grads), Some(1.0)));
        let seconds = start.elapsed().as_secs_f64();
        let mean = loss.sum / loss.count as f64;
        writeln!(
            out,
            "step {step}: loss {mean:.4}, {seconds:.3} s, {:.0} tokens/s",
            batch.tokens.len() as f64 / seconds
        )?;
        let mut rest = seconds;
        for ((op, spent), (_, before)) in model.profile().spent().iter().zip(before) {
            let share = (*spent - before).as_secs_f64();
            rest -= share;
            write!(out, "  {op:?} {:.0} ms", share * 1e3)?;
        }
        writeln!(out, "  rest {:.0} ms; {} MB resident at most", rest * 1e3, peak_megabytes()?)?;
    }
    Ok(())
}

/// Every token but each sequence's first is a target.
fn batch(sequences: usize, tokens: usize) -> MicroBatch {
    let mut batch = MicroBatch::default();
    for example in 0..sequences {
        let ids: Vec<u32> = (0..tokens).map(|i| ((i * 7919 + example * 104_729) % 49_152) as u32).collect();
        batch.push(&ids, &vec![true; tokens], 0, example as u64, 0);
    }
    batch
}

/// Small even numbers around zero, gains around one, as bf16.
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
    Ok(safetensors::serialize_to_file(views, None, &dir.join("model.safetensors"))?)
}

fn peak_megabytes() -> Result<u64, Box<dyn Error>> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).ok_or("no VmHWM")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? / 1024)
}
