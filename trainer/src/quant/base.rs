//! A base written again in fewer bits, as transformers saves a model that bitsandbytes quantised: it, PEFT and we read it back.
//!
//! Projections become bitsandbytes' tensors (`lorikeet_plan`'s page on them lists names and shapes), everything else stays the bytes
//! that it was; `config.json` says so under `quantization_config`.

use std::borrow::Cow;
use std::fs;
use std::path::Path;

use lorikeet_plan::{Base, BaseDtype, QUANT_STATE, inspect_base, tensors};
use safetensors::tensor::{Dtype, View};
use serde_json::{Value, json};

use super::{Int8, Nf4, Quantised, Scales};
use crate::TrainError;
use crate::export::TOKENIZER_FILES;
use crate::model::Files;
use crate::ops::widen::Stored;

/// One tensor of a file, its bytes made.
struct Tensor {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl View for Tensor {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.bytes)
    }

    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}

/// Writes the base at `from` into the new directory `to`, its projections in the bits of `dtype`; answers how many bytes the weights
/// take there.
pub fn write_base(from: &Path, to: &Path, dtype: BaseDtype) -> Result<u64, TrainError> {
    assert!(dtype.is_quantised(), "asked for fewer bits");
    let base = inspect_base(from);
    let files = Files::judged(from, &base, dtype, &|| false)?;
    let Base { config: Some(config), config_text, .. } = base else {
        return Err(TrainError::Internal("a base without faults has a config".into()));
    };
    if config.quantisation.is_some() {
        let reason = "is quantised already; start from the model it was made of".to_owned();
        return Err(TrainError::Base { path: from.to_owned(), reason });
    }
    let mut written = Vec::new();
    for spec in tensors(&config) {
        match spec.shape[..] {
            [rows, cols] if spec.name.ends_with("_proj.weight") => {
                written.extend(parts(&spec.name, [rows, cols], &files.quantised(&spec.name, [rows, cols], dtype)?));
            }
            _ => {
                let (stored, bytes) = files.raw(&spec.name)?;
                written.push((spec.name, Tensor { dtype: dtype_of(stored), shape: spec.shape, bytes }));
            }
        }
    }
    let bytes = written.iter().map(|(_, tensor)| tensor.bytes.len() as u64).sum();
    fs::create_dir(to).map_err(TrainError::io("create", to))?;
    let path = to.join("model.safetensors");
    safetensors::serialize_to_file(written, Some([("format".to_owned(), "pt".to_owned())].into()), &path)
        .map_err(|error| TrainError::io("write", &path)(std::io::Error::other(error)))?;
    for name in TOKENIZER_FILES.iter().chain(&["generation_config.json"]) {
        let there = from.join(name);
        if there.exists() {
            fs::copy(&there, to.join(name)).map_err(TrainError::io("copy", &there))?;
        }
    }
    // last, so that half a model is none
    let path = to.join("config.json");
    fs::write(&path, config_json(&config_text, dtype)).map_err(TrainError::io("write", &path))?;
    Ok(bytes)
}

fn dtype_of(stored: Stored) -> Dtype {
    match stored {
        Stored::F32 => Dtype::F32,
        Stored::F16 => Dtype::F16,
        Stored::Bf16 => Dtype::BF16,
    }
}

/// The tensors that stand for one weight.
fn parts(weight: &str, shape: [usize; 2], quantised: &Quantised) -> Vec<(String, Tensor)> {
    match quantised {
        Quantised::Nf4(nf4) => nf4_parts(weight, shape, nf4),
        Quantised::Int8(Int8 { codes, scales }) => {
            let module = weight.trim_end_matches("weight");
            let codes = codes.iter().map(|code| code.cast_unsigned()).collect();
            vec![
                (weight.to_owned(), Tensor { dtype: Dtype::I8, shape: shape.to_vec(), bytes: codes }),
                (format!("{module}SCB"), floats(scales)),
                (format!("{module}weight_format"), Tensor { dtype: Dtype::U8, shape: vec![], bytes: vec![0] }),
            ]
        }
    }
}

fn nf4_parts(weight: &str, shape: [usize; 2], nf4: &Nf4) -> Vec<(String, Tensor)> {
    let of = |part: &str| format!("{weight}.{part}");
    let mut state = json!({
        "quant_type": "nf4", "blocksize": nf4.block, "dtype": before(nf4.stored), "shape": shape,
    });
    let codes = Tensor { dtype: Dtype::U8, shape: vec![nf4.codes.len(), 1], bytes: nf4.codes.clone() };
    let mut parts = vec![(weight.to_owned(), codes), (of("quant_map"), floats(&nf4.levels))];
    match &nf4.scales {
        Scales::Plain(scales) => parts.push((of("absmax"), floats(scales))),
        Scales::Nested(nested) => {
            state["nested_blocksize"] = nested.block.into();
            state["nested_dtype"] = "float32".into();
            state["nested_offset"] = f64::from(nested.mean).into();
            parts.push((of("absmax"), bytes(nested.codes.clone())));
            parts.push((of("nested_absmax"), floats(&nested.scales)));
            parts.push((of("nested_quant_map"), floats(&nested.map[..])));
        }
    }
    parts.push((format!("{weight}{QUANT_STATE}"), bytes(state.to_string().into_bytes())));
    parts
}

fn before(stored: Stored) -> &'static str {
    match stored {
        Stored::F32 => "float32",
        Stored::F16 => "float16",
        Stored::Bf16 => "bfloat16",
    }
}

fn floats(numbers: &[f32]) -> Tensor {
    let bytes = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
    Tensor { dtype: Dtype::F32, shape: vec![numbers.len()], bytes }
}

fn bytes(bytes: Vec<u8>) -> Tensor {
    Tensor { dtype: Dtype::U8, shape: vec![bytes.len()], bytes }
}

/// The base's config with what transformers wants to know of the quantisation.
fn config_json(text: &str, dtype: BaseDtype) -> String {
    let mut config: Value = serde_json::from_str(text).expect("the config was read before");
    let four = dtype == BaseDtype::Nf4;
    config["quantization_config"] = json!({
        "quant_method": "bitsandbytes",
        "load_in_4bit": four,
        "load_in_8bit": !four,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": four,
        "bnb_4bit_quant_storage": "uint8",
        "bnb_4bit_compute_dtype": "bfloat16",
        "llm_int8_threshold": 6.0,
        "llm_int8_skip_modules": null,
        "llm_int8_has_fp16_weight": false,
        "llm_int8_enable_fp32_cpu_offload": false,
    });
    format!("{config:#}\n")
}
