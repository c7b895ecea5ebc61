//! What to train and how: every setting, and every number that follows from settings and data, computed here and once.

mod check;

use std::path::PathBuf;
use std::time::Duration;

use lorikeet_dataset::{Filters, OnFault, PrepareConfig, Supervise};
use lorikeet_plan::ModelConfig;
use serde::{Deserialize, Serialize};

pub use lorikeet_plan::BaseDtype;

use crate::TrainError;
use crate::lora::LoraConfig;
use crate::model::gpu;
use crate::optim::AdamWSettings;
use crate::schedule::{Curve, Schedule, ratio_of};

/// One training run.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// The base model's directory.
    pub base: PathBuf,
    /// What the adapter calls its base.
    pub base_name: String,
    /// An adapter to start from instead of a fresh one.
    pub init_adapter: Option<PathBuf>,
    /// Where `checkpoints/` and `adapter/` are written.
    pub out: PathBuf,
    /// Whether the run fails where there are checkpoints and none is whole, instead of beginning at the first step.
    pub must_go_on: bool,
    /// What to train on.
    pub data: DataConfig,
    /// Everything that decides the numbers.
    pub settings: Settings,
    /// What is told on the way.
    pub telling: Telling,
    /// A checkpoint is made at the latest after this long.
    pub save_interval: Duration,
    /// Tokens per forward pass.
    pub micro_tokens: MicroTokens,
    /// Where its passes are computed.
    pub device: Device,
    /// Whether others compute there as well: then a run takes no more of its memory than it was planned with.
    pub shares_device: bool,
    /// CPU threads; `None`: all cores. Changes speed and no bit.
    pub threads: Option<usize>,
    /// Main memory that this process may hold, where somebody watches it; micro-batches are chosen, and halved, to fit.
    pub memory_limit: Option<u64>,
}

/// Where passes are computed. Weights, moments and checkpoints are the same on all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Device {
    /// The processor.
    #[default]
    Cpu,
    /// A GPU, by its place among those that this process sees.
    Gpu(usize),
}

impl Device {
    /// Whether it trains that: a CPU does. What a GPU does not is named by its setting.
    pub fn takes(self, shape: &ModelConfig, settings: &Settings) -> Result<(), TrainError> {
        match self {
            Device::Cpu => Ok(()),
            Device::Gpu(_) => {
                gpu::takes_settings(settings)?;
                gpu::takes_model(shape)
            }
        }
    }
}

/// The data's files.
#[derive(Debug, Clone, PartialEq)]
pub struct DataConfig {
    /// The training file.
    pub file: PathBuf,
    /// A file to validate on, instead of a part of the first.
    pub validation_file: Option<PathBuf>,
    /// Which records are used.
    pub filters: Filters,
    /// What happens to faulty ones.
    pub on_fault: OnFault,
    /// Where token caches are kept.
    pub cache: PathBuf,
}

/// Everything that decides the numbers of a run; stored in its checkpoints.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// What is trained.
    pub method: Method,
    /// The adapter's shape.
    pub lora: LoraConfig,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// What follows the warm-up.
    pub schedule: Curve,
    /// Share of the steps over which the rate rises.
    pub warmup_ratio: f64,
    /// When it is done.
    pub length: Length,
    /// Examples per optimizer step.
    pub batch_size: u64,
    /// The longest example, in tokens.
    pub max_seq_length: usize,
    /// Which tokens are targets.
    pub supervise: Supervise,
    /// AdamW's first decay.
    pub adam_beta1: f64,
    /// AdamW's second decay.
    pub adam_beta2: f64,
    /// AdamW's epsilon.
    pub adam_epsilon: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Gradients are scaled down to this norm; 0: never.
    pub max_grad_norm: f64,
    /// Whether each epoch has an order of its own; else it is the file's.
    pub shuffle: bool,
    /// Of order, split, dropout and initial weights.
    pub seed: u64,
    /// Share of the conversations held out.
    pub validation_fraction: f64,
    /// When the held-out split is evaluated, besides before the first step and after the last.
    pub eval_every: Every,
    /// When the state is saved, besides each epoch's end.
    pub checkpoint_every: Every,
    /// LoRA+: how many times A's learning rate B has.
    pub plus_ratio: Option<f64>,
    /// Ends the run after so many evaluations in a row without a better one; what comes out is the best state.
    #[serde(default)]
    pub early_stopping: Option<u32>,
    /// How the frozen weights are held and products with them are taken: other bits, the same mathematics.
    #[serde(default = "as_before")]
    pub base_dtype: BaseDtype,
}

/// What is told on the way and changes no number.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Telling {
    /// Messages that the model answers at every evaluation.
    pub sample_prompts: Vec<String>,
    /// The gradient's norm by module, at every step.
    pub grad_norms: bool,
}

/// What is trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// An adapter.
    Lora,
    /// Every weight of the model; settings of the adapter mean nothing.
    Full,
}

/// Tokens per forward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MicroTokens {
    /// Chosen from the memory plan.
    Auto,
    /// At most this many, or one example.
    Tokens(usize),
}

/// When training is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Length {
    /// After this many passes over the examples.
    Epochs(u32),
    /// After this many optimizer steps.
    Steps(u64),
}

/// When something recurs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Every {
    /// At each epoch's end.
    Epoch,
    /// Every so many optimizer steps.
    Steps(u64),
}

impl Config {
    /// The preset `balanced` on a base and a file; everything lies under `out`.
    pub fn new(base: impl Into<PathBuf>, file: impl Into<PathBuf>, out: impl Into<PathBuf>) -> Config {
        let (base, out) = (base.into(), out.into());
        Config {
            base_name: base.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned()),
            base,
            init_adapter: None,
            data: DataConfig {
                file: file.into(),
                validation_file: None,
                filters: Filters::default(),
                on_fault: OnFault::default(),
                cache: out.join("cache"),
            },
            out,
            must_go_on: false,
            settings: Settings::default(),
            telling: Telling::default(),
            save_interval: Duration::from_secs(30 * 60),
            micro_tokens: MicroTokens::Auto,
            device: Device::Cpu,
            shares_device: false,
            threads: None,
            memory_limit: None,
        }
    }

    pub(crate) fn prepare(&self) -> PrepareConfig {
        PrepareConfig {
            file: self.data.file.clone(),
            validation_file: self.data.validation_file.clone(),
            validation_fraction: self.settings.validation_fraction,
            max_seq_length: self.settings.max_seq_length,
            supervise: self.settings.supervise,
            seed: self.settings.seed,
            filters: self.data.filters.clone(),
            on_fault: self.data.on_fault,
            cache_dir: self.data.cache.clone(),
        }
    }
}

/// What every run was before there was a choice.
fn as_before() -> BaseDtype {
    BaseDtype::F32
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            method: Method::Lora,
            lora: LoraConfig::plain(16, 32.0, 0.1),
            learning_rate: 2e-4,
            schedule: Curve::Cosine,
            warmup_ratio: 0.1,
            length: Length::Epochs(5),
            batch_size: 8,
            max_seq_length: 2048,
            supervise: Supervise::Assistant,
            adam_beta1: 0.9,
            adam_beta2: 0.999,
            adam_epsilon: 1e-8,
            weight_decay: 0.0,
            max_grad_norm: 1.0,
            shuffle: true,
            seed: 42,
            validation_fraction: 0.1,
            eval_every: Every::Epoch,
            checkpoint_every: Every::Steps(100),
            plus_ratio: None,
            early_stopping: None,
            base_dtype: BaseDtype::F32,
        }
    }
}

impl Settings {
    pub(crate) fn adamw(&self) -> AdamWSettings {
        AdamWSettings {
            beta1: self.adam_beta1,
            beta2: self.adam_beta2,
            epsilon: self.adam_epsilon,
            weight_decay: self.weight_decay,
        }
    }

    pub(crate) fn clip(&self) -> Option<f64> {
        (self.max_grad_norm > 0.0).then_some(self.max_grad_norm)
    }
}

/// The numbers that follow from the settings and the count of examples.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Numbers {
    /// Training examples.
    pub examples: u64,
    /// Examples per step.
    pub batch_size: u64,
    /// Steps of one epoch; the last may have fewer examples.
    pub steps_per_epoch: u64,
    /// Steps in all.
    pub total_steps: u64,
    /// Of them with a rising rate.
    pub warmup_steps: u64,
    eval_every: Every,
    checkpoint_every: Every,
}

impl Numbers {
    /// Computes them.
    pub fn new(settings: &Settings, examples: u64) -> Numbers {
        let steps_per_epoch = examples.div_ceil(settings.batch_size);
        let total_steps = match settings.length {
            Length::Epochs(epochs) => steps_per_epoch * u64::from(epochs),
            Length::Steps(steps) => steps,
        };
        Numbers {
            examples,
            batch_size: settings.batch_size,
            steps_per_epoch,
            total_steps,
            warmup_steps: ratio_of(total_steps, settings.warmup_ratio),
            eval_every: settings.eval_every,
            checkpoint_every: settings.checkpoint_every,
        }
    }

    /// The rate of every step.
    pub fn schedule(&self, settings: &Settings) -> Schedule {
        let (warmup, total) = (self.warmup_steps, self.total_steps);
        Schedule { peak: settings.learning_rate, curve: settings.schedule, warmup, total }
    }

    /// Whether the held-out split is evaluated after `step`; 0 is before the first.
    pub fn evaluates_after(&self, step: u64) -> bool {
        step == self.total_steps || self.recurs(self.eval_every, step)
    }

    /// Whether the state is saved after `step`.
    pub fn saves_after(&self, step: u64) -> bool {
        let due = self.recurs(self.checkpoint_every, step) || self.recurs(Every::Epoch, step);
        step > 0 && (step == self.total_steps || due)
    }

    fn recurs(&self, every: Every, step: u64) -> bool {
        match every {
            Every::Epoch => step.is_multiple_of(self.steps_per_epoch),
            Every::Steps(steps) => step.is_multiple_of(steps),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_rounded_up_per_epoch_and_the_warm_up_over_all() {
        let settings = Settings { batch_size: 4, length: Length::Epochs(3), ..Settings::default() };
        let numbers = Numbers::new(&settings, 41);
        assert_eq!((numbers.steps_per_epoch, numbers.total_steps, numbers.warmup_steps), (11, 33, 4));
        let settings = Settings { length: Length::Steps(5), ..settings };
        assert_eq!(Numbers::new(&settings, 41).total_steps, 5);
    }

    #[test]
    fn evaluation_comes_first_and_last_and_saving_never_before_a_step() {
        let settings =
            Settings { batch_size: 1, length: Length::Epochs(2), eval_every: Every::Steps(4), ..Settings::default() };
        let numbers = Numbers::new(&Settings { checkpoint_every: Every::Steps(3), ..settings }, 5);
        let steps = |due: &dyn Fn(u64) -> bool| (0..=numbers.total_steps).filter(|step| due(*step)).collect::<Vec<_>>();
        assert_eq!(steps(&|step| numbers.evaluates_after(step)), [0, 4, 8, 10]);
        assert_eq!(steps(&|step| numbers.saves_after(step)), [3, 5, 6, 9, 10]);
    }
}
