//! Rotary positions: within a head of width d, the pair (i, i + d/2) at position p is turned by the angle p · ωᵢ.
//!
//! The gradient of a rotation is the rotation back. Positions count from 0 in every segment. Angles are rounded to `f32` as
//! the reference implementation rounds them: at position 10,000 a more exact table would be a different model.

use std::f64::consts::TAU;

use lorikeet_plan::{ModelConfig, RopeScaling};
use rayon::prelude::*;

use super::real::Real;
use super::simd;

/// Which way to turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// The forward pass.
    Forth,
    /// The backward pass.
    Back,
}

/// Angular frequencies of a model, one per pair.
pub fn frequencies(config: &ModelConfig) -> Vec<f32> {
    let half = config.head_dim / 2;
    let plain = |i: usize| (1.0 / config.rope_theta.powf(i as f64 / half as f64)) as f32;
    (0..half).map(|i| scaled(plain(i), config.rope_scaling)).collect()
}

fn scaled(frequency: f32, scaling: Option<RopeScaling>) -> f32 {
    let exact = f64::from(frequency);
    match scaling {
        None => frequency,
        Some(RopeScaling::Linear { factor }) => (exact / factor) as f32,
        Some(RopeScaling::Llama3 {
            factor,
            low_freq_factor: low,
            high_freq_factor: high,
            original_max_position_embeddings: original,
        }) => {
            let wave = TAU / exact;
            // 0: a long wave, divided; 1: a short one, kept; a ramp between
            let kept = ((original as f64 / wave - low) / (high - low)).clamp(0.0, 1.0);
            ((1.0 - kept) * exact / factor + kept * exact) as f32
        }
    }
}

/// Cosines and sines of every position and pair.
#[derive(Debug, Clone)]
pub struct Table {
    half: usize,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Table {
    /// For positions `0..positions`.
    pub fn new(frequencies: &[f32], positions: usize) -> Table {
        let angles = (0..positions).flat_map(|p| frequencies.iter().map(move |w| f64::from(p as f32 * w)));
        let (cos, sin) = angles.map(|angle| (angle.cos() as f32, angle.sin() as f32)).unzip();
        Table { half: frequencies.len(), cos, sin }
    }

    fn row(&self, position: usize) -> (&[f32], &[f32]) {
        let place = position * self.half..(position + 1) * self.half;
        (&self.cos[place.clone()], &self.sin[place])
    }
}

/// Turns one head in place, plainly.
pub fn turn_plain<R: Real>(head: &mut [R], cos: &[R], sin: &[R], turn: Turn) {
    let half = cos.len();
    for i in 0..half {
        let (a, b) = (head[i], head[i + half]);
        let (mut along, mut across) = (a * cos[i], b * cos[i]);
        match turn {
            Turn::Forth => {
                along -= b * sin[i];
                across += a * sin[i];
            }
            Turn::Back => {
                along += b * sin[i]; // mutate: flip
                across -= a * sin[i]; // mutate: flip
            }
        }
        (head[i], head[i + half]) = (along, across);
    }
}

/// Turns the first `heads` heads of every row in place. `positions[r]` is row r's; rows are `row_stride` wide.
pub fn turn(rows: &mut [f32], row_stride: usize, heads: usize, table: &Table, positions: &[u32], turn: Turn) {
    let width = 2 * table.half;
    rows.par_chunks_mut(row_stride).zip(positions).with_min_len(16).for_each(|(row, position)| {
        let (cos, sin) = table.row(*position as usize);
        simd::wide(
            #[inline(always)]
            || {
                for head in row[..heads * width].chunks_exact_mut(width) {
                    turn_head(head, cos, sin, turn);
                }
            },
        );
    });
}

#[inline(always)]
fn turn_head(head: &mut [f32], cos: &[f32], sin: &[f32], turn: Turn) {
    let (first, second) = head.split_at_mut(cos.len());
    let sign = match turn {
        Turn::Forth => 1.0,
        Turn::Back => -1.0,
    };
    for (((a, b), cos), sin) in first.iter_mut().zip(second).zip(cos).zip(sin) {
        let sin = sign * sin;
        let (mut along, mut across) = (*a * cos, *b * cos);
        along -= *b * sin; // mutate: flip
        across += *a * sin; // mutate: flip
        (*a, *b) = (along, across);
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::*;
    use super::*;

    #[test]
    fn the_plain_gradient_equals_finite_differences() {
        let (x, dy, angle) = (numbers(1, 8), numbers(2, 8), numbers(3, 4));
        let cos: Vec<f64> = angle.iter().map(|a| (3.0 * a).cos()).collect();
        let sin: Vec<f64> = angle.iter().map(|a| (3.0 * a).sin()).collect();
        let loss = |x: &[f64]| {
            let mut y = x.to_vec();
            turn_plain(&mut y, &cos, &sin, Turn::Forth);
            dot(&dy, &y)
        };
        let mut dx = dy.clone();
        turn_plain(&mut dx, &cos, &sin, Turn::Back);
        assert_gradient("dx", loss, &x, &dx);
    }

    #[test]
    fn the_cpu_form_equals_the_plain_one_and_leaves_other_columns_alone() {
        let table = Table::new(&[1.0, 0.3, 0.05], 9);
        let (heads, stride) = (2, 15);
        for way in [Turn::Forth, Turn::Back] {
            let start = numbers32(1, 4 * stride);
            let mut ours = start.clone();
            let positions = [0, 3, 8, 1];
            turn(&mut ours, stride, heads, &table, &positions, way);
            let mut expected = start;
            for (row, position) in expected.chunks_mut(stride).zip(positions) {
                let (cos, sin) = table.row(position as usize);
                row[..12].chunks_mut(6).for_each(|head| turn_plain(head, cos, sin, way));
            }
            assert_close("rows", &ours, &expected, 1e-6);
        }
    }

    #[test]
    fn llama3_divides_long_waves_keeps_short_ones_and_ramps_between() {
        let scaling = Some(RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 100,
        });
        let of_wave = |wave: f64| f64::from(scaled((TAU / wave) as f32, scaling)) * wave / TAU;
        assert!((of_wave(20.0) - 1.0).abs() < 1e-6);
        assert!((of_wave(101.0) - 0.125).abs() < 1e-6);
        // halfway: 100 / 40 = 2.5 lies in the middle of 1..4
        assert!((of_wave(40.0) - (0.5 + 0.5 / 8.0)).abs() < 1e-6);
        assert_eq!(scaled(0.5, Some(RopeScaling::Linear { factor: 4.0 })), 0.125);
    }
}
