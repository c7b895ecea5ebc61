//! The loss of a set of examples, weighted by tokens: Σ −ln p over all targets, divided by their number.

use lorikeet_dataset::Examples;

use crate::TrainError;
use crate::data::{MicroBatch, pack};
use crate::lora::AdapterView;
use crate::model::{LossSum, Model};

/// Examples that are packed together; bounds the search for a place, whatever the size of the set.
const PACKED: usize = 256;

/// Sum of the losses of every target in `examples`, in order, with `adapter` or without.
pub fn evaluate(
    model: &Model,
    adapter: Option<AdapterView<'_>>,
    examples: &Examples,
    micro_tokens: usize,
    stop: &dyn Fn() -> bool,
) -> Result<LossSum, TrainError> {
    let adapters: Vec<AdapterView<'_>> = adapter.into_iter().collect();
    let mut total = LossSum::default();
    let indices: Vec<usize> = (0..examples.len()).collect();
    for part in indices.chunks(PACKED) {
        for batch in batches(examples, part, micro_tokens) {
            for loss in model.loss(&batch?, &adapters, stop)? {
                total.sum += loss.sum;
                total.count += loss.count;
            }
        }
    }
    Ok(total)
}

fn batches<'a>(
    examples: &'a Examples,
    part: &'a [usize],
    micro_tokens: usize,
) -> impl Iterator<Item = Result<MicroBatch, TrainError>> + use<'a> {
    let lengths: Vec<usize> = part.iter().map(|index| examples.tokens_in(*index)).collect();
    pack::first_fit(&lengths, micro_tokens).into_iter().map(move |members| {
        let mut batch = MicroBatch::default();
        for member in members {
            let example = examples.get(part[member])?;
            batch.push(&example.tokens, &example.supervised, 0, examples.id(part[member]), 0);
        }
        Ok(batch)
    })
}
