//! The ranges of all keys, said once: read.rs names them when a type is wrong, resolve.rs when a value is out of them.

use super::{FieldError, WordOrNumber};
use std::{fmt, time::Duration};

pub(super) use crate::name::NAME;
pub(super) const METHOD: &str = "lora or full";
pub(super) const SCHEDULE: &str = "cosine, linear, constant or wsd";
pub(super) const SUPERVISE: &str = "assistant, last, completion or all";
pub(super) const BASE_DTYPE: &str = "auto, f32, bf16, int8 or nf4";
pub(super) const BASE_DTYPE_OF_FULL: &str = "auto, f32 or bf16 where training.method is full";
pub(super) const INIT_ADAPTER: &str = "the name or id of a model";
pub(super) const VALIDATION_DATASET: &str = "the name or id of a dataset";
/// Every prompt is answered at every evaluation.
pub(super) const PROMPTS: usize = 8;
pub(super) const PROMPT_CHARS: usize = 2_000;
pub(super) const SAMPLE_PROMPTS: &str = "a list of 1…8 messages of 1…2000 characters";
pub(super) const TARGET_MODULES: &str = "a list of names, a regular expression or \"all-linear\"";
pub(super) const EXCLUDE_MODULES: &str = "a list of names or a regular expression";
pub(super) const LAYERS_TO_TRANSFORM: &str = "a list of layers, counted from 0";
pub(super) const RANK_PATTERN: &str = "a table of ranks by the end of a module's name";
pub(super) const ALPHA_PATTERN: &str = "a table of alphas by the end of a module's name";
pub(super) const INIT: &str = "default or pissa";
/// Every projection of a model of 128 layers, each by its full name.
pub(super) const TARGETS: usize = 1_024;
/// `model.layers.127.self_attn.q_proj` has 33.
pub(super) const TARGET_BYTES: usize = 128;
/// A pattern that lists what is meant is as long as the list would be.
pub(super) const PATTERN_BYTES: usize = 4_096;
pub(super) const GPU: &str = "\"any\", a name, or { min_memory = \"40GiB\", min_compute = \"8.0\" }";
pub(super) const MIN_DRIVER: &str = "a driver's version, like \"580\" or \"580.65.06\"";
pub(super) const PREFER: &str = "{ gpu = …, labels = { … } }, each as in resources";
pub(super) const TIER_NAMES: [&str; 4] = ["seed_dataset", "production", "experimental", "rejected"];
pub(super) const TIERS: &str = "a list of seed_dataset, production, experimental, rejected";
pub(super) const MARKS: &str = "a list of 1…100 names";
pub(super) const AFTER: &str = "a list of at most 64 jobs, like [\"job_…:ok\"]: ok, any or fail";
pub(super) const NOT_BEFORE: &str = "a moment with its zone, like \"2026-12-01T08:00:00Z\", or a day";
pub(super) const ON_LOST: &str = "requeue, wait or fail";

pub(super) const PRIORITY: Whole = Whole("priority", 0, 100);
pub(super) const LEARNING_RATE: Real = Real("training.learning_rate", 1e-6, 1e-2);
pub(super) const BATCH_SIZE: Whole = Whole("training.batch_size", 1, 256);
pub(super) const MICRO_TOKENS: Whole = Whole("training.micro_tokens", 16, 1 << 20);
pub(super) const EPOCHS: Whole = Whole("training.epochs", 1, 100);
pub(super) const MAX_STEPS: Whole = Whole("training.max_steps", 1, 10_000_000);
pub(super) const MAX_SEQ_LENGTH: Whole = Whole("training.max_seq_length", 64, 131_072);
pub(super) const ADAM_BETA1: Real = Real("training.adam_beta1", 0.0, 0.9999);
pub(super) const ADAM_BETA2: Real = Real("training.adam_beta2", 0.0, 0.999_999);
pub(super) const ADAM_EPSILON: Real = Real("training.adam_epsilon", 1e-12, 1e-2);
pub(super) const WARMUP_RATIO: Real = Real("training.warmup_ratio", 0.0, 1.0);
pub(super) const WEIGHT_DECAY: Real = Real("training.weight_decay", 0.0, 1.0);
pub(super) const MAX_GRAD_NORM: Real = Real("training.max_grad_norm", 1e-6, 1e6);
pub(super) const SEED: Whole = Whole("training.seed", 0, i64::MAX);
pub(super) const VALIDATION_FRACTION: Real = Real("training.validation_fraction", 0.0, 0.5);
pub(super) const EVAL_EVERY: Whole = Whole("training.eval_every", 1, 1_000_000);
pub(super) const CHECKPOINT_EVERY: Whole = Whole("training.checkpoint_every", 1, 1_000_000);
pub(super) const EARLY_STOPPING: Whole = Whole("training.early_stopping", 1, 1_000);
pub(super) const QUALITY_MIN: Real = Real("data.quality_min", 1.0, 5.0);
pub(super) const RANK: Whole = Whole("lora.rank", 1, 256);
pub(super) const ALPHA: Real = Real("lora.alpha", 1e-3, 65_536.0);
pub(super) const DROPOUT: Real = Real("lora.dropout", 0.0, 0.5);
pub(super) const PATTERN_RANK: Whole = Whole("lora.rank_pattern", 1, 256);
pub(super) const PATTERN_ALPHA: Real = Real("lora.alpha_pattern", 1e-3, 65_536.0);
pub(super) const PLUS_RATIO: Real = Real("lora.plus_ratio", 1.0, 1_000.0);
pub(super) const GPUS: Whole = Whole("resources.gpus", 1, 8);
pub(super) const MAX_RUNTIME: Span =
    Span("resources.max_runtime", Duration::from_secs(1), Duration::from_secs(72 * 3600));
pub(super) const RETRIES: Whole = Whole("policy.retries", 0, 100);
pub(super) const LOST_AFTER: Span =
    Span("policy.lost_after", Duration::from_millis(100), Duration::from_secs(7 * 86_400));

/// A whole number and its bounds.
pub(super) struct Whole(pub(super) &'static str, i64, i64);

impl Whole {
    pub(super) fn expected(&self) -> String {
        format!("a whole number {}…{}", self.1, self.2)
    }

    pub(super) fn or_word(&self, word: &str) -> String {
        format!("\"{word}\" or {}", self.expected())
    }

    /// In range, as the type it is kept in. Out of it a fault, and something that nobody will see: faults end the job file.
    pub(super) fn check<T: TryFrom<i64> + Default>(&self, value: i64, faults: &mut Vec<FieldError>) -> T {
        let kept = (self.1..=self.2).contains(&value).then(|| T::try_from(value).ok()).flatten();
        kept.unwrap_or_else(|| {
            faults.push(FieldError::new(self.0, value, self.expected()));
            T::default()
        })
    }

    /// The keyword gives `word`, a number in range what `number` makes of it.
    pub(super) fn check_or_word<T>(
        &self,
        value: &WordOrNumber,
        (keyword, word): (&str, T),
        number: impl FnOnce(u32) -> T,
        faults: &mut Vec<FieldError>,
    ) -> T {
        match value {
            WordOrNumber::Number(value) => number(self.check(*value, faults)),
            WordOrNumber::Word(text) => {
                if text != keyword {
                    faults.push(FieldError::new(self.0, quoted(text), self.or_word(keyword)));
                }
                word
            }
        }
    }
}

/// A number and its bounds.
pub(super) struct Real(pub(super) &'static str, f64, f64);

impl Real {
    pub(super) fn expected(&self) -> String {
        format!("a number {}…{}", Plain(self.1), Plain(self.2))
    }

    pub(super) fn check(&self, value: f64, faults: &mut Vec<FieldError>) -> f64 {
        if !(self.1..=self.2).contains(&value) {
            faults.push(FieldError::new(self.0, Plain(value), self.expected()));
        }
        value
    }
}

/// A length of time and its bounds.
pub(super) struct Span(pub(super) &'static str, Duration, Duration);

impl Span {
    pub(super) fn expected(&self) -> String {
        let [least, most] = [self.1, self.2].map(humantime::format_duration);
        format!("a time {least}…{most}, like \"90m\" or \"24h\"")
    }

    pub(super) fn check(&self, text: &str, faults: &mut Vec<FieldError>) -> Duration {
        let parsed = humantime::parse_duration(text).ok().filter(|span| (self.1..=self.2).contains(span));
        parsed.unwrap_or_else(|| {
            faults.push(FieldError::new(self.0, quoted(text), self.expected()));
            Duration::ZERO
        })
    }
}

/// Small and large numbers as people write them: 1e-6, 0.01, 5.
struct Plain(f64);

impl fmt::Display for Plain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let size = self.0.abs();
        if size != 0.0 && !(1e-3..1e6).contains(&size) { write!(f, "{:e}", self.0) } else { write!(f, "{}", self.0) }
    }
}

/// A text as it would stand in the file.
pub(super) fn quoted(text: &str) -> String {
    format!("{text:?}")
}
