//! One adapter in training: settings, weights, optimizer, place in the data; and what of it a checkpoint keeps.
//!
//! Weights, gradient and moments lie where its steps are taken. What is on a GPU is read back by whoever writes it down, and by nobody in a
//! step; the best weights are on the host always: evaluations find them, files hold them, no pass sees them.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Instant;

use lorikeet_dataset::Examples;
use serde::{Deserialize, Serialize};

use crate::config::{Numbers, Settings};
use crate::data::cursor::{Cursor, Order};
use crate::lora::{AdapterView, Dropout};
use crate::model::{Model, refusable_for};
use crate::ops::adamw::norm;
use crate::ops::machine::{Clip, Exact, Machine};
use crate::optim::Optimizer;
use crate::schedule::Schedule;
use crate::step::UnderWay;
use crate::{TrainError, Trained};

use super::course::Course;

/// Updates after which a gradient has reached every tensor of an adapter. The first of a warm-up has rate 0; B moves at the next,
/// and A, whose gradient passes through B, has one at the third.
const UPDATES_TO_REACH: u64 = 3;

/// One adapter, or the model itself, in training: settings, weights, optimizer, place in the data.
#[derive(Debug)]
pub struct Run {
    pub(crate) trained: Trained,
    /// Where its numbers lie.
    machine: Machine,
    pub(crate) params: Exact,
    /// The weights at the best evaluation, where they are what comes out.
    pub(crate) best: Option<Vec<f32>>,
    /// Scratch: the gradient of the step in progress, never part of the state.
    pub(crate) grads: Exact,
    /// Scratch: what the step in progress came to.
    pub(crate) clip: Clip,
    pub(crate) optimizer: Optimizer,
    pub(crate) schedule: Schedule,
    pub(crate) numbers: Numbers,
    pub(crate) max_norm: Option<f64>,
    pub(crate) examples: Examples,
    /// Everything up to the last step that was heard.
    pub(crate) state: State,
    /// A step whose update is behind that.
    pub(crate) under_way: Option<UnderWay>,
    /// When a step was heard last.
    pub(crate) heard: Option<Instant>,
    patience: Option<u32>,
    dropout: Option<Dropout>,
    order: Order,
}

/// Everything of a run that changes, beside weights and moments.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct State {
    /// Steps taken.
    pub step: u64,
    /// Where the next step's examples begin.
    pub cursor: Cursor,
    /// Loss of the first step.
    pub first_loss: Option<f64>,
    /// Loss of the last step.
    pub last_loss: Option<f64>,
    /// Every evaluation so far.
    pub evals: Vec<EvalPoint>,
    /// The held-out loss of the base without an adapter.
    #[serde(default)]
    pub base_loss: Option<f64>,
    /// The training loss, thinned.
    #[serde(default)]
    pub course: Course,
    /// Tokens seen.
    pub tokens: u64,
    /// Targets among them.
    pub supervised_tokens: u64,
    /// Wall time of the steps.
    pub seconds: f64,
}

/// One evaluation.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct EvalPoint {
    /// After this step.
    pub step: u64,
    /// Mean over the split's targets.
    pub loss: f64,
}

impl State {
    /// The best evaluation after a step; of equals the first. The one before training does not count.
    pub fn best(&self) -> Option<EvalPoint> {
        let trained = self.evals.iter().filter(|point| point.step > 0);
        trained.copied().reduce(|best, point| if point.loss < best.loss { point } else { best })
    }

    /// How many evaluations there were since the best.
    fn evals_without_a_better(&self) -> usize {
        let best = self.best().map_or(u64::MAX, |point| point.step);
        self.evals.iter().filter(|point| point.step > best).count()
    }

    /// Whether the split was evaluated after the step at which the run stands.
    pub fn is_evaluated(&self) -> bool {
        self.evals.last().is_some_and(|point| point.step == self.step)
    }
}

impl Run {
    /// A run at its beginning, with the weights that it starts from; on the host.
    pub fn new(settings: &Settings, trained: impl Into<Trained>, params: Vec<f32>, examples: Examples) -> Run {
        let trained = trained.into();
        assert_eq!(params.len(), trained.len(), "weights come with their layout");
        let numbers = Numbers::new(settings, examples.len() as u64);
        let (p, machine) = (settings.lora.dropout, Machine::default());
        Run {
            best: None,
            patience: settings.early_stopping,
            grads: Exact::Host(vec![0.0; trained.trained()]),
            clip: machine.clip(trained.trained()),
            machine,
            optimizer: Optimizer::new(trained.trained(), settings.adamw()).with_parts(trained.parts(settings)),
            schedule: numbers.schedule(settings),
            max_norm: settings.clip(),
            order: Order::new(numbers.examples, settings.shuffle.then_some(settings.seed)),
            dropout: (p > 0.0).then_some(Dropout { p, seed: settings.seed }),
            state: State::default(),
            under_way: None,
            heard: None,
            numbers,
            trained,
            params: Exact::Host(params),
            examples,
        }
    }

    /// Steps taken.
    pub fn steps(&self) -> u64 {
        self.state.step
    }

    /// Brings its numbers to where the model computes; they stay there. Where there is no room for them, they are where they were.
    pub fn settle(&mut self, model: &Model) -> Result<(), TrainError> {
        let (from, to) = (&self.machine, model.machine());
        if to.is(from) {
            return Ok(());
        }
        let trained = self.trained.trained();
        let moved = |numbers: &Exact| to.put_exact(from.get_exact(numbers));
        let (params, m, v, grads, clip) = refusable_for(
            || "what is trained and its moments".into(),
            || {
                let [m, v, grads] = [&self.optimizer.m, &self.optimizer.v, &self.grads].map(moved);
                Ok((moved(&self.params), m, v, grads, to.clip(trained)))
            },
        )?;
        (self.params, self.grads, self.clip, self.machine) = (params, grads, clip, to.clone());
        (self.optimizer.m, self.optimizer.v) = (m, v);
        Ok(())
    }

    /// The numbers that are trained, in the order of their layout.
    pub fn params(&self) -> Result<Cow<'_, [f32]>, TrainError> {
        self.read(&self.params)
    }

    /// Their moments.
    pub(crate) fn moments(&self) -> Result<[Cow<'_, [f32]>; 2], TrainError> {
        Ok([self.read(&self.optimizer.m)?, self.read(&self.optimizer.v)?])
    }

    /// Numbers of its own, on the host; waits for them.
    fn read<'a>(&self, numbers: &'a Exact) -> Result<Cow<'a, [f32]>, TrainError> {
        refusable_for(|| "a copy of what is trained".into(), || Ok(self.machine.get_exact(numbers)))
    }

    /// Whether every step was taken, or the last evaluations were no better than one before.
    pub fn is_done(&self) -> bool {
        let exhausted = self.patience.is_some_and(|most| self.state.evals_without_a_better() >= most as usize);
        exhausted || self.state.step >= self.numbers.total_steps
    }

    /// Keeps the weights as the best, where the best are what comes out.
    pub(crate) fn keep_best(&mut self) -> Result<(), TrainError> {
        if self.patience.is_some() {
            self.best = Some(self.params()?.into_owned());
        }
        Ok(())
    }

    /// The weights that come out.
    pub(crate) fn result(&self) -> Result<Cow<'_, [f32]>, TrainError> {
        self.best.as_deref().map_or_else(|| self.params(), |best| Ok(best.into()))
    }

    /// The evaluation of the weights that come out.
    pub(crate) fn result_eval(&self) -> Option<EvalPoint> {
        self.best.as_ref().and(self.state.best()).or(self.state.evals.last().copied())
    }

    /// The norm of the last step's gradient by module.
    pub(crate) fn grad_norms(&self) -> Result<BTreeMap<String, f64>, TrainError> {
        let grads = self.read(&self.grads)?;
        let mut squares: BTreeMap<String, f64> = BTreeMap::new();
        for (module, place) in self.trained.modules() {
            let norm = norm(&grads[place]);
            *squares.entry(module).or_default() += norm * norm;
        }
        Ok(squares.into_iter().map(|(module, square)| (module, square.sqrt())).collect())
    }

    /// Tensors of an adapter that no gradient has reached though one must have; looked at once, after the last update that may
    /// be the first for some. A first moment that is zero throughout has only ever seen gradients of zero, whatever the rate was.
    pub(crate) fn unreached(&self) -> Result<Vec<String>, TrainError> {
        let is_adapter = matches!(self.trained, Trained::Adapter(_));
        if self.state.step != UPDATES_TO_REACH || self.schedule.peak == 0.0 || !is_adapter {
            return Ok(Vec::new());
        }
        let m = self.read(&self.optimizer.m)?;
        let untouched = |place: &Range<usize>| m[place.clone()].iter().all(|m| *m == 0.0);
        Ok(self.trained.tensors().into_iter().filter(|(_, place)| untouched(place)).map(|(name, _)| name).collect())
    }

    /// The adapter as evaluation sees it; none where the model itself is trained.
    pub fn view(&self) -> Option<AdapterView<'_>> {
        match &self.trained {
            Trained::Adapter(layout) => Some(AdapterView { layout, params: self.params.params(), dropout: None }),
            Trained::Model(_) => None,
        }
    }

    pub(crate) fn training_view(&self) -> Option<AdapterView<'_>> {
        self.view().map(|view| AdapterView { dropout: self.dropout, ..view })
    }

    /// Where the model itself is trained, puts its numbers into it: before the first step, when they lie where it computes ([`Run::settle`]),
    /// and behind each update. Nobody waits for that, and passes that come behind it see them.
    pub fn put_into(&self, model: &mut Model) -> Result<(), TrainError> {
        let Trained::Model(layout) = &self.trained else { return Ok(()) };
        refusable_for(
            || "the model's own numbers".into(),
            || {
                model.set_weights(layout, self.params.params());
                Ok(())
            },
        )
    }

    /// Where the next step's examples begin: behind those of the step under way, if there is one.
    pub(crate) fn cursor(&self) -> Cursor {
        let (batch, examples) = (self.numbers.batch_size, self.numbers.examples);
        self.under_way.as_ref().map_or(self.state.cursor, |_| self.state.cursor.after_step(batch, examples))
    }

    /// Indices of the next step's examples.
    pub(crate) fn next_examples(&mut self) -> Vec<usize> {
        let indices = self.order.step(self.cursor(), self.numbers.batch_size);
        indices.into_iter().map(|index| index as usize).collect()
    }

    /// Takes its gradient out for a step, which puts it back.
    pub(crate) fn lend_grads(&mut self) -> Exact {
        std::mem::replace(&mut self.grads, Exact::Host(Vec::new()))
    }

    /// Counts a step that was taken.
    pub(crate) fn advance(&mut self, loss: f64, tokens: u64, supervised_tokens: u64, seconds: f64) {
        let state = &mut self.state;
        state.step += 1;
        state.cursor = state.cursor.after_step(self.numbers.batch_size, self.numbers.examples);
        state.first_loss.get_or_insert(loss);
        state.last_loss = Some(loss);
        state.course.push(state.step, loss);
        state.tokens += tokens;
        state.supervised_tokens += supervised_tokens;
        state.seconds += seconds;
    }

    /// Takes up a saved state; its sizes were checked when it was read.
    pub(crate) fn restore(
        &mut self,
        params: Vec<f32>,
        m: Vec<f32>,
        v: Vec<f32>,
        best: Option<Vec<f32>>,
        state: State,
    ) -> Result<(), TrainError> {
        let (len, trained) = (self.trained.len(), self.trained.trained());
        if [params.len(), m.len(), v.len()] != [len, trained, trained] {
            let found =
                format!("{} weights, {} and {} moments for an adapter of {len}", params.len(), m.len(), v.len());
            return Err(TrainError::Internal(found));
        }
        // on the host, from where they settle like a new run's
        let [params, m, v, grads] = [params, m, v, vec![0.0; trained]].map(Exact::Host);
        (self.params, self.optimizer.m, self.optimizer.v, self.state) = (params, m, v, state);
        (self.grads, self.machine) = (grads, Machine::default());
        self.clip = self.machine.clip(trained);
        self.best = best.filter(|best| best.len() == len);
        Ok(())
    }
}
