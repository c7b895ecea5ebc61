//! The hand-written backward beside candle's autograd over plain operations in `f64`, for every depth at which it may end.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{D, DType, Device, Result, Tensor, Var};
use lorikeet_plan::{ModelConfig, Module};
use lorikeet_trainer::data::MicroBatch;
use lorikeet_trainer::lora::{self, AdapterView, LoraConfig, LoraEntry, LoraLayout, Site, Targets};
use lorikeet_trainer::model::Model;

#[test]
fn gradients_equal_autograd_wherever_the_lowest_adapter_sits() {
    let model = Model::load(&base()).expect("a sound base");
    let patterns = [
        r".*_proj",
        r".*\.1\.mlp\.down_proj",
        r".*\.1\.mlp\.gate_proj",
        r".*\.1\.mlp\.up_proj|.*\.1\.mlp\.down_proj",
        r".*\.1\.self_attn\.o_proj",
        r".*\.1\.self_attn\.k_proj",
        r".*\.0\.self_attn\.(q|v)_proj",
        r".*\.0\.self_attn\.o_proj|.*\.1\.mlp\.up_proj",
        r".*\.0\.mlp\.down_proj|.*\.1\.self_attn\.v_proj",
    ];
    for pattern in patterns {
        let target_modules = Targets::Pattern(pattern.into());
        let config = LoraConfig { target_modules, ..LoraConfig::plain(3, 4.0, 0.0) };
        let layout = LoraLayout::new(model.config(), &config).expect("the pattern matches");
        let params: Vec<f32> =
            lora::init(&layout, 11).iter().enumerate().map(|(i, x)| x + 0.01 * (i % 7) as f32).collect();
        let batch = batch();
        let mut grads = vec![0.0; layout.len()];
        let view = AdapterView { layout: &layout, params: (&params).into(), dropout: None };
        let sums = model.forward_backward(&batch, &[view], &[0.5], &mut [&mut grads], &|| false).expect("a pass");
        let oracle = Oracle::new(model.config().clone(), &layout, &params).expect("the same weights");
        let (loss, expected) = oracle.run(&batch, &layout).expect("autograd");
        assert!((sums[0].sum - loss).abs() < 1e-5 * loss, "{pattern}: {} and {loss}", sums[0].sum);
        let size = expected.iter().map(|g| g * g).sum::<f64>().sqrt();
        let apart = grads.iter().zip(&expected).map(|(a, b)| (f64::from(*a) - 0.5 * b).powi(2)).sum::<f64>().sqrt();
        assert!(size > 0.0 && apart < 1e-5 * size, "{pattern}: {apart:e} off a norm of {size:e}");
    }
}

fn base() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/untied_all_f32/base")
}

fn batch() -> MicroBatch {
    let mut batch = MicroBatch::default();
    for (example, len) in (0..).zip([7usize, 12, 4]) {
        let tokens: Vec<u32> = (0..len).map(|i| ((i * 31 + example as usize * 17 + 5) % 80) as u32).collect();
        let supervised: Vec<bool> = (0..len).map(|i| i % 3 != 1).collect();
        batch.push(&tokens, &supervised, 0, example, 0);
    }
    batch
}

/// The same network from operations that candle can differentiate.
struct Oracle {
    config: ModelConfig,
    weights: HashMap<String, Tensor>,
    adapters: HashMap<Site, (Var, Var, f64)>,
}

impl Oracle {
    fn new(config: ModelConfig, layout: &LoraLayout, params: &[f32]) -> Result<Oracle> {
        let mut weights = HashMap::new();
        for shard in ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"] {
            for (name, tensor) in candle_core::safetensors::load(base().join(shard), &Device::Cpu)? {
                weights.insert(name, tensor.to_dtype(DType::F64)?);
            }
        }
        let matrix = |numbers: &[f32], shape: (usize, usize)| {
            Var::from_tensor(&Tensor::from_slice(numbers, shape, &Device::Cpu)?.to_dtype(DType::F64)?)
        };
        let pair = |entry: &LoraEntry| {
            let a = matrix(&params[entry.a.clone()], (entry.rank, entry.in_features))?;
            let b = matrix(&params[entry.b.clone()], (entry.out_features, entry.rank))?;
            Ok((entry.site, (a, b, f64::from(entry.scale))))
        };
        let adapters = layout.entries().iter().map(pair).collect::<Result<_>>()?;
        Ok(Oracle { config, weights, adapters })
    }

    /// The sum of losses, and its gradient in the layout's order.
    fn run(&self, batch: &MicroBatch, layout: &LoraLayout) -> Result<(f64, Vec<f64>)> {
        let mut loss = Tensor::zeros((), DType::F64, &Device::Cpu)?;
        for segment in &batch.segments {
            let rows = segment.start..segment.start + segment.len;
            let tokens = &batch.tokens[rows.clone()];
            let log_p = candle_nn::ops::log_softmax(&self.logits(tokens)?, D::Minus1)?;
            for target in batch.targets.iter().filter(|target| rows.contains(&(target.row as usize))) {
                loss = (loss - log_p.get(target.row as usize - rows.start)?.get(target.token as usize)?)?;
            }
        }
        let store = loss.backward()?;
        let mut gradient = Vec::new();
        for entry in layout.entries() {
            let (a, b, _) = &self.adapters[&entry.site];
            for matrix in [a, b] {
                let of = store.get(matrix).expect("every adapter takes part");
                gradient.extend(of.flatten_all()?.to_vec1::<f64>()?);
            }
        }
        Ok((loss.to_scalar()?, gradient))
    }

    fn logits(&self, tokens: &[u32]) -> Result<Tensor> {
        let ids = Tensor::from_slice(tokens, tokens.len(), &Device::Cpu)?;
        let mut x = self.weights["model.embed_tokens.weight"].index_select(&ids, 0)?;
        for layer in 0..self.config.num_hidden_layers {
            let h = self.norm(&x, &format!("model.layers.{layer}.input_layernorm"))?;
            x = (x + self.linear(&self.attention(&h, layer)?, layer, Module::OProj)?)?;
            let h = self.norm(&x, &format!("model.layers.{layer}.post_attention_layernorm"))?;
            let gate = candle_nn::ops::silu(&self.linear(&h, layer, Module::GateProj)?)?;
            let act = (gate * self.linear(&h, layer, Module::UpProj)?)?;
            x = (x + self.linear(&act, layer, Module::DownProj)?)?;
        }
        self.norm(&x, "model.norm")?.matmul(&self.weights["lm_head.weight"].t()?)
    }

    fn norm(&self, x: &Tensor, module: &str) -> Result<Tensor> {
        let root = (x.sqr()?.mean_keepdim(D::Minus1)? + self.config.rms_norm_eps)?.sqrt()?;
        x.broadcast_div(&root)?.broadcast_mul(&self.weights[&format!("{module}.weight")])
    }

    fn linear(&self, x: &Tensor, layer: usize, module: Module) -> Result<Tensor> {
        let y = x.matmul(&self.weights[&format!("{}.weight", module.path(layer))].t()?)?;
        match self.adapters.get(&Site::Block(layer, module)) {
            None => Ok(y),
            Some((a, b, scale)) => y + (x.matmul(&a.t()?)?.matmul(&b.t()?)? * *scale)?,
        }
    }

    fn attention(&self, h: &Tensor, layer: usize) -> Result<Tensor> {
        let (tokens, width) = (h.dim(0)?, self.config.head_dim);
        let group = self.config.queries_per_key();
        let [q, k, v] = [Module::QProj, Module::KProj, Module::VProj].map(|module| self.linear(h, layer, module));
        let (q, k, v) = (q?, k?, v?);
        let hidden = |i: usize| if i % tokens > i / tokens { f64::NEG_INFINITY } else { 0.0 };
        let mask: Vec<f64> = (0..tokens * tokens).map(hidden).collect();
        let mask = Tensor::from_vec(mask, (tokens, tokens), &Device::Cpu)?;
        let mut heads = Vec::new();
        for head in 0..self.config.num_attention_heads {
            let q = self.turned(&q.narrow(1, head * width, width)?)?;
            let k = self.turned(&k.narrow(1, head / group * width, width)?)?;
            let v = v.narrow(1, head / group * width, width)?;
            let scores = (q.matmul(&k.t()?)? / (width as f64).sqrt())?;
            heads.push(candle_nn::ops::softmax(&(scores + &mask)?, D::Minus1)?.matmul(&v.contiguous()?)?);
        }
        Tensor::cat(&heads, 1)
    }

    fn turned(&self, x: &Tensor) -> Result<Tensor> {
        let (tokens, half) = (x.dim(0)?, self.config.head_dim / 2);
        let frequency = |i: usize| self.config.ropes[0].theta.powf(-(i as f64) / half as f64) as f32;
        let angle = |i: usize| f64::from((i / half) as f32 * frequency(i % half));
        let table = |f: fn(f64) -> f64| {
            let values: Vec<f64> = (0..tokens * half).map(|i| f(angle(i))).collect();
            Tensor::from_vec(values, (tokens, half), &Device::Cpu)
        };
        let (cos, sin) = (table(f64::cos)?, table(f64::sin)?);
        let (a, b) = (x.narrow(1, 0, half)?, x.narrow(1, half, half)?);
        let turned = [((&a * &cos)? - (&b * &sin)?)?, ((&b * &cos)? + (&a * &sin)?)?];
        Tensor::cat(&turned, 1)
    }
}
