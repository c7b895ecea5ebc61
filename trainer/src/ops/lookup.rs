//! The embedding's backward: of an adapter on it, and of its table where the model itself is trained (`dE[token] += s · dy`).
//!
//! The adapter's product on the embedding: `y += s · B a`, a the column of A that belongs to the token. A: [rank, vocabulary].
//!
//! `u` is that column for every token, [tokens, rank]. With `t = s · dy B`: `dB += s · dyᵀ u`, and `t` is added to the columns of dA.
//! A padding token gets no gradient where it is looked up, neither in the table nor in A, as with PyTorch's `padding_idx`.

use super::lora::{Pair, PairGradient};
use super::matmul::{View, ViewMut};
use super::real::Real;

/// `y` added to, plainly.
pub fn forward_plain<R: Real>(pair: Pair<'_, R>, tokens: &[u32], y: &mut [R]) {
    let (vocabulary, width) = (pair.a.len() / pair.rank, pair.b.len() / pair.rank);
    for (token, y) in tokens.iter().zip(y.chunks_mut(width)) {
        for (y, b) in y.iter_mut().zip(pair.b.chunks(pair.rank)) {
            let of = |(r, b): (usize, &R)| *b * pair.a[r * vocabulary + *token as usize];
            *y += pair.scale * b.iter().enumerate().map(of).sum();
        }
    }
}

/// Adds to both gradients, plainly.
pub fn backward_plain<R: Real>(
    pair: Pair<'_, R>,
    (tokens, padding): (&[u32], Option<u32>),
    dy: &[R],
    gradient: &mut PairGradient<'_, R>,
) {
    let (rank, vocabulary, width) = (pair.rank, pair.a.len() / pair.rank, pair.b.len() / pair.rank);
    for (token, dy) in tokens.iter().zip(dy.chunks(width)) {
        for r in 0..rank {
            let at = r * vocabulary + *token as usize;
            for (o, dy) in dy.iter().enumerate() {
                if padding != Some(*token) {
                    gradient.a[at] += pair.scale * *dy * pair.b[o * rank + r]; // mutate: flip
                }
                gradient.b[o * rank + r] += pair.scale * *dy * pair.a[at]; // mutate: flip
            }
        }
    }
}

/// A's columns of `tokens`, as rows.
fn columns(pair: Pair<'_, f32>, tokens: &[u32]) -> Vec<f32> {
    let vocabulary = pair.a.len() / pair.rank;
    tokens.iter().flat_map(|token| (0..pair.rank).map(move |r| pair.a[r * vocabulary + *token as usize])).collect()
}

/// `y` added to.
pub fn forward(pair: Pair<'_, f32>, tokens: &[u32], y: &mut [f32]) {
    let (rank, width) = (pair.rank, pair.b.len() / pair.rank);
    let u = columns(pair, tokens);
    let mut y = ViewMut::new(y, tokens.len(), width);
    y += View::new(&u, tokens.len(), rank).times(View::new(pair.b, width, rank).t()).scaled(pair.scale);
}

/// Adds to both gradients; tokens in order, so that a token that comes twice is added in one order always.
pub fn backward(
    pair: Pair<'_, f32>,
    (tokens, padding): (&[u32], Option<u32>),
    dy: &[f32],
    gradient: &mut PairGradient<'_, f32>,
) {
    let (rank, vocabulary, width) = (pair.rank, pair.a.len() / pair.rank, pair.b.len() / pair.rank);
    let u = columns(pair, tokens);
    let dy = View::new(dy, tokens.len(), width);
    let mut db = ViewMut::new(gradient.b, width, rank);
    db += dy.t().times(View::new(&u, tokens.len(), rank)).scaled(pair.scale); // mutate: flip
    let mut t = vec![0.0; tokens.len() * rank];
    ViewMut::new(&mut t, tokens.len(), rank).set(dy.times(View::new(pair.b, width, rank)).scaled(pair.scale));
    for (token, t) in tokens.iter().zip(t.chunks(rank)).filter(|(token, _)| padding != Some(**token)) {
        for (r, t) in t.iter().enumerate() {
            gradient.a[r * vocabulary + *token as usize] += t; // mutate: flip
        }
    }
}

/// Adds to the gradient of the table, tokens in order; `scale` is the embedding's factor.
pub fn table_backward(
    (tokens, padding): (&[u32], Option<u32>),
    dy: &[f32],
    scale: f32,
    width: usize,
    dtable: &mut [f32],
) {
    for (token, dy) in tokens.iter().zip(dy.chunks(width)).filter(|(token, _)| padding != Some(**token)) {
        for (d, dy) in dtable[*token as usize * width..][..width].iter_mut().zip(dy) {
            *d += scale * dy; // mutate: flip
        }
    }
}

/// Where every token of a micro-batch stands, each token once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// The tokens, in order.
    pub tokens: Vec<u32>,
    /// Where the places of each begin among all; one more says where the last end.
    pub starts: Vec<u32>,
    /// Rows of the micro-batch, those of a token in order.
    pub places: Vec<u32>,
}

impl Standing {
    /// Of all tokens but the padding.
    pub fn new(tokens: &[u32], padding: Option<u32>) -> Standing {
        let mut seen: Vec<(u32, u32)> = tokens.iter().copied().zip(0..).collect();
        seen.retain(|(token, _)| padding != Some(*token));
        seen.sort_unstable();
        let mut standing = Standing { tokens: Vec::new(), starts: Vec::new(), places: Vec::new() };
        for (token, place) in seen {
            if standing.tokens.last() != Some(&token) {
                standing.tokens.push(token);
                standing.starts.push(standing.places.len() as u32);
            }
            standing.places.push(place);
        }
        standing.starts.push(standing.places.len() as u32);
        standing
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::*;
    use super::*;

    const TOKENS: [u32; 5] = [3, 0, 3, 6, 1];

    #[test]
    fn the_plain_gradients_equal_finite_differences() {
        let (vocabulary, width, rank, scale) = (7, 4, 2, 1.5);
        let (a, b, dy) = (numbers(1, rank * vocabulary), numbers(2, width * rank), numbers(3, 5 * width));
        let run = |a: &[f64], b: &[f64]| {
            let mut y = vec![0.0; 5 * width];
            forward_plain(Pair { a, b, rank, scale }, &TOKENS, &mut y);
            dot(&dy, &y)
        };
        let (mut da, mut db) = (vec![0.0; a.len()], vec![0.0; b.len()]);
        let mut gradient = PairGradient { a: &mut da, b: &mut db };
        backward_plain(Pair { a: &a, b: &b, rank, scale }, (&TOKENS, None), &dy, &mut gradient);
        assert_gradient("dA", |a| run(a, &b), &a, &da);
        assert_gradient("dB", |b| run(&a, b), &b, &db);
    }

    #[test]
    fn a_table_gets_the_gradient_of_every_place_where_its_token_stands() {
        let mut dtable = vec![1.0; 7 * 2];
        table_backward((&TOKENS, Some(6)), &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0], 0.5, 2, &mut dtable);
        assert_eq!(dtable, [2.5, 3.0, 5.5, 6.0, 1.0, 1.0, 4.0, 5.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0], "6 is padding");
    }

    #[test]
    fn every_token_stands_once_with_its_places_in_order_and_padding_nowhere() {
        let Standing { tokens, starts, places } = Standing::new(&[3, 0, 3, 6, 1, 3, 6], Some(6));
        assert_eq!((tokens, starts, places), (vec![0, 1, 3], vec![0, 1, 2, 5], vec![1, 4, 0, 2, 5]));
        let nothing = Standing::new(&[6], Some(6));
        assert_eq!((nothing.tokens, nothing.starts, nothing.places), (vec![], vec![0], vec![]));
    }

    #[test]
    fn the_cpu_form_equals_the_plain_one() {
        let (vocabulary, width, rank, scale) = (7, 12, 3, 0.5);
        let (a, b, dy) = (numbers32(1, rank * vocabulary), numbers32(2, width * rank), numbers32(3, 5 * width));
        let pair = Pair { a: &a, b: &b, rank, scale };
        let (mut y, mut expected) = (dy.clone(), dy.clone());
        forward(pair, &TOKENS, &mut y);
        forward_plain(pair, &TOKENS, &mut expected);
        assert_close("y", &y, &expected, 1e-6);
        let [mut da, mut db] = [&a, &b].map(|x| numbers32(9, x.len()));
        let (mut da_plain, mut db_plain) = (da.clone(), db.clone());
        let seen = (&TOKENS[..], Some(6));
        backward(pair, seen, &dy, &mut PairGradient { a: &mut da, b: &mut db });
        backward_plain(pair, seen, &dy, &mut PairGradient { a: &mut da_plain, b: &mut db_plain });
        assert_eq!(da[6], numbers32(9, a.len())[6], "a padding token's column stays");
        assert_close("dA", &da, &da_plain, 1e-6);
        assert_close("dB", &db, &db_plain, 1e-6);
    }
}
