//! The linear layers of a decoder block that an adapter may sit on. A block has either the seven single ones or, where the
//! files hold them fused, four.

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
    /// Hidden to queries, keys and values in one.
    QkvProj,
    /// Hidden to gate and gated half in one.
    GateUpProj,
}

impl Module {
    /// Every module there is, whatever the model.
    pub const ALL: [Module; 9] = [
        Module::QProj,
        Module::KProj,
        Module::VProj,
        Module::OProj,
        Module::GateProj,
        Module::UpProj,
        Module::DownProj,
        Module::QkvProj,
        Module::GateUpProj,
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
            Module::QkvProj => "qkv_proj",
            Module::GateUpProj => "gate_up_proj",
        }
    }

    /// The part of the block it belongs to.
    pub const fn parent(self) -> &'static str {
        match self {
            Module::QProj | Module::KProj | Module::VProj | Module::OProj | Module::QkvProj => "self_attn",
            Module::GateProj | Module::UpProj | Module::DownProj | Module::GateUpProj => "mlp",
        }
    }

    /// Its module path, as PEFT's `target_modules` sees it.
    pub fn path(self, layer: usize) -> String {
        format!("model.layers.{layer}.{}.{}", self.parent(), self.name())
    }

    /// Columns of its weight.
    pub const fn in_features(self, config: &ModelConfig) -> usize {
        match self {
            Module::QProj
            | Module::KProj
            | Module::VProj
            | Module::QkvProj
            | Module::GateProj
            | Module::UpProj
            | Module::GateUpProj => config.hidden_size,
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
            Module::QkvProj => config.query_size() + 2 * config.key_value_size(),
            Module::GateUpProj => 2 * config.intermediate_size,
        }
    }

    /// Whether it adds a bias.
    pub const fn has_bias(self, config: &ModelConfig) -> bool {
        match self {
            Module::QProj | Module::KProj | Module::VProj | Module::QkvProj => config.biases.qkv,
            Module::OProj => config.biases.out,
            Module::GateProj | Module::UpProj | Module::GateUpProj | Module::DownProj => config.biases.mlp,
        }
    }

    /// The modules that make queries, keys and values, one below the other.
    pub const fn of_qkv(config: &ModelConfig) -> &'static [Module] {
        if config.fused { &[Module::QkvProj] } else { &[Module::QProj, Module::KProj, Module::VProj] }
    }

    /// The modules that make gate and gated half, one below the other.
    pub const fn of_gate_up(config: &ModelConfig) -> &'static [Module] {
        if config.fused { &[Module::GateUpProj] } else { &[Module::GateProj, Module::UpProj] }
    }

    /// The modules of a block, in forward order.
    pub fn of(config: &ModelConfig) -> Vec<Module> {
        [Module::of_qkv(config), &[Module::OProj], Module::of_gate_up(config), &[Module::DownProj]].concat()
    }

    /// The module of that name.
    pub fn from_name(name: &str) -> Option<Module> {
        Module::ALL.into_iter().find(|module| module.name() == name)
    }
}
