//! The seven linear layers of a decoder block that an adapter may sit on, in the order a forward pass meets them.

use serde::{Deserialize, Serialize};

use crate::ModelConfig;

/// One of a block's projections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Module {
    /// Hidden to queries.
    QProj,
    /// Hidden to keys.
    KProj,
    /// Hidden to values.
    VProj,
    /// Attention output to hidden.
    OProj,
    /// Hidden to the gate of the MLP.
    GateProj,
    /// Hidden to the gated half of the MLP.
    UpProj,
    /// MLP to hidden.
    DownProj,
}

impl Module {
    /// Every module, in forward order.
    pub const ALL: [Module; 7] = [
        Module::QProj,
        Module::KProj,
        Module::VProj,
        Module::OProj,
        Module::GateProj,
        Module::UpProj,
        Module::DownProj,
    ];

    /// The name Hugging Face gives it.
    pub const fn name(self) -> &'static str {
        match self {
            Module::QProj => "q_proj",
            Module::KProj => "k_proj",
            Module::VProj => "v_proj",
            Module::OProj => "o_proj",
            Module::GateProj => "gate_proj",
            Module::UpProj => "up_proj",
            Module::DownProj => "down_proj",
        }
    }

    /// The part of the block it belongs to.
    pub const fn parent(self) -> &'static str {
        match self {
            Module::QProj | Module::KProj | Module::VProj | Module::OProj => "self_attn",
            Module::GateProj | Module::UpProj | Module::DownProj => "mlp",
        }
    }

    /// Its module path, as PEFT's `target_modules` sees it.
    pub fn path(self, layer: usize) -> String {
        format!("model.layers.{layer}.{}.{}", self.parent(), self.name())
    }

    /// Columns of its weight.
    pub const fn in_features(self, config: &ModelConfig) -> usize {
        match self {
            Module::QProj | Module::KProj | Module::VProj | Module::GateProj | Module::UpProj => config.hidden_size,
            Module::OProj => config.query_size(),
            Module::DownProj => config.intermediate_size,
        }
    }

    /// Rows of its weight.
    pub const fn out_features(self, config: &ModelConfig) -> usize {
        match self {
            Module::QProj => config.query_size(),
            Module::KProj | Module::VProj => config.key_value_size(),
            Module::OProj | Module::DownProj => config.hidden_size,
            Module::GateProj | Module::UpProj => config.intermediate_size,
        }
    }

    /// The module of that name.
    pub fn from_name(name: &str) -> Option<Module> {
        Module::ALL.into_iter().find(|module| module.name() == name)
    }
}
