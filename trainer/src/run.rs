//! The loop around a run, top to bottom: evaluate, save, stop, step, report.
//!
//! ```text
//!            ┌─────────────────────────────────────────────────────────────────────────────┐
//!  prepare ──► evaluate if due ─► save if due or told ─► told to stop? ─► done? ─► step ─► report
//!                                                              │            │       │
//!                                                  Stopped ◄───┘ Finished ◄─┘       ├─► told to stop inside: undone, Stopped
//!                                                                                   └─► not finite: undone, saved, failed
//! ```
//! *Done* is the last step, or with early stopping so many evaluations without a better one; then the best state comes out.
//!
//! On a GPU a step is heard when the passes of the next are on the stream (`step.rs`), so that the device never waits for the host:
//!
//! ```text
//! host     pass 2 ─► hear 1 ─► report 1 ─► update 2 ─► pass 3 ─► hear 2 …
//! device   … pass 1, update 1, pass 2, update 2, pass 3 …
//! ```
//! Passes change nothing. So what is found between report 1 and update 2 is the state after step 1, on the device too: there the run is stopped and saved
//! and a step that was not finite is found, as on the processor. Where it is known before that something is due, nothing is begun ahead.
//!
//! Every event goes into the run's own records first (`record.rs`).
//!
//! A pass for which memory is refused is done again with half the micro-batch (`run/memory.rs`).
//! What is due after a step is decided from the state alone, so a run that was killed anywhere between two steps does what
//! it had not done yet, and nothing twice.

mod course;
pub(crate) mod fingerprint;
mod follow;
mod memory;
mod prepare;
mod sample;
mod state;

use std::io;
use std::os::unix::net::UnixStream;
use std::time::Instant;

use crate::checkpoint::{self, Identity};
use crate::config::Config;
use crate::event::{Checkpoint, CheckpointKind, Eval, Event, Level, Outcome, Stage};
use crate::model::{LossSum, Model};
use crate::ranks::Ranks;
use crate::record::{self, Record};
use crate::step::{self, Passed, Taken};
use crate::stop::{Stop, Wish};
use crate::{TrainError, eval, export};

use lorikeet_dataset::{Prepared, Tokenizer};

use memory::{Needs, Thrift};

pub use course::Course;
pub use follow::follow;
pub use state::{EvalPoint, Run, State};

/// Where events go. An event that cannot be delivered ends the run: what is not recorded must not go on.
pub type Events<'a> = dyn FnMut(Event) -> io::Result<()> + Send + 'a;

/// Trains one adapter, or the model itself, from the newest whole checkpoint in `config.out` or from the start. Blocks until it is finished, told to stop, or
/// cannot go on.
pub fn train(config: &Config, stop: &Stop, events: &mut Events<'_>) -> Result<Outcome, TrainError> {
    lead(config, Vec::new(), stop, events)
}

/// As [`train`], together with the processes at the other ends of `followers`, each of which does [`follow`]. They are left alone when
/// this returns: without their leader they end.
pub fn lead(
    config: &Config,
    followers: Vec<UnixStream>,
    stop: &Stop,
    events: &mut Events<'_>,
) -> Result<Outcome, TrainError> {
    config.check()?;
    let mut record = Record::new(&config.out);
    let mut events = |event: Event| record.keep(&event).and_then(|()| events(event));
    threads(config)?.install(|| match prepare::session(config, Ranks::lead(followers), stop, &mut events) {
        Ok(mut session) => session.go(),
        Err(TrainError::Stopped) => prepare::stopped_early(config, stop),
        Err(error) => Err(error),
    })
}

fn threads(config: &Config) -> Result<rayon::ThreadPool, TrainError> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(config.threads.unwrap_or(0)).build();
    pool.map_err(|error| TrainError::Internal(format!("start threads: {error}")))
}

/// A run with all it works on.
struct Session<'a, 'e> {
    config: &'a Config,
    stop: &'a Stop,
    events: &'a mut Events<'e>,
    model: Model,
    data: Prepared,
    tokenizer: Tokenizer,
    run: Run,
    ranks: Ranks,
    needs: Needs,
    thrift: Thrift,
    identity: Identity,
    /// The step whose state lies on disk.
    saved: Option<u64>,
    saved_at: Instant,
}

impl Session<'_, '_> {
    fn go(&mut self) -> Result<Outcome, TrainError> {
        match self.course() {
            Err(TrainError::Stopped) => self.stopped(),
            // told to stop and a rank gone: what was wanted can still be done
            Err(TrainError::RankLost { .. }) if self.stop.is_asked() => self.stopped(),
            // the step that it was lost in has changed nothing here: the next attempt goes on from this state
            Err(lost @ TrainError::RankLost { .. }) => match self.saved_now() {
                // a GPU that was reading the other's memory may be of no use without it: then that goes on from what is on disk
                Err(TrainError::Device { reason }) => {
                    self.tell(Event::Log { level: Level::Warning, message: format!("not saved: {reason}") })?;
                    Err(lost)
                }
                saved => saved.and(Err(lost)),
            },
            ended => ended,
        }
    }

    fn course(&mut self) -> Result<Outcome, TrainError> {
        self.tell(Event::Stage(Stage::Training))?;
        let mut ahead = None;
        loop {
            self.between_steps()?;
            if self.run.is_done() {
                return self.finish();
            }
            let passed = match ahead.take() {
                Some(passed) => passed,
                None => {
                    self.fit()?;
                    self.in_memory(Self::pass)?
                }
            };
            step::update(&self.model, &mut self.run, passed)?;
            self.run.put_into(&mut self.model)?;
            let next = self.ahead();
            let taken = step::hear(&self.model, &mut self.run)?;
            self.report(taken)?;
            self.look_for_unreached()?;
            // whatever became of it, the step before it is told first
            ahead = next?;
        }
    }

    fn pass(&mut self) -> Result<Passed, TrainError> {
        let Thrift { micro_tokens, recompute } = self.thrift;
        let stop = self.stop;
        let is_stopped = || stop.is_asked();
        self.ranks.order(&self.run, (micro_tokens, recompute), &is_stopped)?;
        let runs = std::slice::from_mut(&mut self.run);
        let mut passed = step::pass(&mut self.ranks, &self.model, runs, micro_tokens, &is_stopped)?;
        Ok(passed.pop().expect("one run has one step"))
    }

    /// The passes of the step behind the one under way, unless something is due between the two.
    fn ahead(&mut self) -> Result<Option<Passed>, TrainError> {
        let (step, numbers) = (self.run.state.step + 1, &self.run.numbers);
        let due = step >= numbers.total_steps || numbers.evaluates_after(step) || numbers.saves_after(step);
        // on the processor a step is over when its update is; norms by module are read from the gradient; ranks take each step together
        let waits = !self.model.machine().is_gpu() || self.config.telling.grad_norms || !self.ranks.is_alone();
        if due || waits {
            return Ok(None);
        }
        match self.pass() {
            // it is tried again when the step under way has been told, and then with less
            Err(TrainError::Refused { .. }) => Ok(None),
            passed => passed.map(Some),
        }
    }

    /// A part of the adapter that learns nothing is told early, not after a night.
    fn look_for_unreached(&self) -> Result<(), TrainError> {
        let unreached = self.run.unreached()?;
        match unreached.first() {
            Some(tensor) => {
                let (step, count) = (self.run.state.step, unreached.len());
                Err(TrainError::Unreached { step, tensor: tensor.clone(), count })
            }
            None => Ok(()),
        }
    }

    /// Everything that is due after a step; [`TrainError::Stopped`] when told to stop.
    fn between_steps(&mut self) -> Result<(), TrainError> {
        let mut best = false;
        if self.run.numbers.evaluates_after(self.run.state.step) && !self.run.state.is_evaluated() {
            best = self.evaluate()?;
            self.sample()?;
        }
        if let Some(kind) = self.kind_to_save(best) {
            self.save(kind)?;
        }
        if self.stop.is_asked() { Err(TrainError::Stopped) } else { Ok(()) }
    }

    /// Evaluates the held-out split, if there is one; whether it is the best so far.
    fn evaluate(&mut self) -> Result<bool, TrainError> {
        if self.data.validation.is_empty() {
            return Ok(false);
        }
        self.tell(Event::Stage(Stage::Validating))?;
        let began = Instant::now();
        let sum = self.held_out_loss(true)?;
        let loss = sum.sum / sum.count as f64;
        if !loss.is_finite() {
            let (step, checkpoint) = (self.run.state.step, self.saved.map(checkpoint::name));
            return Err(TrainError::NotFinite { step, what: "held-out loss", value: loss, checkpoint });
        }
        if self.run.state.step == 0 {
            // a fresh adapter changes nothing, and what trains the model itself begins with it
            let base = if self.config.init_adapter.is_some() { self.held_out_loss(false)? } else { sum };
            self.run.state.base_loss = Some(base.sum / base.count as f64).filter(|loss| loss.is_finite());
        }
        let state = &mut self.run.state;
        let (step, base_loss) = (state.step, state.base_loss);
        state.evals.push(EvalPoint { step, loss });
        let best = state.best().is_some_and(|point| point.step == step);
        if best {
            self.run.keep_best()?;
        }
        let state = &self.run.state;
        let (epoch, seconds) = (state.cursor.epochs(self.run.numbers.examples), began.elapsed().as_secs_f64());
        let perplexity = loss.exp();
        self.tell(Event::Eval(Eval { step, epoch, loss, perplexity, base_loss, tokens: sum.count, seconds }))?;
        self.tell(Event::Stage(Stage::Training))?;
        Ok(best)
    }

    fn held_out_loss(&mut self, adapted: bool) -> Result<LossSum, TrainError> {
        let stop = self.stop;
        self.in_memory(|session| {
            let (view, examples) = (session.run.view().filter(|_| adapted), &session.data.validation);
            eval::evaluate(&session.model, view, examples, session.thrift.micro_tokens, &|| stop.is_asked())
        })
    }

    fn kind_to_save(&self, best: bool) -> Option<CheckpointKind> {
        let step = self.run.state.step;
        if step == 0 {
            return None;
        }
        let told = self.stop.take_save_now();
        if self.saved == Some(step) {
            return None;
        }
        if self.run.is_done() {
            Some(CheckpointKind::Final)
        } else if best {
            Some(CheckpointKind::Best)
        } else if self.run.numbers.saves_after(step) || self.saved_at.elapsed() >= self.config.save_interval {
            Some(CheckpointKind::Periodic)
        } else {
            told.then_some(CheckpointKind::Emergency)
        }
    }

    fn save(&mut self, kind: CheckpointKind) -> Result<String, TrainError> {
        let (dir, stop) = (self.config.out.join("checkpoints"), self.stop);
        let abandon = || stop.is_discarded();
        let plan = (self.thrift.micro_tokens, self.thrift.recompute);
        // whoever finds the checkpoint goes on from it, whether it was told of or not
        record::sync(&self.config.out)?;
        let found = checkpoint::save(&dir, &self.run, plan, &self.identity, kind, &abandon)?;
        let state = &self.run.state;
        let (step, loss, best) = (state.step, state.last_loss.unwrap_or_default(), state.best());
        let last = if self.run.is_done() { step } else { self.run.numbers.total_steps };
        (self.saved, self.saved_at) = (Some(step), Instant::now());
        let name = found.name();
        let files = found.manifest.files;
        self.tell(Event::Checkpoint(Checkpoint { step, loss, kind, name: name.clone(), files }))?;
        checkpoint::prune(&dir, best.map(|point| point.step), last)?;
        Ok(name)
    }

    fn report(&mut self, taken: Taken) -> Result<(), TrainError> {
        match taken {
            Taken::Done(step) => {
                self.tell(Event::Step(step))?;
                if self.config.telling.grad_norms {
                    let norms = self.run.grad_norms()?;
                    self.tell(Event::GradNorms { step: step.step, norms })?;
                }
                Ok(())
            }
            Taken::NotFinite { what, value } => {
                let checkpoint = self.saved_now()?;
                Err(TrainError::NotFinite { step: self.run.state.step + 1, what, value, checkpoint })
            }
        }
    }

    fn stopped(&mut self) -> Result<Outcome, TrainError> {
        let checkpoint = match self.stop.wish() {
            Wish::Discard => None,
            Wish::Run | Wish::SaveAndStop => match self.saved_now() {
                // Told to discard while it was saving.
                Err(TrainError::Stopped) => None,
                saved => saved?,
            },
        };
        Ok(Outcome::Stopped { step: self.run.state.step, checkpoint })
    }

    /// The checkpoint that holds the state as it is, made if need be; none before the first step.
    fn saved_now(&mut self) -> Result<Option<String>, TrainError> {
        let step = self.run.state.step;
        match self.saved {
            _ if step == 0 => Ok(None),
            Some(saved) if saved == step => Ok(Some(checkpoint::name(step))),
            _ => self.save(CheckpointKind::Emergency).map(Some),
        }
    }

    fn finish(&mut self) -> Result<Outcome, TrainError> {
        self.tell(Event::Stage(Stage::Saving))?;
        let stop = self.stop;
        let files = export::write_adapter(self.config, &self.run, (&self.data.report, &self.identity), &|| {
            stop.is_discarded()
        })?;
        Ok(Outcome::Finished { step: self.run.state.step, files })
    }

    fn tell(&mut self, event: Event) -> Result<(), TrainError> {
        (self.events)(event).map_err(TrainError::Report)
    }
}
