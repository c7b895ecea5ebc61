//! An adapter on the embedding, with a token that stands in thousands of places: all of some rows, and some numbers of its gradients.

use rayon::prelude::*;

use super::super::case::output;
use super::super::{Answer, Output};
use super::{CUT, Large, ONCE, ROWS, Shape, dot, of_rows};
use crate::ops::cuda::lookup;
use crate::ops::cuda::lora::Pair;

impl Large<'_> {
    pub(super) fn lookup(&mut self) -> Answer<Vec<Output>> {
        const SCALE: f32 = 2.0;
        const OFTEN: u32 = 7;
        let Shape { tokens, hidden: width, vocabulary, rank, .. } = self.shape;
        let [a, b] = [rank * vocabulary, width * rank].map(|n| self.numbers(n, 0.5));
        let [y, dy] = [1.0, 1.0].map(|bound| self.numbers(tokens * width, bound));
        let mut names = self.fresh.below(tokens, vocabulary as u32);
        names.iter_mut().step_by(2).for_each(|token| *token = OFTEN);
        let [on_a, on_b, on_dy] = [&a, &b, &dy].map(|numbers| self.gpu.upload(numbers));
        let (on_a, on_b, on_dy) = (on_a?, on_b?, on_dy?);
        let (sum, [da, db]) = self.twice(|gpu| {
            let (a, b, mut sum) = (on_a.as_view(), on_b.as_view(), gpu.upload(&y)?);
            let pair = Pair { a: &a, b: &b, rank, scale: SCALE };
            let (mut da, mut db) = (gpu.zeros::<f32>(a.len())?, gpu.zeros::<f32>(b.len())?);
            lookup::forward(gpu, pair, &names, &mut sum.as_view_mut())?;
            let gradients = [&mut da.as_view_mut(), &mut db.as_view_mut()];
            lookup::backward(gpu, pair, (&names, None), &on_dy.as_view(), gradients)?;
            Ok((gpu.download(&sum.as_view())?, super::all(gpu, [&da, &db])?))
        })?;
        let column = |r: usize, row: usize| &a[r * vocabulary + names[row] as usize];
        let rows = self.any(tokens, ROWS);
        let number = |row: usize, o: usize| {
            y[row * width + o].to_f64() + f64::from(SCALE) * dot(rank, |r| (column(r, row), &b[o * rank + r]))
        };
        let sum_plain = rows.iter().flat_map(|row| (0..width).map(|o| number(*row, o))).collect();
        // the one that comes again and again, and those of the chosen rows
        let words: Vec<u32> = rows.iter().map(|row| names[*row]).chain([OFTEN]).collect();
        let places: Vec<(usize, u32)> = words.iter().flat_map(|word| (0..rank).map(|r| (r, *word))).collect();
        let up = |row: usize, r: usize| f64::from(SCALE) * dot(width, |o| (&dy[row * width + o], &b[o * rank + r]));
        let of_word = |(r, word): &(usize, u32)| {
            (0..tokens).filter(|row| names[*row] == *word).map(|row| up(row, *r)).sum::<f64>()
        };
        let few = self.any(width * rank, 40);
        let of_b = |place: &usize| {
            let term = |row| (&dy[row * width + place / rank], column(place % rank, row));
            f64::from(SCALE) * dot(tokens, term)
        };
        let da = places.iter().map(|(r, word)| da[r * vocabulary + *word as usize]).collect();
        let db = few.iter().map(|place| db[*place]).collect();
        Ok(vec![
            output("y", of_rows(&sum, &rows, width), sum_plain, ONCE),
            output("dA", da, places.par_iter().map(of_word).collect(), CUT),
            output("dB", db, few.par_iter().map(of_b).collect(), CUT),
        ])
    }
}
