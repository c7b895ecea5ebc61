//! [`crate::ops::lookup`] on the device. A token's column gets the gradients of all places where it stands from one warp, in their order, so
//! that nothing is added with atomics.

use cudarc::driver::{CudaSlice, CudaView, CudaViewMut};
use half::bf16;

use super::lora::Pair;
use super::matmul::{self, Into, Matrix};
use super::{Done, Gpu, GpuError, launch, number, per_number, per_warp};

/// Where every distinct token stands, on the device.
#[derive(Debug)]
pub struct Places {
    /// The tokens; where the places of each begin, and where the last ones end; the places.
    words: CudaSlice<u32>,
    distinct: usize,
}

impl Places {
    /// Of all tokens but padding, which gets no gradient.
    pub fn upload(gpu: &Gpu, tokens: &[u32], padding: Option<u32>) -> Result<Places, GpuError> {
        let mut places: Vec<usize> = (0..tokens.len()).filter(|row| padding != Some(tokens[*row])).collect();
        places.sort_by_key(|row| tokens[*row]);
        let (mut of, mut begins) = (Vec::new(), vec![0]);
        for same in places.chunk_by(|a, b| tokens[*a] == tokens[*b]) {
            of.push(tokens[same[0]]);
            begins.push(begins[begins.len() - 1] + number(same.len()));
        }
        let distinct = of.len();
        let words: Vec<u32> = of.into_iter().chain(begins).chain(places.into_iter().map(number)).collect();
        Ok(Places { words: gpu.upload(&words)?, distinct })
    }

    /// Its three parts.
    fn views(&self) -> [CudaView<'_, u32>; 3] {
        let (begins, places) = (self.distinct, 2 * self.distinct + 1);
        [self.words.slice(..begins), self.words.slice(begins..places), self.words.slice(places..)]
    }
}

/// `y` added to. Tokens lie within the vocabulary; whoever made them has checked that.
pub fn forward(gpu: &Gpu, pair: Pair<'_>, tokens: &[u32], y: &mut CudaViewMut<'_, bf16>) -> Done {
    let u = columns(gpu, pair, tokens)?;
    let u = Matrix::new(gpu, &u.as_view(), tokens.len(), pair.rank);
    let into = Into { stride: y.len() / tokens.len(), scale: pair.scale, keep: 1.0 };
    matmul::product(gpu, u, pair.b(gpu).t(), into, y)
}

/// Adds to the gradients of A and B.
pub fn backward(
    gpu: &Gpu,
    pair: Pair<'_>,
    (tokens, padding): (&[u32], Option<u32>),
    dy: &CudaView<'_, bf16>,
    [da, db]: [&mut CudaViewMut<'_, f32>; 2],
) -> Done {
    let (rows, rank) = (tokens.len(), pair.rank);
    let dy = Matrix::new(gpu, dy, rows, dy.len() / rows);
    let u = columns(gpu, pair, tokens)?;
    let u = Matrix::new(gpu, &u.as_view(), rows, rank);
    matmul::product(gpu, dy.t(), u, Into { stride: rank, scale: pair.scale, keep: 1.0 }, db)?;
    let mut t = gpu.take::<f32>(rows * rank)?;
    matmul::product(gpu, dy, pair.b(gpu), Into { stride: rank, scale: pair.scale, keep: 0.0 }, &mut t.as_view_mut())?;
    let places = Places::upload(gpu, tokens, padding)?;
    let ([tokens, begins, of], distinct) = (places.views(), places.distinct);
    let (shape, [distinct, rank, vocabulary]) = (per_warp(distinct), [distinct, rank, pair.inputs()].map(number));
    launch!(gpu, "lookup_add", shape, &t, &tokens, &begins, &of, da, &distinct, &rank, &vocabulary)
}

/// A's columns of `tokens`, as rows.
fn columns(gpu: &Gpu, pair: Pair<'_>, tokens: &[u32]) -> Result<CudaSlice<bf16>, GpuError> {
    let count = tokens.len() * pair.rank;
    let (tokens, mut u) = (gpu.upload(tokens)?, gpu.take(count)?);
    let [numbers, rank, vocabulary] = [count, pair.rank, pair.inputs()].map(number);
    launch!(gpu, "lookup_columns", per_number(count), pair.a, &tokens, &mut u, &numbers, &rank, &vocabulary)?;
    Ok(u)
}
