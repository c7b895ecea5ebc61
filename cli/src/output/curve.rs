//! The loss curve: a ratatui chart drawn into a buffer and read out as lines of text, so that it fits under a progress bar
//! and into a log alike.

use ratatui::{
    buffer::Buffer,
    layout::Rect,
    symbols::Marker,
    widgets::{Axis, Chart, Dataset, GraphType, Widget},
};

/// Points that are drawn at most: more than twice the dots of the widest chart, so that thinning cannot be seen.
const MOST_POINTS: usize = 400;

/// Losses by step, in the order in which they came.
#[derive(Debug, Clone, Default)]
pub(crate) struct Curve {
    points: Vec<(f64, f64)>,
}

impl Curve {
    /// One more step. A step that is trained again, after a restart, takes the place of what followed it.
    pub(crate) fn push(&mut self, step: u64, loss: f64) {
        let step = step as f64;
        if !loss.is_finite() {
            return;
        }
        self.points.truncate(self.points.partition_point(|&(known, _)| known < step));
        self.points.push((step, loss));
    }

    /// Lines of a chart, without colours; empty before the second point.
    pub(crate) fn draw(&self, width: u16, height: u16) -> Vec<String> {
        let (Some(&(first, _)), Some(&(last, _))) = (self.points.first(), self.points.last()) else {
            return Vec::new();
        };
        if self.points.len() < 2 || width < 20 || height < 3 {
            return Vec::new();
        }
        let points = self.thinned();
        let (low, high) = bounds(&points);
        let dataset = Dataset::default().marker(Marker::Braille).graph_type(GraphType::Line).data(&points);
        let x_axis = Axis::default().bounds([first, last]).labels([format!("{first}"), format!("{last}")]);
        let y_axis = Axis::default().bounds([low, high]).labels([format!("{low:.2}"), format!("{high:.2}")]);
        let area = Rect::new(0, 0, width, height);
        let mut buffer = Buffer::empty(area);
        Chart::new(vec![dataset]).x_axis(x_axis).y_axis(y_axis).render(area, &mut buffer);
        (0..height).map(|row| line(&buffer, row, width)).collect()
    }

    /// The mean of each run of neighbours, so that a long curve stays cheap to draw.
    fn thinned(&self) -> Vec<(f64, f64)> {
        let run = self.points.len().div_ceil(MOST_POINTS).max(1);
        let mean = |run: &[(f64, f64)]| {
            let sum = run.iter().fold((0.0, 0.0), |sum, point| (sum.0 + point.0, sum.1 + point.1));
            (sum.0 / run.len() as f64, sum.1 / run.len() as f64)
        };
        self.points.chunks(run).map(mean).collect()
    }
}

/// Lowest and highest loss; a flat curve gets some room.
fn bounds(points: &[(f64, f64)]) -> (f64, f64) {
    let losses = || points.iter().map(|&(_, loss)| loss);
    let (low, high) = (losses().fold(f64::INFINITY, f64::min), losses().fold(f64::NEG_INFINITY, f64::max));
    if high - low < 1e-9 { (low - 0.5, high + 0.5) } else { (low, high) }
}

fn line(buffer: &Buffer, row: u16, width: u16) -> String {
    let text: String = (0..width).map(|column| buffer[(column, row)].symbol()).collect();
    text.trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_falling_loss_is_drawn_from_the_upper_left_to_the_lower_right() {
        let mut curve = Curve::default();
        (0..50).for_each(|step| curve.push(step, 5.0 - 0.08 * step as f64));
        let lines = curve.draw(40, 8);
        assert_eq!(lines.len(), 8);
        assert!(lines[0].starts_with("5.00") && lines.iter().any(|line| line.starts_with("1.08")), "{lines:#?}");
        let column = |line: &str| line.chars().position(|c| ('\u{2801}'..='\u{28ff}').contains(&c)).unwrap();
        assert!(column(&lines[0]) < column(&lines[3]) && column(&lines[3]) < column(&lines[5]), "{lines:#?}");
    }

    #[test]
    fn there_is_nothing_to_draw_before_the_second_step() {
        let mut curve = Curve::default();
        assert!(curve.draw(40, 8).is_empty());
        curve.push(1, 3.0);
        assert!(curve.draw(40, 8).is_empty());
        curve.push(2, f64::NAN);
        assert!(curve.draw(40, 8).is_empty());
        curve.push(2, 3.0);
        assert_eq!(curve.draw(40, 8).len(), 8, "a flat curve is a curve");
        assert!(curve.draw(5, 8).is_empty(), "too narrow for its labels");
    }

    #[test]
    fn a_step_that_is_trained_again_is_drawn_once() {
        let mut curve = Curve::default();
        for step in [1, 2, 3, 4, 3, 4, 5] {
            curve.push(step, step as f64);
        }
        assert_eq!(curve.points.iter().map(|point| point.0).collect::<Vec<_>>(), [1.0, 2.0, 3.0, 4.0, 5.0]);
    }

    #[test]
    fn ten_thousand_steps_are_thinned_without_losing_the_ends() {
        let mut curve = Curve::default();
        (1..=10_000).for_each(|step| curve.push(step, 1.0 / step as f64));
        assert!(curve.thinned().len() <= MOST_POINTS);
        assert!(curve.draw(60, 8).iter().any(|line| line.contains("10000")));
    }
}
