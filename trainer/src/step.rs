//! One optimizer step of one or several runs over one base: micro-batches, accumulate, clip, update.
//!
//! ```text
//! for every run: the next batch_size examples of its epoch's order
//! all of them packed, first fit, into micro-batches of micro_tokens, which the ranks share out
//! g = Σ over micro-batches of ∇ (Σ −ln p) / n        n: the run's targets in this whole step
//! c = min(1, max_norm / ‖g‖)                          ‖g‖ not finite: nothing is changed
//! AdamW(c · g)
//! ```
//! A step is taken whole or not at all: weights, moments and cursor move after the last micro-batch, never before.

use std::time::Instant;

use crate::data::MicroBatch;
use crate::event::Step;
use crate::model::{LossSum, Model};
use crate::ops::adamw::{clip_factor, norm};
use crate::ranks::Ranks;
use crate::run::Run;
use crate::{TrainError, Trained};

/// What became of one run's step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Taken {
    /// It was taken.
    Done(Step),
    /// It was not; the run is as it was.
    NotFinite {
        /// `loss` or `gradient norm`.
        what: &'static str,
        /// What it was.
        value: f64,
    },
}

/// Takes one step of every run; a run that trains the model itself is the only one, and `model` holds its numbers
/// ([`Run::put_into`]). On an error, a stop among them, every run is as it was.
pub fn step(
    model: &Model,
    runs: &mut [Run],
    micro_tokens: usize,
    stop: &dyn Fn() -> bool,
) -> Result<Vec<Taken>, TrainError> {
    step_of(&mut Ranks::Alone, model, runs, micro_tokens, stop)
}

/// As [`step`], taken by every one of `ranks` at the same time.
pub(crate) fn step_of(
    ranks: &mut Ranks,
    model: &Model,
    runs: &mut [Run],
    micro_tokens: usize,
    stop: &dyn Fn() -> bool,
) -> Result<Vec<Taken>, TrainError> {
    let began = Instant::now();
    let places = places(runs);
    let counts: Vec<Count> = (0..runs.len()).map(|run| Count::of(runs, &places, run)).collect();
    let scales: Vec<f32> = counts.iter().map(|count| (1.0 / count.supervised as f64) as f32).collect();
    let lengths: Vec<usize> = places.iter().map(|place| runs[place.run].examples.tokens_in(place.index)).collect();
    let mut sums = vec![0.0; runs.len()];
    runs.iter_mut().for_each(Run::clear_grads);
    let micro_batches = ranks.deal(&lengths, micro_tokens);
    let micro_batch =
        |runs: &[Run], members: &[usize]| micro_batch(runs, members.iter().map(|member| &places[*member]));
    let mut grads: Vec<Vec<f32>> = runs.iter_mut().map(|run| std::mem::take(&mut run.grads)).collect();
    let own = add_up(model, runs, (&micro_batches, &micro_batch), &scales, (&mut grads, &mut sums), stop);
    runs.iter_mut().zip(grads).for_each(|(run, grads)| run.grads = grads);
    let mut grads: Vec<&mut [f32]> = runs.iter_mut().map(|run| run.grads.as_mut_slice()).collect();
    ranks.all_reduce(own, &mut grads, &mut sums, stop)?;
    let taken = runs.iter_mut().zip(counts).zip(sums);
    Ok(taken.map(|((run, count), sum)| update(run, count, sum, began)).collect())
}

/// One example of the step.
#[derive(Debug, Clone, Copy)]
struct Place {
    run: usize,
    index: usize,
}

fn places(runs: &mut [Run]) -> Vec<Place> {
    let mut places = Vec::new();
    for (run, state) in runs.iter_mut().enumerate() {
        places.extend(state.next_examples().into_iter().map(|index| Place { run, index }));
    }
    places
}

/// What a run's step holds.
#[derive(Debug, Clone, Copy)]
struct Count {
    tokens: u64,
    supervised: u64,
}

impl Count {
    fn of(runs: &[Run], places: &[Place], run: usize) -> Count {
        let examples = &runs[run].examples;
        let mine = || places.iter().filter(|place| place.run == run);
        Count {
            tokens: mine().map(|place| examples.tokens_in(place.index) as u64).sum(),
            supervised: mine().map(|place| examples.supervised_in(place.index) as u64).sum(),
        }
    }
}

fn micro_batch<'a>(runs: &[Run], places: impl Iterator<Item = &'a Place>) -> Result<MicroBatch, TrainError> {
    let mut batch = MicroBatch::default();
    for place in places {
        let run = &runs[place.run];
        let example = run.examples.get(place.index)?;
        let id = run.examples.id(place.index);
        batch.push(&example.tokens, &example.supervised, place.run, id, run.state.cursor.epoch);
    }
    Ok(batch)
}

/// Adds the gradients and losses of all micro-batches to `grads` and `sums`.
fn add_up(
    model: &Model,
    runs: &[Run],
    (micro_batches, micro_batch): (&[Vec<usize>], MakeBatch<'_>),
    scales: &[f32],
    (grads, sums): (&mut [Vec<f32>], &mut [f64]),
    stop: &dyn Fn() -> bool,
) -> Result<(), TrainError> {
    let mut count = |losses: &[LossSum]| sums.iter_mut().zip(losses).for_each(|(sum, loss)| *sum += loss.sum);
    if let [Run { trained: Trained::Model(layout), .. }] = runs {
        return micro_batches.iter().try_for_each(|members| {
            let batch = micro_batch(runs, members)?;
            count(&[model.forward_backward_weights(&batch, layout, scales[0], &mut grads[0], stop)?]);
            Ok(())
        });
    }
    let views: Vec<_> = runs.iter().map(|run| run.training_view().expect("a model is trained alone")).collect();
    let mut work = model.work(&views, grads.iter_mut().map(Vec::as_mut_slice).collect())?;
    for members in micro_batches {
        count(&work.pass(&micro_batch(runs, members)?, scales, stop)?);
    }
    work.finish()
}

/// Makes a micro-batch of some of the step's examples.
type MakeBatch<'a> = &'a dyn Fn(&[Run], &[usize]) -> Result<MicroBatch, TrainError>;

fn update(run: &mut Run, count: Count, sum: f64, began: Instant) -> Taken {
    let loss = sum / count.supervised as f64;
    let grad_norm = norm(&run.grads);
    for (what, value) in [("loss", loss), ("gradient norm", grad_norm)] {
        if !value.is_finite() {
            return Taken::NotFinite { what, value };
        }
    }
    let lr = run.schedule.rate(run.state.step);
    let clip = clip_factor(grad_norm, run.clip);
    let trained = run.trained.trained();
    run.optimizer.update(&mut run.params[..trained], &run.grads, run.state.step + 1, lr, clip);
    run.advance(loss, count.tokens, count.supervised, began.elapsed().as_secs_f64());
    Taken::Done(Step {
        step: run.state.step,
        epoch: run.state.cursor.epochs(run.numbers.examples),
        loss,
        lr,
        grad_norm,
        tokens: count.tokens,
        supervised_tokens: count.supervised,
        seconds: began.elapsed().as_secs_f64(),
    })
}
