//! What an adapter begins with.

use super::svd;
use super::{Init, LoraEntry, LoraLayout, Site};
use crate::ops::dora;
use crate::ops::lora::Pair;
use crate::ops::random;
use crate::random::Stream;

/// A fresh adapter as far as it follows from the seed: every A uniform in ±1/√in as PEFT draws it (ours is counter-based per
/// seed, module and element, so that the other targets of a job do not matter), every B zero, so that training begins at the
/// base model exactly. On an embedding A is zero and B normal, as in PEFT. What follows from the base's weights is still zero;
/// [`Model::start`](crate::model::Model::start) gives the whole.
pub fn init(layout: &LoraLayout, seed: u64) -> Vec<f32> {
    let mut params = vec![0.0; layout.len()];
    for entry in layout.entries() {
        if entry.site == Site::Embedding {
            let mut stream = Stream::new("embedding adapter", &[seed]);
            let normal = std::iter::repeat_with(|| stream.normal_pair()).flatten();
            params[entry.b.clone()].iter_mut().zip(normal).for_each(|(b, x)| *b = x as f32);
        } else {
            let bound = 1.0 / (entry.in_features as f64).sqrt();
            random::fill_uniform(&mut params[entry.a.clone()], seed, entry.site.key(), bound);
        }
    }
    params
}

/// Fills in what follows from the weight under one module, `[out, in]`.
pub(crate) fn complete(layout: &LoraLayout, entry: &LoraEntry, weight: &[f32], seed: u64, params: &mut [f32]) {
    if layout.config().init == Init::Pissa {
        let [a, b] = principal(entry, weight, seed);
        let [a0, b0] = entry.start.clone().expect("a PiSSA layout has a place for every start");
        for (place, numbers) in [(entry.a.clone(), &a), (a0, &a), (entry.b.clone(), &b), (b0, &b)] {
            params[place].copy_from_slice(numbers);
        }
    }
    if !entry.magnitude.is_empty() {
        let mut lengths = vec![0.0; entry.out_features];
        let (a, b) = (&params[entry.a.clone()], &params[entry.b.clone()]);
        dora::norms(weight, Pair { a, b, rank: entry.rank, scale: entry.scale }, &mut lengths);
        params[entry.magnitude.clone()].copy_from_slice(&lengths);
    }
}

/// A = √(S/s) Vᵀ and B = U √(S/s) of the weight's largest singular values.
fn principal(entry: &LoraEntry, weight: &[f32], seed: u64) -> [Vec<f32>; 2] {
    let found = svd::largest(weight, entry.in_features, entry.rank, seed ^ u64::from(entry.site.key()));
    let roots: Vec<f32> = found.values.iter().map(|s| (s / entry.scale).sqrt()).collect();
    let mut a = found.right;
    for (row, root) in a.chunks_mut(entry.in_features).zip(&roots) {
        row.iter_mut().for_each(|x| *x *= root);
    }
    let mut b = vec![0.0; entry.out_features * entry.rank];
    for (r, (column, root)) in found.left.chunks(entry.out_features).zip(&roots).enumerate() {
        for (o, x) in column.iter().enumerate() {
            b[o * entry.rank + r] = x * root;
        }
    }
    [a, b]
}

#[cfg(test)]
mod tests {
    use lorikeet_plan::{ModelConfig, Module};

    use super::super::{LoraConfig, Targets};
    use super::*;

    #[test]
    fn a_module_starts_the_same_whatever_else_is_adapted() {
        let all = layout(Targets::AllLinear);
        let few = layout(Targets::Names(vec!["v_proj".into()]));
        let (all_params, few_params) = (init(&all, 7), init(&few, 7));
        for entry in few.entries() {
            let same = all.entry(entry.site).expect("all-linear holds every module");
            assert_eq!(few_params[entry.a.clone()], all_params[same.a.clone()]);
            assert!(few_params[entry.b.clone()].iter().all(|b| *b == 0.0));
        }
        assert_ne!(init(&all, 8), all_params);
    }

    #[test]
    fn fresh_numbers_fill_their_range_evenly() {
        let layout = layout(Targets::AllLinear);
        let params = init(&layout, 1);
        let entry = layout.entry(Site::Block(1, Module::DownProj)).expect("adapted");
        let a = &params[entry.a.clone()];
        let bound = 1.0 / (entry.in_features as f32).sqrt();
        assert!(a.iter().all(|x| x.abs() <= bound));
        let mean = a.iter().sum::<f32>() / a.len() as f32;
        let variance = a.iter().map(|x| x * x).sum::<f32>() / a.len() as f32;
        assert!(mean.abs() < 0.1 * bound && (variance / (bound * bound / 3.0) - 1.0).abs() < 0.2);
    }

    #[test]
    fn an_embedding_starts_with_a_zero_a_and_a_normal_b() {
        let layout = layout(Targets::Names(vec!["embed_tokens".into()]));
        let params = init(&layout, 1);
        let entry = &layout.entries()[0];
        assert!(params[entry.a.clone()].iter().all(|a| *a == 0.0));
        assert!(params[entry.b.clone()].iter().any(|b| b.abs() > 1.0));
    }

    #[test]
    fn rslora_divides_by_the_root_of_the_rank() {
        let mut config = LoraConfig::plain(4, 16.0, 0.0);
        assert_eq!(config.scale(4, 16.0), 4.0);
        config.rslora = true;
        assert_eq!(config.scale(4, 16.0), 8.0);
    }

    fn layout(target_modules: Targets) -> LoraLayout {
        let text = r#"{"architectures":["LlamaForCausalLM"],"hidden_size":32,"intermediate_size":48,"vocab_size":96,
            "num_hidden_layers":2,"num_attention_heads":4,"num_key_value_heads":2,"max_position_embeddings":64}"#;
        let model = ModelConfig::parse(text).expect("a sound config");
        LoraLayout::new(&model, &LoraConfig { target_modules, ..LoraConfig::plain(4, 16.0, 0.0) })
            .expect("targets match")
    }
}
