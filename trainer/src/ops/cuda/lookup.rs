//! [`crate::ops::lookup`] on the device. A token's column gets the gradients of all places where it stands from one warp, in their order, so
//! that nothing is added with atomics.

use cudarc::driver::{CudaSlice, CudaView, CudaViewMut};
use half::bf16;

use super::lora::Pair;
use super::matmul::{self, Into, Matrix};
use super::{Done, Gpu, GpuError, launch, number, per_number, per_row, per_warp};
use crate::ops::lookup;

/// Where the tokens of a micro-batch stand, on the device: tokens, where the places of each begin, and places, one list behind another.
#[derive(Debug)]
pub struct Standing {
    lists: CudaSlice<u32>,
    tokens: usize,
}

impl Standing {
    /// That of the host. Tokens lie within the table; whoever made them has checked that.
    pub fn upload(gpu: &Gpu, standing: &lookup::Standing) -> Result<Standing, GpuError> {
        let lookup::Standing { tokens, starts, places } = standing;
        Ok(Standing { lists: gpu.upload(&[&tokens[..], starts, places].concat())?, tokens: tokens.len() })
    }

    /// Its three lists.
    fn views(&self) -> [CudaView<'_, u32>; 3] {
        let (starts, places) = (self.tokens, 2 * self.tokens + 1);
        [self.lists.slice(..starts), self.lists.slice(starts..places), self.lists.slice(places..)]
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
    let standing = Standing::upload(gpu, &lookup::Standing::new(tokens, padding))?;
    let ([tokens, starts, places], distinct) = (standing.views(), standing.tokens);
    let (shape, [distinct, rank, vocabulary]) = (per_warp(distinct), [distinct, rank, pair.inputs()].map(number));
    launch!(gpu, "lookup_add", shape, &t, &tokens, &starts, &places, da, &distinct, &rank, &vocabulary)
}

/// A's columns of `tokens`, as rows.
fn columns(gpu: &Gpu, pair: Pair<'_>, tokens: &[u32]) -> Result<CudaSlice<bf16>, GpuError> {
    let count = tokens.len() * pair.rank;
    let (tokens, mut u) = (gpu.upload(tokens)?, gpu.take(count)?);
    let [numbers, rank, vocabulary] = [count, pair.rank, pair.inputs()].map(number);
    launch!(gpu, "lookup_columns", per_number(count), pair.a, &tokens, &mut u, &numbers, &rank, &vocabulary)?;
    Ok(u)
}

/// Adds `scale` times the rows of `dy` to the rows of the table's gradient that belong to their tokens.
pub fn table_backward(
    gpu: &Gpu,
    standing: &Standing,
    dy: &CudaView<'_, bf16>,
    scale: f32,
    width: usize,
    dtable: &mut CudaViewMut<'_, f32>,
) -> Done {
    assert!(dy.len() % width == 0 && dtable.len() % width == 0, "whole rows of {width}");
    let [of, starts, places] = standing.views();
    let blocks = per_row(standing.tokens, width);
    launch!(gpu, "table_add", blocks, dy, &of, &starts, &places, dtable, &number(width), &scale)
}
