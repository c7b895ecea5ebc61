//! What llama.cpp calls a family and its tensors, and how it turns rows.
//!
//! Its `llama` turns neighbouring columns of a head where Hugging Face turns column i with column i + d/2, so the rows of
//! `q_proj` and `k_proj` change places: row `h·d + j·d/2 + i` becomes row `h·d + 2i + j`. The other families turn halves there too.

use lorikeet_plan::{Family, ModelConfig, Module};

/// The family's name there.
pub(super) const fn architecture(family: Family) -> &'static str {
    match family {
        Family::Llama | Family::Mistral => "llama",
        Family::Qwen2 => "qwen2",
        Family::Qwen3 => "qwen3",
        Family::Gemma2 => "gemma2",
        Family::Gemma3 => "gemma3",
        Family::Phi3 => "phi3",
    }
}

/// A projection's name there, without its block.
pub(super) const fn module(module: Module) -> &'static str {
    match module {
        Module::QProj => "attn_q",
        Module::KProj => "attn_k",
        Module::VProj => "attn_v",
        Module::OProj => "attn_output",
        Module::GateProj => "ffn_gate",
        Module::UpProj | Module::GateUpProj => "ffn_up",
        Module::DownProj => "ffn_down",
        Module::QkvProj => "attn_qkv",
    }
}

/// A tensor of a Llama-like model.
pub(super) fn tensor(name: &str) -> String {
    match name {
        "model.embed_tokens.weight" => return "token_embd.weight".into(),
        "model.norm.weight" => return "output_norm.weight".into(),
        "lm_head.weight" => return "output.weight".into(),
        _ => {}
    }
    let parts: Vec<&str> = name.split('.').collect();
    let [_, _, layer, middle @ .., kind] = parts.as_slice() else {
        unreachable!("a tensor of a block names its layer, its module and what it is of it");
    };
    let known = match middle.last().copied().unwrap_or_default() {
        "input_layernorm" => "attn_norm",
        "post_attention_layernorm" => "ffn_norm",
        "q_norm" => "attn_q_norm",
        "k_norm" => "attn_k_norm",
        other => module(Module::from_name(other).expect("a block holds norms and projections")),
    };
    format!("blk.{layer}.{known}.{kind}")
}

/// How many heads' rows change places in a tensor of this model.
pub(super) fn turned_heads(config: &ModelConfig, module: Module) -> Option<usize> {
    let heads = [(Module::QProj, config.num_attention_heads), (Module::KProj, config.num_key_value_heads)];
    let interleaved = matches!(config.family, Family::Llama | Family::Mistral);
    heads.into_iter().find(|(turned, _)| interleaved && *turned == module).map(|(_, heads)| heads)
}

/// Puts rows where llama.cpp wants them; `numbers` are rows, all of one length.
pub(super) fn turn_rows(numbers: &[f32], rows: usize, heads: usize) -> Vec<f32> {
    let (width, half) = (numbers.len() / rows, rows / heads / 2);
    let row = |at: usize| {
        let (head, within) = (at / (2 * half), at % (2 * half));
        let from = head * 2 * half + within % 2 * half + within / 2;
        numbers[from * width..(from + 1) * width].iter().copied()
    };
    (0..rows).flat_map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_of_a_head_become_neighbours() {
        let rows: Vec<f32> = (0..8).flat_map(|row| [row as f32, -(row as f32)]).collect();
        let turned: Vec<f32> = turn_rows(&rows, 8, 2).chunks(2).map(|row| row[0]).collect();
        assert_eq!(turned, [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]);
    }

    #[test]
    fn tensors_have_the_names_llama_cpp_knows() {
        for (ours, theirs) in [
            ("model.embed_tokens.weight", "token_embd.weight"),
            ("model.layers.3.self_attn.q_proj.bias", "blk.3.attn_q.bias"),
            ("model.layers.0.self_attn.k_norm.weight", "blk.0.attn_k_norm.weight"),
            ("model.layers.11.mlp.down_proj.weight", "blk.11.ffn_down.weight"),
            ("model.layers.1.post_attention_layernorm.weight", "blk.1.ffn_norm.weight"),
            ("lm_head.weight", "output.weight"),
        ] {
            assert_eq!(tensor(ours), theirs);
        }
    }
}
