//! From steps to progress: the newest numbers, a speed over the last steps, and at most one report in an interval, but for evaluations:
//! these are told at once, with their step.

use lorikeet_protocol::{
    agent::Progress,
    worker::{Plan, Reached, Step},
};
use std::{collections::VecDeque, time::Duration};

/// Steps over which the speed is taken.
const WINDOW: usize = 20;

/// What is known of an attempt's course.
#[derive(Debug, Clone, Default)]
pub(crate) struct Meter {
    total_steps: u64,
    validation_loss: Option<f64>,
    /// Where it goes on from, if not from the start.
    begun: Option<(u64, Reached)>,
    last: Option<Step>,
    window: VecDeque<(u64, f64)>,
    /// When progress was last reported; `None`: never.
    reported: Option<Duration>,
    /// Whether something happened since.
    news: bool,
}

impl Meter {
    /// The plan says how far the way is, and how much of it lies behind.
    pub(crate) fn planned(&mut self, plan: &Plan) {
        self.total_steps = plan.total_steps;
        self.begun = plan.reached.map(|reached| (plan.from_step, reached));
        self.news = self.begun.is_some();
    }

    /// The held-out split was evaluated after the step at which it stands. Before the first there is none to tell it with: it says how good the
    /// base is, not this attempt.
    pub(crate) fn evaluated(&mut self, loss: f64) {
        if self.at().is_some() {
            self.validation_loss = Some(loss);
            self.news = true;
        }
    }

    /// A step was done.
    pub(crate) fn stepped(&mut self, step: Step) {
        self.last = Some(step);
        self.news = true;
        self.window.push_back((step.tokens, step.seconds));
        if self.window.len() > WINDOW {
            self.window.pop_front();
        }
    }

    /// The last whole step of this attempt.
    pub(crate) fn step(&self) -> u64 {
        self.last.map_or(0, |step| step.step)
    }

    /// When the next report is due, if there is something to say.
    pub(crate) fn due(&self, interval: Duration) -> Option<Duration> {
        self.news.then(|| self.reported.map_or(Duration::ZERO, |last| last + interval))
    }

    /// What is to be said now, if anything.
    pub(crate) fn take(&mut self, now: Duration) -> Option<Progress> {
        let (step, reached) = self.at().filter(|_| self.news)?;
        self.news = false;
        self.reported = Some(now);
        let sum = |sum: (u64, f64), one: &(u64, f64)| (sum.0.saturating_add(one.0), sum.1 + one.1);
        let (tokens, seconds) = self.window.iter().fold((0, 0.0), sum);
        let progress = Progress {
            step,
            total_steps: self.total_steps,
            epoch: reached.epoch,
            loss: reached.loss,
            learning_rate: reached.lr,
            tokens_per_second: if seconds > 0.0 { tokens as f64 / seconds } else { 0.0 },
            validation_loss: self.validation_loss,
        };
        can_be(&progress).then_some(progress)
    }

    /// Where it stands, once it has come anywhere.
    fn at(&self) -> Option<(u64, Reached)> {
        let last = self.last.map(|Step { step, epoch, loss, lr, .. }| (step, Reached { epoch, loss, lr }));
        last.or(self.begun)
    }
}

/// A coordinator ends the session of who says what cannot be, and so did those of before for a step beyond the last. A line that says so was damaged, or its
/// plan was: it is passed over, for the other work of this node's sake.
fn can_be(said: &Progress) -> bool {
    let numbers = [said.epoch, said.loss, said.learning_rate, said.tokens_per_second];
    said.step <= said.total_steps && numbers.into_iter().chain(said.validation_loss).all(f64::is_finite)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_that_cannot_be_is_passed_over_and_the_next_that_can_is_said() {
        let mut meter = Meter::default();
        meter.planned(&Plan { total_steps: 10, ..Plan::default() });
        let mut say = |step, lr, at| {
            let (epoch, loss, grad_norm, tokens, supervised_tokens, seconds) = (0.1, 2.0, 1.0, u64::MAX, 1, 0.5);
            meter.stepped(Step { step, epoch, loss, lr, grad_norm, tokens, supervised_tokens, seconds });
            meter.take(Duration::from_secs(at)).map(|progress| progress.step)
        };
        assert_eq!(say(1_000_000_000, 0.1, 1), None, "a line that a disk has damaged");
        assert_eq!(say(2, f64::INFINITY, 2), None);
        assert_eq!(say(3, 0.1, 3), Some(3));
        assert_eq!(Meter::default().take(Duration::ZERO), None);
    }

    #[test]
    fn what_the_base_was_evaluated_at_is_no_loss_of_a_step() {
        let mut meter = Meter::default();
        meter.planned(&Plan { total_steps: 10, ..Plan::default() });
        meter.evaluated(3.0);
        assert_eq!(meter.take(Duration::ZERO), None);
        let (epoch, loss, lr, grad_norm, tokens, supervised_tokens, seconds) = (0.1, 2.0, 0.1, 1.0, 9, 1, 0.5);
        meter.stepped(Step { step: 1, epoch, loss, lr, grad_norm, tokens, supervised_tokens, seconds });
        assert_eq!(meter.take(Duration::ZERO).expect("a step").validation_loss, None);
    }

    #[test]
    fn who_goes_on_stands_where_it_was_left_and_what_is_evaluated_there_is_said() {
        let mut meter = Meter::default();
        let reached = Reached { epoch: 2.0, loss: 0.5, lr: 1e-5 };
        meter.planned(&Plan { total_steps: 60, from_step: 60, reached: Some(reached), ..Plan::default() });
        let said = meter.take(Duration::ZERO).expect("where it stands");
        assert_eq!((said.step, said.epoch, said.loss, said.learning_rate), (60, 2.0, 0.5, 1e-5));
        assert_eq!((said.validation_loss, meter.step()), (None, 0));
        meter.evaluated(0.75);
        let said = meter.take(Duration::ZERO).expect("an evaluation without a step");
        assert_eq!((said.step, said.validation_loss), (60, Some(0.75)));
    }
}
