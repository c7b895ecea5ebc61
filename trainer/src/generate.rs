//! What a model says next, token by token, over a cache of keys and values.
//!
//! The order is transformers': logits by the temperature, then the `top_k` likeliest, then the fewest of those whose
//! probabilities reach `top_p`, then one of them by chance. The chance is a stream of the seed, so the same seed says the same.

use crate::TrainError;
use crate::lora::AdapterView;
use crate::model::{Cache, Model};
use crate::random::Stream;

/// How the next token is chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// Logits are divided by it; 0 takes the likeliest token.
    pub temperature: f64,
    /// Only so many of the likeliest; none: all.
    pub top_k: Option<usize>,
    /// Only the likeliest that together have this probability; 1: all.
    pub top_p: f64,
    /// Of the chance.
    pub seed: u64,
    /// Tokens at most.
    pub max_tokens: usize,
}

impl Sampling {
    /// The likeliest token, always.
    pub const fn greedy(max_tokens: usize) -> Sampling {
        Sampling { temperature: 0.0, top_k: None, top_p: 1.0, seed: 0, max_tokens }
    }
}

/// Appends token after token until one of `end` came (it is part of the answer) or `max_tokens` have. Each is told to `told`
/// as it comes; `stop` is asked between layers and ends it with [`TrainError::Stopped`].
pub fn generate(
    model: &Model,
    adapter: Option<&AdapterView<'_>>,
    prompt: &[u32],
    (sampling, end): (&Sampling, &[u32]),
    told: &mut dyn FnMut(u32),
    stop: &dyn Fn() -> bool,
) -> Result<Vec<u32>, TrainError> {
    assert!(!prompt.is_empty(), "there is no first token to predict from");
    let (mut cache, mut chance) = (Cache::new(model, adapter)?, Stream::new("sampling", &[sampling.seed]));
    let mut tokens = Vec::new();
    let mut next = prompt.to_vec();
    while tokens.len() < sampling.max_tokens {
        let logits = cache.extend(&next, stop)?;
        let token = choose(&logits, sampling, &mut chance);
        tokens.push(token);
        told(token);
        if end.contains(&token) {
            break;
        }
        next = vec![token];
    }
    Ok(tokens)
}

/// The likeliest token again and again.
pub fn greedy(
    model: &Model,
    adapter: Option<&AdapterView<'_>>,
    prompt: &[u32],
    most: usize,
    end: &[u32],
    stop: &dyn Fn() -> bool,
) -> Result<Vec<u32>, TrainError> {
    generate(model, adapter, prompt, (&Sampling::greedy(most), end), &mut |_| {}, stop)
}

fn choose(logits: &[f32], sampling: &Sampling, chance: &mut Stream) -> u32 {
    if sampling.temperature <= 0.0 {
        return likeliest(logits);
    }
    let mut order: Vec<u32> = (0..logits.len() as u32).collect();
    let logit = |token: u32| logits[token as usize];
    // of equals the first, so that the order is one and the same everywhere
    order.sort_by(|a, b| logit(*b).total_cmp(&logit(*a)).then(a.cmp(b)));
    order.truncate(sampling.top_k.unwrap_or(order.len()).max(1));
    let most = f64::from(logit(order[0]));
    let weight = |token: &u32| ((f64::from(logit(*token)) - most) / sampling.temperature).exp();
    let weights: Vec<f64> = order.iter().map(weight).collect();
    let enough = sampling.top_p * weights.iter().sum::<f64>();
    let mut sums = Vec::with_capacity(weights.len());
    let mut sum = 0.0;
    for weight in weights {
        sum += weight;
        sums.push(sum);
        if sum >= enough {
            break;
        }
    }
    let drawn = chance.unit() * sum;
    order[sums.partition_point(|sum| *sum <= drawn).min(sums.len() - 1)]
}

/// The first of the largest.
fn likeliest(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (i, x) in logits.iter().enumerate() {
        if *x > logits[best] {
            best = i;
        }
    }
    best as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLING: Sampling = Sampling { temperature: 1.0, top_k: None, top_p: 1.0, seed: 3, max_tokens: 1 };

    #[test]
    fn tokens_come_as_often_as_their_probability_says() {
        let logits = [0.0, 2.0f32.ln(), f32::NEG_INFINITY, 5.0f32.ln()];
        let counts = counts(&logits, &SAMPLING);
        let expected = [0.125, 0.25, 0.0, 0.625];
        assert!(counts.iter().zip(expected).all(|(found, expected)| (found - expected).abs() < 0.02), "{counts:?}");
    }

    #[test]
    fn a_low_temperature_sharpens_and_none_takes_the_first_of_the_largest() {
        let logits = [1.0, 1.5, 1.5, 0.0];
        let sharp = counts(&logits, &Sampling { temperature: 0.01, ..SAMPLING });
        assert!(sharp[0] == 0.0 && sharp[3] == 0.0, "{sharp:?}");
        let greedy = counts(&logits, &Sampling { temperature: 0.0, ..SAMPLING });
        assert_eq!(greedy.map(|share| share > 0.0), [false, true, false, false]);
    }

    #[test]
    fn top_k_and_top_p_leave_the_likeliest() {
        let logits = [0.4f32.ln(), 0.3f32.ln(), 0.2f32.ln(), 0.1f32.ln()];
        let of = |sampling| counts(&logits, &sampling).map(|share| share > 0.0);
        assert_eq!(of(Sampling { top_k: Some(2), ..SAMPLING }), [true, true, false, false]);
        assert_eq!(of(Sampling { top_p: 0.65, ..SAMPLING }), [true, true, false, false]);
        assert_eq!(of(Sampling { top_p: 0.75, ..SAMPLING }), [true, true, true, false]);
        assert_eq!(of(Sampling { top_p: 1e-9, ..SAMPLING }), [true, false, false, false]);
    }

    fn counts(logits: &[f32; 4], sampling: &Sampling) -> [f64; 4] {
        let mut chance = Stream::new("test", &[1]);
        let mut counts = [0.0; 4];
        (0..4000).for_each(|_| counts[choose(logits, sampling, &mut chance) as usize] += 1.0 / 4000.0);
        counts
    }
}
