//! A base written again in fewer bits, as transformers saves a model that bitsandbytes quantised: it, PEFT and we read it back.
//!
//! Projections become bitsandbytes' tensors (`lorikeet_plan`'s page on them lists names and shapes), everything else stays the bytes
//! that it was; `config.json` says so under `quantization_config`.

use std::path::Path;

use lorikeet_plan::{Base, BaseDtype, QUANT_BLOCK, QUANT_NESTED_BLOCK, QUANT_STATE, TensorSpec, inspect_base, tensors};
use safetensors::tensor::Dtype;
use serde_json::{Value, json};

use super::{Int8, Nf4, Quantised, Scales};
use crate::TrainError;
use crate::export::copy_side_files;
use crate::model::Files;
use crate::ops::widen::Stored;
use crate::staged::StagedDir;
use crate::tensor_file::{Slot, Slots};

/// What `quant_state` says, with blanks behind it: so every size is known before a weight is read. Without them it has some 160
/// bytes.
const STATE_BYTES: usize = 256;

/// Writes the base at `from` into the directory `to`, its projections in the bits of `dtype`, whole or not at all; answers how many
/// bytes the weights take there. One weight is in memory at a time; `stop` leaves it.
pub fn write_base(from: &Path, to: &Path, dtype: BaseDtype, stop: &dyn Fn() -> bool) -> Result<u64, TrainError> {
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
    let staged = StagedDir::result(to, stop)?;
    let specs = tensors(&config);
    let slots = specs.iter().flat_map(|spec| match projection(spec) {
        Some(shape) => slots(&spec.name, shape, dtype),
        None => {
            vec![Slot { name: spec.name.clone(), dtype: dtype_of(files.stored(&spec.name)), shape: spec.shape.clone() }]
        }
    });
    let path = staged.path().join("model.safetensors");
    let failed = |error| TrainError::io("write", &path)(error);
    let out = Slots::create(&path, slots.collect()).map_err(failed)?;
    for spec in &specs {
        if stop() {
            return Err(TrainError::Stopped);
        }
        let parts = match projection(spec) {
            Some(shape) => parts(&spec.name, shape, &files.quantised(&spec.name, shape, dtype)?),
            None => vec![(spec.name.clone(), files.raw(&spec.name)?)],
        };
        parts.iter().try_for_each(|(name, bytes)| out.fill(name, bytes)).map_err(failed)?;
    }
    copy_side_files(from, staged.path())?;
    staged.write("config.json", config_json(&config_text, dtype).as_bytes())?;
    let bytes = out.bytes();
    staged.publish()?;
    Ok(bytes)
}

/// The shape of a weight that is quantised.
fn projection(spec: &TensorSpec) -> Option<[usize; 2]> {
    match spec.shape[..] {
        [rows, cols] if spec.name.ends_with("_proj.weight") => Some([rows, cols]),
        _ => None,
    }
}

fn dtype_of(stored: Stored) -> Dtype {
    match stored {
        Stored::F32 => Dtype::F32,
        Stored::F16 => Dtype::F16,
        Stored::Bf16 => Dtype::BF16,
    }
}

/// The tensors that stand for one weight.
fn slots(weight: &str, [rows, cols]: [usize; 2], dtype: BaseDtype) -> Vec<Slot> {
    let slot = |name: String, dtype, shape: &[usize]| Slot { name, dtype, shape: shape.to_vec() };
    if dtype == BaseDtype::Int8 {
        let module = weight.trim_end_matches("weight");
        return vec![
            slot(weight.to_owned(), Dtype::I8, &[rows, cols]),
            slot(format!("{module}SCB"), Dtype::F32, &[rows]),
            slot(format!("{module}weight_format"), Dtype::U8, &[]),
        ];
    }
    let of = |part: &str| format!("{weight}.{part}");
    let blocks = (rows * cols).div_ceil(QUANT_BLOCK);
    vec![
        slot(weight.to_owned(), Dtype::U8, &[(rows * cols).div_ceil(2), 1]),
        slot(of("quant_map"), Dtype::F32, &[16]),
        slot(of("absmax"), Dtype::U8, &[blocks]),
        slot(of("nested_absmax"), Dtype::F32, &[blocks.div_ceil(QUANT_NESTED_BLOCK)]),
        slot(of("nested_quant_map"), Dtype::F32, &[256]),
        slot(format!("{weight}{QUANT_STATE}"), Dtype::U8, &[STATE_BYTES]),
    ]
}

/// What those tensors hold.
fn parts(weight: &str, shape: [usize; 2], quantised: &Quantised) -> Vec<(String, Vec<u8>)> {
    match quantised {
        Quantised::Nf4(nf4) => nf4_parts(weight, shape, nf4),
        Quantised::Int8(Int8 { codes, scales }) => {
            let module = weight.trim_end_matches("weight");
            let codes = codes.iter().map(|code| code.cast_unsigned()).collect();
            vec![
                (weight.to_owned(), codes),
                (format!("{module}SCB"), floats(scales)),
                (format!("{module}weight_format"), vec![0]),
            ]
        }
    }
}

fn nf4_parts(weight: &str, shape: [usize; 2], nf4: &Nf4) -> Vec<(String, Vec<u8>)> {
    let of = |part: &str| format!("{weight}.{part}");
    let Scales::Nested(nested) = &nf4.scales else { panic!("what is quantised here has nested scales") };
    let state = json!({
        "quant_type": "nf4", "blocksize": nf4.block, "dtype": before(nf4.stored), "shape": shape,
        "nested_blocksize": nested.block, "nested_dtype": "float32", "nested_offset": f64::from(nested.mean),
    });
    let state = format!("{:STATE_BYTES$}", state.to_string()).into_bytes();
    vec![
        (weight.to_owned(), nf4.codes.clone()),
        (of("quant_map"), floats(&nf4.levels)),
        (of("absmax"), nested.codes.clone()),
        (of("nested_absmax"), floats(&nested.scales)),
        (of("nested_quant_map"), floats(&nested.map[..])),
        (format!("{weight}{QUANT_STATE}"), state),
    ]
}

fn before(stored: Stored) -> &'static str {
    match stored {
        Stored::F32 => "float32",
        Stored::F16 => "float16",
        Stored::Bf16 => "bfloat16",
    }
}

fn floats(numbers: &[f32]) -> Vec<u8> {
    numbers.iter().flat_map(|x| x.to_le_bytes()).collect()
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
