//! A plan that fits: which micro-batch and which blocks to compute again, or how much is missing and what would help.
//!
//! ```text
//! 1. the largest of 2048, 1024, 512, 256 tokens that fits      nothing is computed twice; on a GPU of its own from 65536 on
//! 2. the smallest of them, and as few blocks computed again as fit
//! 3. none: how much is missing, and which settings would do
//! ```
//! An example is never cut, so that no micro-batch is smaller than the longest one; and none is larger than a step.

use serde::{Deserialize, Serialize};

use super::{AdapterShape, BaseDtype, MemoryPlan, Processor, Settings, plan};
use crate::ModelConfig;

/// Tokens per micro-batch that are tried, the fastest first; beyond the first nothing is gained.
const MICRO_TOKENS: [usize; 4] = [2048, 1024, 512, 256];
/// Before those on a GPU that a run has for itself: a small model does not fill one with fewer. What a job is planned with, and a device is
/// looked for by, are those above: these only use what is free.
const GPU_MICRO_TOKENS: [usize; 5] = [65_536, 32_768, 16_384, 8192, 4096];

/// What is to be fitted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wish {
    /// Adapters, storage, processor, the longest segment; the rest is chosen.
    pub settings: Settings,
    /// Tokens of the largest step.
    pub step_tokens: usize,
    /// The micro-batch that somebody asked for.
    pub micro_tokens: Option<usize>,
    /// How many blocks to compute again, where that is not to be chosen.
    pub recompute: Option<usize>,
    /// What there is; nothing is known where it is none.
    pub available: Option<u64>,
    /// Whether all of that is this run's: nobody shares the device.
    pub alone: bool,
}

impl Wish {
    /// What is tried, the fastest first.
    fn sizes(&self) -> Vec<usize> {
        let has_a_gpu = self.alone && self.settings.processor == Processor::Cuda && self.available.is_some();
        match self.micro_tokens {
            Some(tokens) => vec![tokens],
            None if has_a_gpu => GPU_MICRO_TOKENS.into_iter().chain(MICRO_TOKENS).collect(),
            None => MICRO_TOKENS.to_vec(),
        }
    }
}

/// A plan that fits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fitted {
    /// Tokens per micro-batch, as the packing takes it.
    pub micro_tokens: usize,
    /// Blocks that are computed again.
    pub recompute: usize,
    /// What it takes.
    pub memory: MemoryPlan,
}

/// Nothing fits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shortfall {
    /// The most frugal plan.
    pub least: Fitted,
    /// What there is.
    pub available: u64,
    /// Settings each of which would make it fit, by itself.
    pub remedies: Vec<Remedy>,
}

/// A setting that would make it fit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remedy {
    /// The key of the job file.
    pub key: String,
    /// The value that would do.
    pub value: String,
    /// What the run would take then.
    pub bytes: u64,
}

/// Chooses what the wish leaves open.
pub fn fit(config: &ModelConfig, wish: &Wish) -> Result<Fitted, Box<Shortfall>> {
    let fits = |fitted: &Fitted| wish.available.is_none_or(|available| fitted.memory.total <= available);
    let plainly = wish.recompute.unwrap_or(0);
    if let Some(fitted) = wish.sizes().into_iter().map(|tokens| of(config, wish, tokens, plainly)).find(fits) {
        return Ok(fitted);
    }
    let most = plainly.max(most_again(config, wish));
    let again = (plainly + 1..=most).map(|again| of(config, wish, smallest(wish), again)).find(fits);
    again.ok_or_else(|| Box::new(shortfall(config, wish)))
}

/// The plan of one choice.
fn of(config: &ModelConfig, wish: &Wish, micro_tokens: usize, recompute: usize) -> Fitted {
    let tokens_per_micro = micro_tokens.min(wish.step_tokens).max(wish.settings.longest_segment);
    let settings = Settings { tokens_per_micro, supervised_rows: tokens_per_micro, recompute, ..wish.settings.clone() };
    Fitted { micro_tokens, recompute, memory: plan(config, &settings) }
}

fn smallest(wish: &Wish) -> usize {
    wish.micro_tokens.unwrap_or(MICRO_TOKENS[MICRO_TOKENS.len() - 1])
}

/// How many blocks may be computed again: all that keep anything, unless that is settled.
fn most_again(config: &ModelConfig, wish: &Wish) -> usize {
    wish.recompute.unwrap_or_else(|| config.num_hidden_layers.saturating_sub(wish.settings.lowest()))
}

fn shortfall(config: &ModelConfig, wish: &Wish) -> Shortfall {
    let least = |wish: &Wish| of(config, wish, smallest(wish), most_again(config, wish));
    let available = wish.available.unwrap_or(u64::MAX);
    let first = |key: &str, changes: Vec<(String, Wish)>| {
        let tried = changes.into_iter().map(|(value, changed)| (value, least(&changed).memory.total));
        let (value, bytes) = tried.into_iter().find(|(_, bytes)| *bytes <= available)?;
        Some(Remedy { key: key.into(), value, bytes })
    };
    let remedies = [
        first("training.micro_tokens", micro_tokens(wish)),
        first("training.base_dtype", dtypes(wish)),
        first("training.max_seq_length", lengths(wish)),
        first("lora.rank", ranks(wish)),
    ];
    Shortfall { least: least(wish), available, remedies: remedies.into_iter().flatten().collect() }
}

/// Micro-batches smaller than the one asked for.
fn micro_tokens(wish: &Wish) -> Vec<(String, Wish)> {
    let asked = wish.micro_tokens.unwrap_or(0);
    let smaller = MICRO_TOKENS.into_iter().filter(|tokens| *tokens < asked);
    smaller.map(|tokens| (tokens.to_string(), Wish { micro_tokens: Some(tokens), ..wish.clone() })).collect()
}

/// Narrower weights, of a model that is not trained itself.
fn dtypes(wish: &Wish) -> Vec<(String, Wish)> {
    if wish.settings.whole() {
        return Vec::new();
    }
    let narrower = BaseDtype::ALL.into_iter().skip_while(|dtype| *dtype != wish.settings.base_dtype).skip(1);
    let with = |base_dtype: BaseDtype| Settings { base_dtype, ..wish.settings.clone() };
    narrower.map(|dtype| (dtype.name().into(), Wish { settings: with(dtype), ..wish.clone() })).collect()
}

/// Shorter examples, down to the shortest limit that is taken.
fn lengths(wish: &Wish) -> Vec<(String, Wish)> {
    let with = |longest_segment: usize| Settings { longest_segment, ..wish.settings.clone() };
    let shorter = halves(wish.settings.longest_segment.next_power_of_two(), 64);
    let shorter = shorter.filter(|length| *length < wish.settings.longest_segment);
    shorter.map(|length| (length.to_string(), Wish { settings: with(length), ..wish.clone() })).collect()
}

/// Lower ranks, of one adapter; everything but row lengths shrinks with them.
fn ranks(wish: &Wish) -> Vec<(String, Wish)> {
    let [adapter] = wish.settings.adapters[..] else { return Vec::new() };
    let with = |rank: usize| {
        let share = |number: u64| (number as u128 * rank as u128).div_ceil(adapter.rank as u128) as u64;
        let products = share((adapter.products - adapter.lengths) as u64) as usize + adapter.lengths;
        let (parameters, constants) = (share(adapter.parameters), share(adapter.constants));
        let head_rank = share(adapter.head_rank as u64) as usize;
        let adapters = vec![AdapterShape { parameters, constants, products, rank, head_rank, ..adapter }];
        Wish { settings: Settings { adapters, ..wish.settings.clone() }, ..wish.clone() }
    };
    halves(adapter.rank, 1).skip(1).map(|rank| (rank.to_string(), with(rank))).collect()
}

/// The number, its half, and so on while they are no less than `least`.
fn halves(number: usize, least: usize) -> impl Iterator<Item = usize> {
    std::iter::successors(Some(number), |number| Some(number / 2)).take_while(move |number| *number >= least)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Module, Processor};

    const GIB: u64 = 1 << 30;

    #[test]
    fn a_micro_batch_shrinks_before_a_block_is_computed_again() {
        let config = config();
        let roomy = fit(&config, &wish(None)).expect("there is no limit");
        assert_eq!((roomy.micro_tokens, roomy.recompute), (2048, 0));
        let mut seen = Vec::new();
        for available in (0..=roomy.memory.total).rev().step_by(1 << 22) {
            let Ok(fitted) = fit(&config, &wish(Some(available))) else { break };
            assert!(fitted.memory.total <= available, "{fitted:?} within {available}");
            if seen.last() != Some(&(fitted.micro_tokens, fitted.recompute)) {
                seen.push((fitted.micro_tokens, fitted.recompute));
            }
        }
        assert_eq!(seen[..4], [(2048, 0), (1024, 0), (512, 0), (256, 0)]);
        let again: Vec<usize> = seen[4..].iter().map(|(_, again)| *again).collect();
        assert!(again.is_sorted() && again.last() == Some(&config.num_hidden_layers), "{again:?}");
    }

    #[test]
    fn a_run_that_has_a_gpu_for_itself_uses_what_is_free_there() {
        let on_gpu = |available, alone| {
            let wish = wish(available);
            let settings = Settings { processor: Processor::Cuda, base_dtype: BaseDtype::Bf16, ..wish.settings };
            let wish = Wish { settings, step_tokens: 1 << 20, alone, ..wish };
            fit(&config(), &wish).expect("it fits").micro_tokens
        };
        assert_eq!([on_gpu(Some(80 * GIB), true), on_gpu(Some(4 * GIB), true)], [65_536, 4096]);
        assert_eq!(on_gpu(Some(80 * GIB), false), 2048, "another run has planned with the rest");
        assert_eq!(on_gpu(None, true), 2048, "a device is looked for by the least that is fast");
    }

    #[test]
    fn what_cannot_fit_says_how_much_is_missing_and_what_would_do() {
        let bf16 = |wish: Wish| Wish { settings: Settings { base_dtype: BaseDtype::Bf16, ..wish.settings }, ..wish };
        let least = of(&config(), &bf16(wish(None)), 256, 30).memory.total;
        for (available, value) in [(least, "bf16"), (least - 1, "int8")] {
            let shortfall = fit(&config(), &wish(Some(available))).expect_err("the weights alone are half a GiB");
            assert_eq!((shortfall.least.micro_tokens, shortfall.least.recompute), (256, 30));
            assert!(shortfall.least.memory.total > available && shortfall.available == available);
            let [remedy] = &shortfall.remedies[..] else { panic!("{:?}", shortfall.remedies) };
            assert_eq!((remedy.key.as_str(), remedy.value.as_str()), ("training.base_dtype", value));
            assert!(remedy.bytes <= available && (value != "bf16" || remedy.bytes == least), "{remedy:?}");
        }
    }

    #[test]
    fn what_was_settled_is_not_chosen_again() {
        let settled = Wish { micro_tokens: Some(700), recompute: Some(3), ..wish(Some(2 * GIB)) };
        let fitted = fit(&config(), &settled).expect("it fits");
        assert_eq!((fitted.micro_tokens, fitted.recompute), (700, 3));
        let none = fit(&config(), &Wish { available: Some(GIB), ..settled }).expect_err("it does not");
        assert_eq!((none.least.micro_tokens, none.least.recompute), (700, 3));
        assert_eq!(none.remedies[0].key, "training.micro_tokens");
    }

    #[test]
    fn a_micro_batch_is_no_smaller_than_an_example_and_no_larger_than_a_step() {
        let config = config();
        let of = |step_tokens| fit(&config, &Wish { step_tokens, ..wish(None) }).expect("no limit").memory.activations;
        assert_eq!(of(600), of(512).max(600 * of(512) / 512));
        assert_eq!(of(1), of(256), "the longest example");
    }

    fn wish(available: Option<u64>) -> Wish {
        let settings = Settings {
            adapters: vec![AdapterShape::uniform(&config(), 16, &Module::of(&config()))],
            base_dtype: BaseDtype::F32,
            processor: Processor::Cpu,
            tokens_per_micro: 0,
            longest_segment: 256,
            supervised_rows: 0,
            recompute: 0,
        };
        Wish { settings, step_tokens: 8192, micro_tokens: None, recompute: None, available, alone: true }
    }

    fn config() -> ModelConfig {
        let text = r#"{"architectures": ["LlamaForCausalLM"], "hidden_size": 576, "intermediate_size": 1536,
            "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152,
            "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 100000, "tie_word_embeddings": true}"#;
        ModelConfig::parse(text).expect("a supported model")
    }
}
