//! One optimizer step of one or several runs over one base: micro-batches, accumulate, clip, update.
//!
//! ```text
//! pass     for every run: the next batch_size examples of its epoch's order
//!          all of them packed, first fit, into micro-batches of micro_tokens, which the ranks share out
//!          g = Σ over micro-batches of ∇ (Σ −ln p) / n        n: the run's targets in this whole step
//!          c = min(1, max_norm / ‖g‖)                          loss or ‖g‖ not finite: nothing is changed
//! update   AdamW(c · g)
//! hear     what became of it
//! ```
//! A step is taken whole or not at all: weights, moments and cursor move after the last micro-batch, never before. On a GPU all but the
//! hearing is put on the stream and nobody waits; so a step may be heard after the passes of the next (`run.rs`), which change nothing.

use std::time::Instant;

use crate::data::MicroBatch;
use crate::event::Step;
use crate::model::{Model, refusable_for};
use crate::ops::machine::{Exact, LossSums, Sent};
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

/// Takes one step of every run; a run that trains the model itself is the only one, and whoever takes its steps puts its numbers into
/// `model` before each ([`Run::put_into`]). On an error, a stop among them, every run is as it was.
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
    let passed = pass(ranks, model, runs, micro_tokens, stop)?;
    let taken = runs.iter_mut().zip(passed);
    taken.map(|(run, passed)| update(model, run, passed).and_then(|()| hear(model, run))).collect()
}

/// One run's step whose gradient is where it belongs, and has been judged.
#[derive(Debug)]
pub(crate) struct Passed {
    began: Instant,
    count: Count,
    judged: Sent,
}

/// One run's step whose update was made, or is on its way; nobody has heard of it yet. The run stands before it till then.
#[derive(Debug)]
pub(crate) struct UnderWay {
    passed: Passed,
    lr: f64,
}

/// Does what of a step changes nothing: its passes, and what they come to. Of a run with a step under way it is the step behind that.
pub(crate) fn pass(
    ranks: &mut Ranks,
    model: &Model,
    runs: &mut [Run],
    micro_tokens: usize,
    stop: &dyn Fn() -> bool,
) -> Result<Vec<Passed>, TrainError> {
    let began = Instant::now();
    runs.iter_mut().try_for_each(|run| run.settle(model))?;
    let places = places(runs);
    let counts: Vec<Count> = (0..runs.len()).map(|run| Count::of(runs, &places, run)).collect();
    let scales: Vec<f32> = counts.iter().map(|count| (1.0 / count.supervised as f64) as f32).collect();
    let lengths: Vec<usize> = places.iter().map(|place| runs[place.run].examples.tokens_in(place.index)).collect();
    let micro_batches = ranks.deal(&lengths, micro_tokens);
    let micro_batch =
        |runs: &[Run], members: &[usize]| micro_batch(runs, members.iter().map(|member| &places[*member]));
    let mut grads: Vec<Exact> = runs.iter_mut().map(Run::lend_grads).collect();
    let own = add_up(model, runs, (&micro_batches, &micro_batch), &scales, &mut grads, stop);
    runs.iter_mut().zip(grads).for_each(|(run, grads)| run.grads = grads);
    let losses = if ranks.is_alone() { own? } else { reduced(ranks, model, runs, own, stop)? };
    refusable_for(
        || "what a step came to".into(),
        || {
            let judge = |(at, (run, count)): (usize, (&mut Run, Count))| {
                let of_run = (&losses, at, count.supervised);
                let judged = model.machine().judge(&mut run.clip, &run.grads, of_run, run.max_norm);
                Passed { began, count, judged }
            };
            Ok(runs.iter_mut().zip(counts).enumerate().map(judge).collect())
        },
    )
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
        batch.push(&example.tokens, &example.supervised, place.run, id, run.cursor().epoch);
    }
    Ok(batch)
}

/// Adds the gradients of all micro-batches up in `grads`, and their losses.
fn add_up(
    model: &Model,
    runs: &[Run],
    (micro_batches, micro_batch): (&[Vec<usize>], MakeBatch<'_>),
    scales: &[f32],
    grads: &mut [Exact],
    stop: &dyn Fn() -> bool,
) -> Result<LossSums, TrainError> {
    let machine = model.machine();
    refusable_for(
        || "the gradients".into(),
        || {
            grads.iter_mut().for_each(|grads| machine.clear_exact(grads));
            Ok(())
        },
    )?;
    let views: Vec<_> = runs.iter().filter_map(Run::training_view).collect();
    let mut work = match runs {
        [Run { trained: Trained::Model(layout), .. }] => model.work_on_weights(layout, grads[0].sums())?,
        // a model is trained alone: every other run has an adapter
        _ => model.work(&views, grads.iter_mut().map(Exact::sums).collect())?,
    };
    for members in micro_batches {
        work.pass(&micro_batch(runs, members)?, scales, stop)?;
    }
    Ok(work.finish())
}

/// Makes a micro-batch of some of the step's examples.
type MakeBatch<'a> = &'a dyn Fn(&[Run], &[usize]) -> Result<MicroBatch, TrainError>;

/// Replaces gradients and losses by the sums of those of all ranks: where they lie, or through the host, where the ranks speak.
fn reduced(
    ranks: &mut Ranks,
    model: &Model,
    runs: &mut [Run],
    own: Result<LossSums, TrainError>,
    stop: &dyn Fn() -> bool,
) -> Result<LossSums, TrainError> {
    let machine = model.machine();
    refusable_for(
        || "the sums of all ranks".into(),
        || {
            if ranks.has_met() {
                let mut grads: Vec<&mut Exact> = runs.iter_mut().map(|run| &mut run.grads).collect();
                return ranks.all_reduce_there(own, &mut grads, stop);
            }
            // where this rank has none, there is room for what the others send all the same
            let mut losses = own.as_ref().map_or_else(|_| vec![0.0; runs.len()], |sums| machine.read_sums(sums));
            let (own, sums) = own.map_or_else(|why| (Err(why), None), |sums| (Ok(()), Some(sums)));
            let mut grads: Vec<&mut Exact> = runs.iter_mut().map(|run| &mut run.grads).collect();
            machine.on_host(&mut grads, |grads| ranks.all_reduce(own, grads, &mut losses, stop))?;
            let mut sums = sums.expect("nothing is summed where a rank has none");
            machine.replace_sums(&mut sums, &losses);
            Ok(sums)
        },
    )
}

/// Makes the update of a run that stands where the step began; none where the step was judged to be not finite.
pub(crate) fn update(model: &Model, run: &mut Run, passed: Passed) -> Result<(), TrainError> {
    assert!(run.under_way.is_none(), "a step is heard before the next one changes anything");
    let (step, lr) = (run.state.step + 1, run.schedule.rate(run.state.step));
    refusable_for(
        || "an update".into(),
        || {
            run.optimizer.update(model.machine(), &mut run.params, (&run.grads, &run.clip), step, lr);
            run.under_way = Some(UnderWay { passed, lr });
            Ok(())
        },
    )
}

/// What became of the step under way. Waits for it, and for nothing that came behind it.
pub(crate) fn hear(model: &Model, run: &mut Run) -> Result<Taken, TrainError> {
    let under_way = run.under_way.take().expect("an update was made");
    let UnderWay { passed: Passed { began, count, judged }, lr } = under_way;
    let judged = refusable_for(|| "what a step came to".into(), || Ok(model.machine().receive(judged)))?;
    for (what, value) in [("loss", judged.loss), ("gradient norm", judged.norm)] {
        if !value.is_finite() {
            return Ok(Taken::NotFinite { what, value });
        }
    }
    // of two that overlap, what lies between their ends is the second one's
    let seconds = run.heard.map_or(began, |heard| began.max(heard)).elapsed().as_secs_f64();
    run.heard = Some(Instant::now());
    run.advance(judged.loss, count.tokens, count.supervised, seconds);
    Ok(Taken::Done(Step {
        step: run.state.step,
        epoch: run.state.cursor.epochs(run.numbers.examples),
        loss: judged.loss,
        lr,
        grad_norm: judged.norm,
        tokens: count.tokens,
        supervised_tokens: count.supervised,
        seconds,
    }))
}
