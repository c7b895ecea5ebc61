//! Presets: named fillings of `[training]` and `[lora]`. Three come with the program; a coordinator's config may bring its own.

use super::{FieldError, LoraKeys, TrainingKeys, locate, read};
use std::collections::BTreeMap;

/// The preset of a job that names none.
pub(super) const DEFAULT: &str = "balanced";

/// Presets by name.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Presets {
    by_name: BTreeMap<String, (TrainingKeys, LoraKeys)>,
}

impl Presets {
    /// Those that come with the program: the files of `configs/presets`.
    pub fn embedded() -> Self {
        let files = [
            ("conservative", include_str!("../../../../configs/presets/conservative.toml")),
            ("balanced", include_str!("../../../../configs/presets/balanced.toml")),
            ("aggressive", include_str!("../../../../configs/presets/aggressive.toml")),
        ];
        let mut presets = Self::default();
        for (name, text) in files {
            presets.add(name, text).expect("the presets of this program are read by its tests");
        }
        presets
    }

    /// Adds one, or takes the place of one: TOML with `[training]` and `[lora]`.
    pub fn add(&mut self, name: &str, text: &str) -> Result<(), Vec<FieldError>> {
        let tree = read::toml(text).map_err(|fault| vec![fault])?;
        let keys = read::preset(&tree).map_err(|faults| locate(faults, text))?;
        self.by_name.insert(name.to_owned(), keys);
        Ok(())
    }

    /// What a job may name.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.by_name.keys().map(String::as_str)
    }

    /// What a preset fills in.
    pub(super) fn get(&self, name: &str) -> Option<&(TrainingKeys, LoraKeys)> {
        self.by_name.get(name)
    }
}
