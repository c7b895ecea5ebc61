//! The two ends of the demo's base, which no command has: a start of random numbers, and the trained weights in bf16. What
//! lies between is `lorikeet train`; `cargo xtask demo-base` calls all three.
//!
//! ```text
//! demo_base start CONFIG SEED DIR     config, tokenizer that reads bytes, and weights drawn from the seed
//! demo_base round FROM TO             the model in FROM with its weights rounded to bf16
//! ```

use std::error::Error;
use std::fs;
use std::path::Path;

use half::bf16;
use lorikeet_dataset::write_byte_tokenizer;
use lorikeet_trainer::export::{StoredAs, init_base};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::Value;

type Done = Result<(), Box<dyn Error>>;

fn main() -> Done {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["start", config, seed, dir] => start(config, seed.parse()?, Path::new(dir)),
        ["round", from, to] => round(Path::new(from), Path::new(to)),
        _ => Err("expected `start CONFIG SEED DIR` or `round FROM TO`".into()),
    }
}

fn start(config: &str, seed: u64, dir: &Path) -> Done {
    let mut config: Value = serde_json::from_str(&fs::read_to_string(config)?)?;
    config["vocab_size"] = write_byte_tokenizer(dir)?.into();
    init_base(dir, &config, seed, StoredAs::F32)?;
    Ok(())
}

fn round(from: &Path, to: &Path) -> Done {
    fs::create_dir_all(to)?;
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        fs::copy(from.join(name), to.join(name))?;
    }
    let mut config: Value = serde_json::from_str(&fs::read_to_string(from.join("config.json"))?)?;
    config["torch_dtype"] = "bfloat16".into();
    fs::write(to.join("config.json"), format!("{config:#}\n"))?;
    let file = fs::read(from.join("model.safetensors"))?;
    let tensors = SafeTensors::deserialize(&file)?;
    let rounded = tensors.iter().map(|(name, tensor)| (name, tensor.shape().to_vec(), in_bf16(tensor.data())));
    let rounded: Vec<_> = rounded.collect();
    let views =
        rounded.iter().map(|(name, shape, data)| Ok((*name, TensorView::new(Dtype::BF16, shape.clone(), data)?)));
    let views: Vec<_> = views.collect::<Result<_, safetensors::SafeTensorError>>()?;
    let about = std::collections::HashMap::from([("format".to_owned(), "pt".to_owned())]);
    Ok(safetensors::serialize_to_file(views, Some(about), &to.join("model.safetensors"))?)
}

fn in_bf16(data: &[u8]) -> Vec<u8> {
    let numbers = data.as_chunks::<4>().0.iter();
    numbers.flat_map(|four| bf16::from_f32(f32::from_le_bytes(*four)).to_le_bytes()).collect()
}
