//! Rotary positions: within the first r columns of a head, the pair (i, i + r/2) at position p is turned by the angle p · ωᵢ and
//! multiplied by a factor (1 in most models). r is the head's width, or a part of it.
//!
//! The gradient of a rotation is the rotation back. Positions count from 0 in every segment. Angles are rounded to `f32` as
//! the reference implementation rounds them: at position 10,000 a more exact table would be a different model. Where the
//! frequencies depend on the length of the sequence (dynamic, longrope), the sequence is the segment: what else is in the
//! micro-batch does not matter.

use std::collections::BTreeMap;
use std::f64::consts::TAU;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use lorikeet_plan::{Rope, RopeScaling};
use rayon::prelude::*;

use super::attention::Heads;
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

/// Angular frequencies for a sequence of `len` tokens, one per pair of `width` turned columns.
pub fn frequencies(rope: &Rope, width: usize, len: usize) -> Vec<f32> {
    let half = width / 2;
    let of_base = |theta: f64| move |i: usize| theta.powf(-(i as f64) / half as f64);
    let plain = of_base(rope.theta);
    match &rope.scaling {
        None => (0..half).map(|i| plain(i) as f32).collect(),
        Some(RopeScaling::Linear { factor }) => (0..half).map(|i| (plain(i) / factor) as f32).collect(),
        Some(RopeScaling::Dynamic { factor, max_position_embeddings }) => {
            let grown = len.max(*max_position_embeddings) as f64 / *max_position_embeddings as f64;
            let power = width as f64 / (width as f64 - 2.0);
            let stretched = of_base(rope.theta * (factor * grown - (factor - 1.0)).powf(power));
            (0..half).map(|i| stretched(i) as f32).collect()
        }
        Some(RopeScaling::Yarn { factor, .. }) => {
            let ramp = yarn_ramp(rope, width);
            (0..half).map(|i| (plain(i) * (ramp(i) / factor + 1.0 - ramp(i))) as f32).collect()
        }
        Some(RopeScaling::Llama3 { .. }) => (0..half).map(|i| llama3(plain(i) as f32, rope)).collect(),
        Some(RopeScaling::Longrope { short_factor, long_factor, original_max_position_embeddings, .. }) => {
            let factors = if len > *original_max_position_embeddings { long_factor } else { short_factor };
            factors.iter().enumerate().map(|(i, factor)| (plain(i) / factor) as f32).collect()
        }
    }
}

/// How much of a pair's frequency is divided: 0 for the fast ones, 1 for the slow.
fn yarn_ramp(rope: &Rope, width: usize) -> impl Fn(usize) -> f64 {
    let Some(RopeScaling::Yarn { beta_fast, beta_slow, original_max_position_embeddings, truncate, .. }) = rope.scaling
    else {
        unreachable!("asked of a yarn rope only")
    };
    // the pair that turns so often over the first training length
    let pair = |turns: f64| {
        width as f64 * (original_max_position_embeddings as f64 / (turns * TAU)).ln() / (2.0 * rope.theta.ln())
    };
    let (low, high) = (pair(beta_fast), pair(beta_slow));
    let (low, high) = if truncate { (low.floor(), high.ceil()) } else { (low, high) };
    let (low, high) = (low.max(0.0), high.min(width as f64 - 1.0));
    let high = if low == high { high + 0.001 } else { high };
    move |i| ((i as f64 - low) / (high - low)).clamp(0.0, 1.0)
}

fn llama3(frequency: f32, rope: &Rope) -> f32 {
    let Some(RopeScaling::Llama3 {
        factor,
        low_freq_factor: low,
        high_freq_factor: high,
        original_max_position_embeddings: original,
    }) = rope.scaling
    else {
        unreachable!("asked of a llama3 rope only")
    };
    let exact = f64::from(frequency);
    let wave = TAU / exact;
    // 0: a long wave, divided; 1: a short one, kept; a ramp between
    let kept = ((original as f64 / wave - low) / (high - low)).clamp(0.0, 1.0);
    ((1.0 - kept) * exact / factor + kept * exact) as f32
}

/// A length of that class.
fn length_of(rope: &Rope, class: usize) -> usize {
    match rope.scaling {
        Some(RopeScaling::Longrope { .. }) if class > 0 => usize::MAX,
        Some(RopeScaling::Longrope { .. } | RopeScaling::Dynamic { .. }) => class,
        None | Some(RopeScaling::Linear { .. } | RopeScaling::Yarn { .. } | RopeScaling::Llama3 { .. }) => 0,
    }
}

/// What cosines and sines are multiplied by.
fn attention_factor(rope: &Rope) -> f64 {
    match rope.scaling {
        Some(RopeScaling::Yarn { attention_factor, .. } | RopeScaling::Longrope { attention_factor, .. }) => {
            attention_factor
        }
        None | Some(RopeScaling::Linear { .. } | RopeScaling::Dynamic { .. } | RopeScaling::Llama3 { .. }) => 1.0,
    }
}

/// Sequences of lengths with the same answer have the same frequencies.
pub(crate) fn length_class(rope: &Rope, len: usize) -> usize {
    match rope.scaling {
        Some(RopeScaling::Dynamic { max_position_embeddings, .. }) => len.max(max_position_embeddings),
        Some(RopeScaling::Longrope { original_max_position_embeddings, .. }) => {
            usize::from(len > original_max_position_embeddings)
        }
        None | Some(RopeScaling::Linear { .. } | RopeScaling::Yarn { .. } | RopeScaling::Llama3 { .. }) => 0,
    }
}

/// Cosines and sines of positions, by one rope.
#[derive(Debug)]
pub struct Tables {
    half: usize,
    cos: Vec<f32>,
    sin: Vec<f32>,
    /// Of each class of lengths: the row of its first position, and how many there are.
    classes: BTreeMap<usize, (u32, usize)>,
}

impl Tables {
    fn empty(width: usize) -> Tables {
        Tables { half: width / 2, cos: Vec::new(), sin: Vec::new(), classes: BTreeMap::new() }
    }

    /// Of the longest sequence of each class, and some more, so that one that grows does not make them anew with every token.
    fn new(rope: &Rope, width: usize, longest: &BTreeMap<usize, usize>) -> Tables {
        let mut tables = Tables::empty(width);
        for (class, len) in longest {
            let positions = len.next_multiple_of(POSITIONS);
            tables.classes.insert(*class, ((tables.cos.len() / tables.half) as u32, positions));
            tables.push(&frequencies(rope, width, length_of(rope, *class)), 0..positions, attention_factor(rope));
        }
        tables
    }

    fn push(&mut self, frequencies: &[f32], positions: Range<usize>, factor: f64) {
        for p in positions {
            let angles = frequencies.iter().map(|w| f64::from(p as f32 * w));
            let (cos, sin): (Vec<_>, Vec<_>) =
                angles.map(|angle| ((angle.cos() * factor) as f32, (angle.sin() * factor) as f32)).unzip();
            self.cos.extend(cos);
            self.sin.extend(sin);
        }
    }

    fn positions_of(&self, class: usize) -> usize {
        self.classes.get(&class).map_or(0, |(_, positions)| *positions)
    }

    /// Pairs that turn in a head.
    pub fn pairs(&self) -> usize {
        self.half
    }

    /// Cosines and sines, [`Self::pairs`] a row.
    pub fn numbers(&self) -> [&[f32]; 2] {
        [&self.cos, &self.sin]
    }
}

/// The tables of one rope that passes share: made anew when a sequence is longer than any before.
#[derive(Debug, Default)]
pub struct Known(Mutex<Option<Arc<Tables>>>);

/// Tables grow by so many positions.
const POSITIONS: usize = 256;

/// Classes that are remembered at once. Where every length is one of its own (dynamic), no more than a pass needs are.
const REMEMBERED: usize = 4;

impl Known {
    fn tables(&self, rope: &Rope, width: usize, mut longest: BTreeMap<usize, usize>) -> Arc<Tables> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(tables) = &*known {
            if longest.iter().all(|(class, len)| tables.positions_of(*class) >= *len) {
                return Arc::clone(tables);
            }
            if tables.classes.len() + longest.len() <= REMEMBERED {
                for (class, (_, positions)) in &tables.classes {
                    longest.entry(*class).and_modify(|len| *len = (*len).max(*positions)).or_insert(*positions);
                }
            }
        }
        Arc::clone(known.insert(Arc::new(Tables::new(rope, width, &longest))))
    }
}

/// The rotation of every row of a pass, by one rope.
#[derive(Debug, Clone)]
pub struct Rotations {
    tables: Arc<Tables>,
    /// Every row's place in the tables.
    places: Vec<u32>,
}

impl Rotations {
    /// For segments of these lengths, one after another, of whose heads `width` columns turn.
    pub fn new(rope: &Rope, width: usize, lengths: &[usize], known: &Known) -> Rotations {
        let mut longest: BTreeMap<usize, usize> = BTreeMap::new();
        for len in lengths {
            let longest = longest.entry(length_class(rope, *len)).or_default();
            *longest = (*longest).max(*len);
        }
        let tables = known.tables(rope, width, longest);
        let of = |len: &usize| {
            let (begin, _) = tables.classes[&length_class(rope, *len)];
            begin..begin + *len as u32
        };
        let places = lengths.iter().flat_map(of).collect();
        Rotations { tables, places }
    }

    /// For these positions of one sequence of `len` tokens.
    pub fn of(rope: &Rope, width: usize, positions: Range<usize>, len: usize, known: &Known) -> Rotations {
        let class = length_class(rope, len);
        let tables = known.tables(rope, width, BTreeMap::from([(class, len)]));
        let (begin, _) = tables.classes[&class];
        let places = positions.map(|position| begin + position as u32).collect();
        Rotations { tables, places }
    }

    /// Cosines and sines, and every row's place among them: for a device that turns rows itself.
    pub fn tables(&self) -> (&Arc<Tables>, &[u32]) {
        (&self.tables, &self.places)
    }

    fn row(&self, place: u32) -> (&[f32], &[f32]) {
        let Tables { half, cos, sin, .. } = &*self.tables;
        let place = place as usize * half..(place as usize + 1) * half;
        (&cos[place.clone()], &sin[place])
    }
}

/// Turns the leading columns of one head in place, plainly.
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

/// Turns the query and key heads of every row.
pub fn turn(heads: Heads, rotations: &Rotations, qkv: &mut [f32], turn: Turn) {
    let rows = qkv.par_chunks_mut(heads.stride()).zip(&rotations.places);
    rows.with_min_len(16).for_each(|(row, place)| {
        let (cos, sin) = rotations.row(*place);
        simd::wide(
            #[inline(always)]
            || {
                for head in row[..heads.turned()].chunks_exact_mut(heads.width) {
                    turn_head(&mut head[..2 * cos.len()], cos, sin, turn);
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
        // the last two columns do not turn
        let (x, dy, angle) = (numbers(1, 10), numbers(2, 10), numbers(3, 4));
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
        let heads = Heads { queries: 2, keys: 1, width: 8, scale: 1.0, softcap: None, window: None };
        for width in [8, 6] {
            let rotations = Rotations::new(&rope(None), width, &[3, 9], &Known::default());
            for way in [Turn::Forth, Turn::Back] {
                let start = numbers32(1, 12 * heads.stride());
                let mut ours = start.clone();
                turn(heads, &rotations, &mut ours, way);
                let mut expected = start;
                for (row, place) in expected.chunks_mut(heads.stride()).zip([0, 1, 2, 0, 1, 2, 3, 4, 5, 6, 7, 8]) {
                    let (cos, sin) = rotations.row(place);
                    row[..24].chunks_mut(8).for_each(|head| turn_plain(&mut head[..width], cos, sin, way));
                }
                assert_close("rows", &ours, &expected, 1e-6);
            }
        }
    }

    #[test]
    fn a_segment_turns_by_its_own_length_whatever_lies_beside_it() {
        let scalings = [
            RopeScaling::Dynamic { factor: 2.0, max_position_embeddings: 4 },
            RopeScaling::Longrope {
                short_factor: vec![1.0, 1.0],
                long_factor: vec![2.0, 3.0],
                original_max_position_embeddings: 4,
                attention_factor: 1.25,
            },
        ];
        for scaling in scalings {
            let rope = rope(Some(scaling));
            let known = Known::default();
            let together = Rotations::new(&rope, 4, &[9, 3, 6, 9], &known);
            let (mut at, mut seen) = (0, Vec::new());
            for len in [9, 3, 6, 9] {
                let alone = Rotations::new(&rope, 4, &[len], &Known::default());
                let again = Rotations::new(&rope, 4, &[len], &known);
                assert!(Arc::ptr_eq(&together.tables, &again.tables), "nothing is made twice");
                for i in 0..len {
                    let expected = alone.row(alone.places[i]);
                    assert_eq!(together.row(together.places[at + i]), expected, "{len}, {i}");
                    assert_eq!(again.row(again.places[i]), expected, "{len}, {i}");
                }
                seen.push(alone.row(alone.places[2]).0.to_vec());
                at += len;
            }
            assert_ne!(seen[0], seen[1], "long and short differ");
        }
    }

    #[test]
    fn tables_grow_with_what_passes_need_and_no_further() {
        let (rope, known) =
            (rope(Some(RopeScaling::Dynamic { factor: 2.0, max_position_embeddings: 4 })), Known::default());
        let classes = |lengths: &[usize]| Rotations::new(&rope, 4, lengths, &known).tables.classes.clone();
        assert_eq!(classes(&[3]), [(4, (0, 256))].into());
        assert_eq!(classes(&[2, 600]), [(4, (0, 256)), (600, (256, 768))].into());
        assert_eq!(classes(&[4]), [(4, (0, 256)), (600, (256, 768))].into());
        let others = [(7, (0, 256)), (8, (256, 256)), (9, (512, 256))];
        assert_eq!(classes(&[7, 8, 9]), others.into(), "each length is one of its own");
    }

    #[test]
    fn llama3_divides_long_waves_keeps_short_ones_and_ramps_between() {
        let rope = rope(Some(RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 100,
        }));
        let of_wave = |wave: f64| f64::from(llama3((TAU / wave) as f32, &rope)) * wave / TAU;
        assert!((of_wave(20.0) - 1.0).abs() < 1e-6);
        assert!((of_wave(101.0) - 0.125).abs() < 1e-6);
        // halfway: 100 / 40 = 2.5 lies in the middle of 1..4
        assert!((of_wave(40.0) - (0.5 + 0.5 / 8.0)).abs() < 1e-6);
    }

    #[test]
    fn linear_divides_every_frequency_and_partial_width_counts_its_own_pairs() {
        let plain = frequencies(&rope(None), 8, 1);
        let linear = frequencies(&rope(Some(RopeScaling::Linear { factor: 4.0 })), 8, 1);
        assert!(plain.iter().zip(&linear).all(|(plain, linear)| plain / 4.0 == *linear));
        assert_eq!(frequencies(&rope(None), 4, 1), [1.0, 0.01]);
    }

    fn rope(scaling: Option<RopeScaling>) -> Rope {
        Rope { theta: 10_000.0, scaling }
    }
}
