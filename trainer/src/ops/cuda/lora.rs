//! [`crate::ops::lora`] on the device: what a product adds to lies there already (k = 1 in `matmul.rs`).
//!
//! A and B are trained in `f32`; the products take bf16 copies, made once per step. Gradients are summed in `f32`. Where there is
//! dropout, the products that it is part of are our own (`lora.cu`): a masked copy of the input, made for cuBLASLt, would be written and
//! read three times in a step, and the input itself is what such a product takes its time for.

mod masked;

use cudarc::driver::{CudaView, CudaViewMut};
use half::bf16;

use super::dropout::Kept;
use super::matmul::{self, Into, Matrix};
use super::{Done, Gpu};
use crate::ops::lora::Columns;

/// A and B of one module, as products take them.
#[derive(Debug, Clone, Copy)]
pub struct Pair<'a> {
    /// `[rank, inputs]`.
    pub a: &'a CudaView<'a, bf16>,
    /// `[outputs, rank]`.
    pub b: &'a CudaView<'a, bf16>,
    /// Rows of A.
    pub rank: usize,
    /// The factor s.
    pub scale: f32,
}

impl Pair<'_> {
    pub(super) fn inputs(&self) -> usize {
        self.a.len() / self.rank
    }

    fn a(&self, gpu: &Gpu) -> Matrix {
        Matrix::new(gpu, self.a, self.rank, self.inputs())
    }

    pub(super) fn b(&self, gpu: &Gpu) -> Matrix {
        Matrix::new(gpu, self.b, self.b.len() / self.rank, self.rank)
    }
}

/// One run of tokens: the input, and its dropout if there is any.
#[derive(Debug, Clone, Copy)]
pub struct Input<'a> {
    /// `[tokens, inputs]`.
    pub x: &'a CudaView<'a, bf16>,
    /// What is kept of it.
    pub kept: Option<&'a Kept>,
}

/// `u`, and the module's columns of `y` added to.
pub fn forward(
    gpu: &Gpu,
    pair: Pair<'_>,
    input: Input<'_>,
    u: &mut CudaViewMut<'_, bf16>,
    y: &mut CudaViewMut<'_, bf16>,
    columns: Columns,
) -> Done {
    down(gpu, pair, input, u)?;
    let into = Into { stride: columns.stride, scale: pair.scale, keep: 1.0 };
    up(gpu, pair, &u.as_view(), into, &mut y.slice_mut(columns.first..))
}

/// `u = (x∘m) Aᵀ`.
pub(super) fn down(gpu: &Gpu, pair: Pair<'_>, Input { x, kept }: Input<'_>, u: &mut CudaViewMut<'_, bf16>) -> Done {
    let tokens = x.len() / pair.inputs();
    match kept {
        None => matmul::set(gpu, Matrix::new(gpu, x, tokens, pair.inputs()), pair.a(gpu).t(), u),
        Some(kept) => masked::down(gpu, pair, (x, kept), u),
    }
}

/// `u Bᵀ`, landing as `into` says.
pub(super) fn up(gpu: &Gpu, pair: Pair<'_>, u: &CudaView<'_, bf16>, into: Into, y: &mut CudaViewMut<'_, bf16>) -> Done {
    let u = Matrix::new(gpu, u, u.len() / pair.rank, pair.rank);
    matmul::product(gpu, u, pair.b(gpu).t(), into, y)
}

/// Adds to the gradients of A and B and, where one is wanted, of x.
pub fn backward(
    gpu: &Gpu,
    pair: Pair<'_>,
    Input { x, kept }: Input<'_>,
    (u, dy, columns): (&CudaView<'_, bf16>, &CudaView<'_, bf16>, Columns),
    [da, db]: [&mut CudaViewMut<'_, f32>; 2],
    dx: Option<&mut CudaViewMut<'_, bf16>>,
) -> Done {
    let (rank, inputs) = (pair.rank, pair.inputs());
    let tokens = x.len() / inputs;
    let dy = Matrix::strided(gpu, &dy.slice(columns.first..), tokens, columns.count, columns.stride);
    let mut t = gpu.take::<bf16>(tokens * rank)?;
    matmul::product(gpu, dy, pair.b(gpu), Into { stride: rank, scale: pair.scale, keep: 0.0 }, &mut t.as_view_mut())?;
    let t = t.slice(..tokens * rank);
    let u = Matrix::new(gpu, u, tokens, rank);
    matmul::product(gpu, dy.t(), u, Into { stride: rank, scale: pair.scale, keep: 1.0 }, db)?;
    if let Some(kept) = kept {
        masked::add_grad_a(gpu, &t, (x, kept), da)?;
        return dx.map_or(Ok(()), |dx| masked::add_up(gpu, pair, &t, kept, dx));
    }
    let (small, into) = (Matrix::new(gpu, &t, tokens, rank), Into { stride: inputs, scale: 1.0, keep: 1.0 });
    matmul::product(gpu, small.t(), Matrix::new(gpu, x, tokens, inputs), into, da)?;
    dx.map_or(Ok(()), |dx| matmul::product(gpu, small, pair.a(gpu), into, dx))
}

/// Adds to the gradient of x alone: A and B are constants and x came without dropout.
pub fn backward_constant(
    gpu: &Gpu,
    pair: Pair<'_>,
    (dy, columns): (&CudaView<'_, bf16>, Columns),
    dx: &mut CudaViewMut<'_, bf16>,
) -> Done {
    let (rank, inputs) = (pair.rank, pair.inputs());
    let tokens = dx.len() / inputs;
    let dy = Matrix::strided(gpu, &dy.slice(columns.first..), tokens, columns.count, columns.stride);
    let mut t = gpu.take::<bf16>(tokens * rank)?;
    matmul::product(gpu, dy, pair.b(gpu), Into { stride: rank, scale: pair.scale, keep: 0.0 }, &mut t.as_view_mut())?;
    let small = Matrix::new(gpu, &t.as_view(), tokens, rank);
    matmul::product(gpu, small, pair.a(gpu), Into { stride: inputs, scale: 1.0, keep: 1.0 }, dx)
}
