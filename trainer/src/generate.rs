//! Greedy continuation of a prompt, for samples during and after training.
//!
//! There is no cache: every new token costs a pass over everything before it. For a few dozen tokens of a small model that is
//! seconds; serving is not what this is for.

use crate::TrainError;
use crate::lora::AdapterView;
use crate::model::Model;

/// Appends the likeliest token again and again, until one of `end` came (it is part of the answer) or `most` have.
pub fn greedy(
    model: &Model,
    adapter: Option<&AdapterView<'_>>,
    prompt: &[u32],
    most: usize,
    end: &[u32],
    stop: &dyn Fn() -> bool,
) -> Result<Vec<u32>, TrainError> {
    assert!(!prompt.is_empty(), "there is no first token to predict from");
    let mut tokens = prompt.to_vec();
    while tokens.len() < prompt.len() + most {
        if stop() {
            return Err(TrainError::Stopped);
        }
        let next = likeliest(&model.next_logits(&tokens, adapter)?);
        tokens.push(next);
        if end.contains(&next) {
            break;
        }
    }
    Ok(tokens.split_off(prompt.len()))
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
