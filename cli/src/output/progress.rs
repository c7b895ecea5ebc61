//! Progress of something that takes a while: on a terminal a bar and the loss curve, elsewhere a plain line now and then.

use super::{
    curve::Curve,
    say,
    table::{count, size, span},
};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::{
    io::{self, IsTerminal},
    time::{Duration, Instant},
};

/// Between two plain lines, where nobody watches.
const PLAIN_EVERY: Duration = Duration::from_secs(5);
const CURVE_HEIGHT: u16 = 8;

/// How far a training is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Point {
    /// Steps done.
    pub(crate) step: u64,
    /// The last step's loss.
    pub(crate) loss: f64,
    /// The last step's speed.
    pub(crate) tokens_per_second: Option<f64>,
}

/// The display of one training.
pub(crate) struct TrainingProgress {
    bar: ProgressBar,
    curve: Curve,
    total: Option<u64>,
    /// First step seen here and when, for the time left.
    began: Option<(u64, Instant)>,
    spoke: Option<Instant>,
    watched: bool,
}

impl TrainingProgress {
    /// Nothing is drawn before the first word.
    pub(crate) fn new() -> Self {
        let watched = io::stderr().is_terminal();
        let bar = if watched { ProgressBar::new_spinner() } else { ProgressBar::hidden() };
        bar.set_style(style("{spinner} {msg}"));
        Self { bar, curve: Curve::default(), total: None, began: None, spoke: None, watched }
    }

    /// What it is busy with before, between and after steps.
    pub(crate) fn stage(&mut self, text: &str) {
        if self.total.is_none() {
            self.bar.set_message(text.to_owned());
            self.bar.tick();
        }
    }

    /// How many steps it will be.
    pub(crate) fn total(&mut self, steps: u64) {
        if self.total != Some(steps) {
            self.total = Some(steps);
            self.bar.set_length(steps);
            self.bar.set_style(style("{msg}\n{wide_bar} {pos}/{len}  {prefix}"));
        }
    }

    /// One more step.
    pub(crate) fn step(&mut self, point: Point) {
        self.curve.push(point.step, point.loss);
        let (first, since) = *self.began.get_or_insert_with(|| (point.step, Instant::now()));
        let left = time_left(
            point.step - first.min(point.step),
            since.elapsed(),
            self.total.map(|total| total.saturating_sub(point.step)),
        );
        let words = words(&point, left);
        if self.watched {
            let width = 72.min(terminal_width());
            self.bar.set_message(self.curve.draw(width, CURVE_HEIGHT).join("\n"));
            self.bar.set_prefix(words);
            self.bar.set_position(point.step);
        } else if self.spoke.is_none_or(|spoke| spoke.elapsed() >= PLAIN_EVERY) || self.total == Some(point.step) {
            self.spoke = Some(Instant::now());
            say(&format!(
                "step {}{}  {words}",
                point.step,
                self.total.map(|total| format!("/{total}")).unwrap_or_default()
            ));
        }
    }

    /// A word that stays above the bar.
    pub(crate) fn note(&self, text: &str) {
        if self.watched {
            self.bar.suspend(|| say(text));
        } else {
            say(text);
        }
    }

    /// The bar goes; the curve stays.
    pub(crate) fn finish(self) {
        self.bar.finish_and_clear();
        if self.watched {
            let curve = self.curve.draw(72.min(terminal_width()), CURVE_HEIGHT);
            if !curve.is_empty() {
                say(&curve.join("\n"));
            }
        }
    }
}

/// The display of one upload or download.
pub(crate) struct BytesProgress {
    bar: ProgressBar,
}

impl BytesProgress {
    /// `what` of `total` bytes.
    pub(crate) fn new(what: &str, total: u64) -> Self {
        let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
        bar.set_style(style("{msg} {wide_bar} {bytes}/{total_bytes}  {bytes_per_sec}  {eta}"));
        bar.set_message(format!("{what} ({})", size(total)));
        Self { bar }
    }

    /// So many are there.
    pub(crate) fn at(&self, bytes: u64) {
        self.bar.set_position(bytes);
    }

    /// The bar goes.
    pub(crate) fn finish(self) {
        self.bar.finish_and_clear();
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("our own templates are sound").progress_chars("━╸ ")
}

fn words(point: &Point, left: Option<f64>) -> String {
    let mut words = vec![format!("loss {:.4}", point.loss)];
    words.extend(point.tokens_per_second.map(|speed| format!("{} tokens/s", count(speed.round() as u64))));
    words.extend(left.map(|left| format!("{} left", span(left))));
    words.join("  ")
}

/// At the speed seen so far; unknown before the second step.
fn time_left(done: u64, spent: Duration, left: Option<u64>) -> Option<f64> {
    (done > 0).then(|| spent.as_secs_f64() / done as f64).zip(left).map(|(each, left)| each * left as f64)
}

fn terminal_width() -> u16 {
    rustix::termios::tcgetwinsize(io::stderr()).map_or(80, |size| size.ws_col.max(20))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_beside_the_bar_say_loss_speed_and_time_left() {
        let point = Point { step: 10, loss: 2.5, tokens_per_second: Some(1234.4) };
        let left = time_left(9, Duration::from_secs(18), Some(45));
        assert_eq!(words(&point, left), "loss 2.5000  1,234 tokens/s  1 min 30 s left");
        assert_eq!(time_left(0, Duration::from_secs(1), Some(45)), None);
    }
}
