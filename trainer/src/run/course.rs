//! The training loss over a whole run in bounded room: for the card's curve, wherever the run went on.

use serde::{Deserialize, Serialize};

/// Points kept at most; enough for a curve as wide as a screen.
const MOST: usize = 512;

/// Losses of every `every`-th step. When there are too many, every other one goes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Course {
    every: u64,
    points: Vec<(u64, f64)>,
}

impl Default for Course {
    fn default() -> Course {
        Course { every: 1, points: Vec::new() }
    }
}

impl Course {
    /// Step and loss, in order.
    pub fn points(&self) -> &[(u64, f64)] {
        &self.points
    }

    pub(super) fn push(&mut self, step: u64, loss: f64) {
        if !(step - 1).is_multiple_of(self.every) {
            return;
        }
        self.points.push((step, loss));
        if self.points.len() > MOST {
            self.every *= 2;
            self.points.retain(|(step, _)| (step - 1).is_multiple_of(self.every));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_run_keeps_evenly_spaced_points() {
        let mut course = Course::default();
        (1..=10_000).for_each(|step| course.push(step, step as f64));
        let points = course.points();
        assert!(points.len() <= MOST && points.len() > MOST / 4, "{}", points.len());
        assert_eq!(points[0].0, 1);
        assert!(points.windows(2).all(|pair| pair[1].0 - pair[0].0 == points[1].0 - points[0].0));
        assert!(points.iter().all(|(step, loss)| *loss == *step as f64));
    }
}
