//! Which settings can never work, each by its own key and with the value found.

use std::fmt::Display;

use super::{BaseDtype, Config, Device, Every, Length, Method, MicroTokens, Settings};
use crate::TrainError;
use crate::lora::Init;
use crate::model::gpu;
use crate::schedule::Curve;

impl Config {
    /// Refuses what can never work, by the first key that does not. Ranges that are a matter of taste stand where job files
    /// are read.
    pub fn check(&self) -> Result<(), TrainError> {
        if self.device != Device::Cpu {
            // before what a CPU would want of the other settings
            gpu::takes_settings(&self.settings)?;
        }
        self.settings.check()?;
        let is_full = self.settings.method == Method::Full;
        let own = if self.device == Device::Cpu { BaseDtype::F32 } else { BaseDtype::Bf16 };
        if is_full && self.settings.base_dtype != own {
            let reason = format!("full trains the base's weights, which takes {}", own.name());
            return refused("training.base_dtype", &reason);
        }
        if is_full && self.init_adapter.is_some() {
            let reason = "full trains the model itself: there is no adapter that init_adapter could begin";
            return refused("training.method", reason);
        }
        if self.settings.lora.init == Init::Pissa && self.init_adapter.is_some() {
            let reason = "pissa begins with the base's weights, init_adapter with its files: not both";
            return refused("lora.init", reason);
        }
        expect(self.micro_tokens != MicroTokens::Tokens(0), "training.micro_tokens", 0, "at least 1")?;
        expect(self.threads != Some(0), "threads", 0, "at least 1")
    }
}

impl Settings {
    fn check(&self) -> Result<(), TrainError> {
        const SHARE: &str = "a share of the whole, from 0 to 1";
        const FINITE: &str = "a finite number, not below 0";
        const ABOVE: &str = "a finite number above 0";
        const DECAY: &str = "a number from 0 to below 1";
        let is_share = |x: f64| (0.0..=1.0).contains(&x);
        let is_part = |x: f64| (0.0..1.0).contains(&x);
        let is_finite = |x: f64| x.is_finite() && x >= 0.0;
        let is_above = |x: f64| x.is_finite() && x > 0.0;
        let lora = &self.lora;

        expect(self.batch_size > 0, "training.batch_size", self.batch_size, "at least 1")?;
        expect(
            self.max_seq_length > 1,
            "training.max_seq_length",
            self.max_seq_length,
            "at least 2: nothing else could be predicted",
        )?;
        expect(self.length != Length::Epochs(0), "training.epochs", 0, "at least 1")?;
        expect(self.length != Length::Steps(0), "training.max_steps", 0, "at least 1")?;
        for (key, every) in
            [("training.eval_every", self.eval_every), ("training.checkpoint_every", self.checkpoint_every)]
        {
            expect(every != Every::Steps(0), key, 0, "\"epoch\" or at least 1")?;
        }
        expect(self.early_stopping != Some(0), "training.early_stopping", 0, "at least 1 evaluation")?;
        expect(is_finite(self.learning_rate), "training.learning_rate", self.learning_rate, FINITE)?;
        expect(is_share(self.warmup_ratio), "training.warmup_ratio", self.warmup_ratio, SHARE)?;
        if let Curve::Wsd { decay_ratio } = self.schedule {
            expect(is_share(decay_ratio), "training.schedule", decay_ratio, SHARE)?;
        }
        expect(is_part(self.adam_beta1), "training.adam_beta1", self.adam_beta1, DECAY)?;
        expect(is_part(self.adam_beta2), "training.adam_beta2", self.adam_beta2, DECAY)?;
        expect(is_above(self.adam_epsilon), "training.adam_epsilon", self.adam_epsilon, ABOVE)?;
        expect(is_finite(self.weight_decay), "training.weight_decay", self.weight_decay, FINITE)?;
        expect(is_finite(self.max_grad_norm), "training.max_grad_norm", self.max_grad_norm, FINITE)?;
        expect(is_part(self.validation_fraction), "training.validation_fraction", self.validation_fraction, DECAY)?;

        let mut ranks = lora.rank_pattern.values();
        expect(lora.rank > 0, "lora.rank", lora.rank, "at least 1")?;
        expect(ranks.all(|rank| *rank > 0), "lora.rank_pattern", 0, "at least 1")?;
        expect(is_above(lora.alpha), "lora.alpha", lora.alpha, ABOVE)?;
        for alpha in lora.alpha_pattern.values() {
            expect(is_above(*alpha), "lora.alpha_pattern", alpha, ABOVE)?;
        }
        expect(is_part(lora.dropout), "lora.dropout", lora.dropout, DECAY)?;
        if let Some(ratio) = self.plus_ratio {
            expect(is_above(ratio), "lora.plus_ratio", ratio, ABOVE)?;
        }
        if lora.init == Init::Pissa && lora.dora {
            let reason = "pissa and dora exclude each other: DoRA measures the weight that PiSSA takes apart";
            return refused("lora.init", reason);
        }
        Ok(())
    }
}

fn expect(holds: bool, key: &'static str, found: impl Display, expected: &str) -> Result<(), TrainError> {
    if holds { Ok(()) } else { refused(key, &format!("{found}, expected {expected}")) }
}

fn refused(key: &'static str, reason: &str) -> Result<(), TrainError> {
    Err(TrainError::Config { key, reason: reason.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_that_cannot_work_is_named_with_its_value() {
        Config::new("base", "file", "out").check().expect("the preset is sound");
        type Change = fn(&mut Settings);
        let changes: [(Change, &str); 12] = [
            (|s| s.lora.dropout = 1.0, "setting lora.dropout: 1, expected a number from 0 to below 1"),
            (
                |s| s.warmup_ratio = 1.5,
                "setting training.warmup_ratio: 1.5, expected a share of the whole, from 0 to 1",
            ),
            (|s| s.validation_fraction = -0.5, "setting training.validation_fraction: -0.5, expected"),
            (|s| s.length = Length::Steps(0), "setting training.max_steps: 0, expected at least 1"),
            (|s| s.checkpoint_every = Every::Steps(0), "setting training.checkpoint_every: 0, expected"),
            (|s| s.adam_beta1 = 1.0, "setting training.adam_beta1: 1, expected"),
            (|s| s.adam_beta2 = f64::NAN, "setting training.adam_beta2: NaN, expected"),
            (|s| s.adam_epsilon = 0.0, "setting training.adam_epsilon: 0, expected a finite number above 0"),
            (|s| s.weight_decay = -0.1, "setting training.weight_decay: -0.1, expected"),
            (|s| s.max_grad_norm = f64::INFINITY, "setting training.max_grad_norm: inf, expected"),
            (|s| s.lora.alpha = 0.0, "setting lora.alpha: 0, expected a finite number above 0"),
            (
                |s| _ = s.lora.alpha_pattern.insert("q_proj".into(), f64::NAN),
                "setting lora.alpha_pattern: NaN, expected",
            ),
        ];
        for (change, words) in changes {
            let mut config = Config::new("base", "file", "out");
            change(&mut config.settings);
            let error = config.check().expect_err(words);
            assert!(error.to_string().starts_with(words), "{error}");
        }
        let config = Config { threads: Some(0), ..Config::new("base", "file", "out") };
        let error = config.check().expect_err("nobody to do it");
        assert_eq!(error.to_string(), "setting threads: 0, expected at least 1");
    }
}
