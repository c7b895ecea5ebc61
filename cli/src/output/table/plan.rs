//! What a training takes and what its adapter sits on, as tables.

use super::{count, fields, grid, size, with_below};
use crate::output::View;
use lorikeet_protocol::worker::{Memory, Modules, Plan};
use serde::Serialize;

/// A plan before anything is read.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Planned {
    pub(crate) base_parameters: u64,
    pub(crate) trainable_parameters: u64,
    pub(crate) longest_tokens: u64,
    /// Tokens of one forward pass.
    pub(crate) micro_tokens: u64,
    /// Blocks that are computed twice.
    pub(crate) recompute: u64,
    pub(crate) memory_bytes: u64,
    pub(crate) memory: Memory,
    pub(crate) modules: Vec<Modules>,
}

impl From<&Plan> for Planned {
    fn from(plan: &Plan) -> Self {
        Self {
            base_parameters: plan.base_parameters,
            trainable_parameters: plan.trainable_parameters,
            longest_tokens: plan.longest_tokens,
            micro_tokens: plan.micro_tokens,
            recompute: plan.recompute,
            memory_bytes: plan.memory_bytes,
            memory: plan.memory,
            modules: plan.modules.clone(),
        }
    }
}

impl View for Planned {
    fn table(&self) -> String {
        let memory = with_below(self.settings(), "memory:", Some(self.memory()));
        with_below(memory, "adapted modules:", (!self.modules.is_empty()).then(|| modules(&self.modules)))
    }
}

impl Planned {
    fn settings(&self) -> String {
        let twice = (self.recompute > 0).then(|| format!("{} blocks", count(self.recompute)));
        fields([
            ("base", Some(format!("{} parameters", count(self.base_parameters)))),
            ("trained", Some(format!("{} parameters", count(self.trainable_parameters)))),
            ("longest example", Some(format!("{} tokens", count(self.longest_tokens)))),
            ("micro-batch", Some(format!("{} tokens at most, or one example", count(self.micro_tokens)))),
            ("computed twice", twice),
        ])
    }

    fn memory(&self) -> String {
        let memory = &self.memory;
        let row = |name: &str, bytes: u64, what: &str| [name.to_owned(), size(bytes), what.to_owned()];
        let kept = format!("{} a token and block", size(memory.token_and_layer));
        let less = |bytes: u64, other: u64| if bytes < other { "takes turns with what is larger" } else { "" };
        let rows = [
            row("weights", memory.weights, ""),
            row("adapter, gradients", memory.adapters, ""),
            row("optimizer", memory.optimizer, ""),
            row("activations", memory.activations, &kept),
            row("head", memory.head, less(memory.head, memory.layer)),
            row("one block's backward", memory.layer, less(memory.layer, memory.head + 1)),
            row("the program", memory.program, ""),
            row("total", self.memory_bytes, ""),
        ];
        grid(["what", "bytes", ""], rows)
    }
}

fn modules(modules: &[Modules]) -> String {
    let row = |found: &Modules| {
        [
            found.module.clone(),
            if found.layers.is_empty() { "-".to_owned() } else { found.layers.clone() },
            found.rank.to_string(),
            found.alpha.to_string(),
            format!("{} → {}", count(found.inputs), count(found.outputs)),
            count(found.parameters),
        ]
    };
    grid(["module", "blocks", "rank", "alpha", "shape", "trained"], modules.iter().map(row))
}
