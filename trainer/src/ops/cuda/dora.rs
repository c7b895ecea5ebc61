//! [`crate::ops::dora`] on the device. What is added to `y` is `g∘v − z` in another order, so that less of it is rounded:
//!
//! ```text
//! z = (x∘k) Wᵀ      e = s u Bᵀ      y += (g − 1)∘z + g∘e      v = z + e
//! dm += Σ dy∘v / n      dv = g∘dy into the backward of `lora.rs`      dx += (((g − 1)∘dy) W)∘k
//! ```
//! g is near 1 all through a training: what z and dy are rounded by counts next to nothing. A fused weight has several modules' rows, one below
//! the other; each of them is a weight of its own here.

use cudarc::driver::{CudaSlice, CudaView, CudaViewMut, LaunchConfig};
use half::bf16;

use super::linear::Weight;
use super::lora::{self, Input, Pair};
use super::matmul::{self, Into, Matrix};
use super::{Done, EIGHT, Gpu, GpuError, launch, number, per_number, per_row};
use crate::ops::lora::Columns;

/// As in `dora.cu`: rows of the weight that a block measures, numbers of a row that a warp takes at once, and threads of a block.
const ROWS: usize = 8;
const WARP: usize = 32;
const THREADS: u32 = 256;

/// Rows of a part of the gradient of m.
const PART_ROWS: usize = lorikeet_plan::GPU_PART_ROWS;

/// The frozen weight, of which the module's columns of output are rows, and the lengths of the adapted ones.
#[derive(Debug, Clone, Copy)]
pub struct Dora<'a> {
    /// W.
    pub weight: &'a Weight,
    /// n and g.
    pub lengths: &'a Lengths,
}

/// The lengths n of a module's rows of `W + s B A`, and g = m / n.
#[derive(Debug)]
pub struct Lengths(CudaSlice<f32>);

impl Lengths {
    /// Of the rows of `weight` that are those columns of output.
    pub fn measure(
        gpu: &Gpu,
        weight: &Weight,
        columns: Columns,
        pair: Pair<'_>,
        magnitude: &CudaView<'_, f32>,
    ) -> Result<Lengths, GpuError> {
        let (count, inputs, Pair { a, b, rank, scale }) = (columns.count, pair.inputs(), pair);
        assert!(inputs == weight.cols() && magnitude.len() == count && b.len() == count * rank, "one length a row");
        let mut lengths = gpu.take::<f32>(2 * count)?;
        let shape = per_row(count.div_ceil(ROWS), inputs);
        let [rows, inputs, rank] = [count, inputs, rank].map(number);
        with_module(gpu, weight, columns, |w| {
            launch!(gpu, "dora_lengths", shape, w, a, b, magnitude, &mut lengths, &rows, &inputs, &rank, &scale)
        })?;
        Ok(Lengths(lengths))
    }

    /// n and g on the host; for whoever compares.
    pub fn read(&self, gpu: &Gpu) -> Result<[Vec<f32>; 2], GpuError> {
        let mut n = gpu.download(&self.0.as_view())?;
        let g = n.split_off(n.len() / 2);
        Ok([n, g])
    }
}

/// `u`, `v`, and the module's columns of `y`, which hold the frozen layer's output, added to.
pub fn forward(
    gpu: &Gpu,
    dora: Dora<'_>,
    pair: Pair<'_>,
    input: Input<'_>,
    (u, v): (&mut CudaViewMut<'_, bf16>, &mut CudaViewMut<'_, bf16>),
    (y, columns): (&mut CudaViewMut<'_, bf16>, Columns),
) -> Done {
    let (tokens, count) = (input.x.len() / pair.inputs(), columns.count);
    assert_eq!(v.len(), tokens * count, "v has a row for each of x");
    frozen(gpu, dora.weight, columns, input, v)?;
    lora::down(gpu, pair, input, u)?;
    let mut e = gpu.take::<bf16>(tokens * count)?;
    let into = Into { stride: count, scale: pair.scale, keep: 0.0 };
    lora::up(gpu, pair, &u.as_view(), into, &mut e.as_view_mut())?;
    let (many, shape) = at_once(tokens, columns);
    let y = &mut y.slice_mut(columns.first..);
    let [rows, count, stride] = [tokens, count, columns.stride].map(number);
    launch!(gpu, "dora_forward", shape, v, &e, &dora.lengths.0, y, &rows, &count, &stride, &many)
}

/// Adds to the gradients of A, B and m and, where one is wanted, of x.
pub fn backward(
    gpu: &Gpu,
    dora: Dora<'_>,
    pair: Pair<'_>,
    (input, u, v): (Input<'_>, &CudaView<'_, bf16>, &CudaView<'_, bf16>),
    (dy, columns): (&CudaView<'_, bf16>, Columns),
    [da, db, dm]: [&mut CudaViewMut<'_, f32>; 3],
    mut dx: Option<&mut CudaViewMut<'_, bf16>>,
) -> Done {
    let dy = dy.slice(columns.first..);
    let mut dv = gpu.take::<bf16>(v.len())?;
    add_grad_lengths(gpu, dora.lengths, (&dy, v, columns), &mut dv.as_view_mut(), dm)?;
    let whole = Columns::all(columns.count);
    lora::backward(gpu, pair, input, (u, &dv.as_view(), whole), [da, db], dx.as_deref_mut())?;
    let Some(dx) = dx else { return Ok(()) };
    let (many, shape) = at_once(v.len() / columns.count, columns);
    let [rows, count, stride] = [v.len() / columns.count, columns.count, columns.stride].map(number);
    launch!(gpu, "dora_rest", shape, &dy, &dora.lengths.0, &mut dv, &rows, &count, &stride, &many)?;
    add_dx(gpu, dora.weight, (&dv.as_view(), columns), input, dx)
}

/// `z = (x∘k) Wᵀ`.
fn frozen(
    gpu: &Gpu,
    weight: &Weight,
    columns: Columns,
    Input { x, kept }: Input<'_>,
    z: &mut CudaViewMut<'_, bf16>,
) -> Done {
    let masked = kept.map(|kept| kept.masked(gpu, x)).transpose()?;
    let x = masked.as_ref().map_or_else(|| x.slice(..), CudaSlice::as_view);
    let x = Matrix::new(gpu, &x, z.len() / columns.count, weight.cols());
    let into = Into { stride: columns.count, scale: kept.map_or(1.0, |kept| kept.keep), keep: 0.0 };
    with_module(gpu, weight, columns, |w| {
        matmul::product(gpu, x, Matrix::new(gpu, w, columns.count, weight.cols()).t(), into, z)
    })
}

/// `dx += (dz W)∘k`.
fn add_dx(
    gpu: &Gpu,
    weight: &Weight,
    (dz, columns): (&CudaView<'_, bf16>, Columns),
    Input { kept, .. }: Input<'_>,
    dx: &mut CudaViewMut<'_, bf16>,
) -> Done {
    let (count, inputs) = (columns.count, weight.cols());
    let dz = Matrix::new(gpu, dz, dx.len() / inputs, count);
    with_module(gpu, weight, columns, |w| {
        let w = Matrix::new(gpu, w, count, inputs);
        let Some(kept) = kept else {
            return matmul::product(gpu, dz, w, Into { stride: inputs, scale: 1.0, keep: 1.0 }, dx);
        };
        let mut unmasked = gpu.take::<bf16>(dx.len())?;
        let into = Into { stride: inputs, scale: kept.keep, keep: 0.0 };
        matmul::product(gpu, dz, w, into, &mut unmasked.as_view_mut())?;
        kept.add(gpu, &unmasked.as_view(), dx)
    })
}

/// `dv = g∘dy`, and adds to the gradient of m: rows are summed in parts, by shape alone, so that sums have one order.
fn add_grad_lengths(
    gpu: &Gpu,
    lengths: &Lengths,
    (dy, v, columns): (&CudaView<'_, bf16>, &CudaView<'_, bf16>, Columns),
    dv: &mut CudaViewMut<'_, bf16>,
    dm: &mut CudaViewMut<'_, f32>,
) -> Done {
    let count = columns.count;
    let rows = v.len() / count;
    assert!(v.len() == rows * count && dm.len() == count, "a length for every column");
    let (parts, (many, _)) = (rows.div_ceil(PART_ROWS), at_once(rows, columns));
    let mut sums = gpu.take::<f32>(parts * count)?;
    let across = count.div_ceil(WARP * many as usize);
    let shape =
        LaunchConfig { grid_dim: (number(across), number(parts), 1), block_dim: (THREADS, 1, 1), shared_mem_bytes: 0 };
    let [rows, count, stride, parts, of_part] = [rows, count, columns.stride, parts, PART_ROWS].map(number);
    launch!(gpu, "dora_backward", shape, dy, v, &lengths.0, dv, &mut sums, &rows, &count, &stride, &many, &of_part)?;
    launch!(gpu, "lora_add_parts", per_number(columns.count), &sums, dm, &count, &parts)
}

/// Hands the module's rows of the weight to `use_them`.
fn with_module(
    gpu: &Gpu,
    weight: &Weight,
    columns: Columns,
    use_them: impl FnOnce(&CudaView<'_, bf16>) -> Done,
) -> Done {
    assert_eq!(columns.stride, weight.rows(), "rows of a weight are columns of output");
    weight.with_rows(gpu, columns.first..columns.first + columns.count, use_them)
}

/// How many neighbours a thread takes at once, and as many threads as that makes of so many rows.
fn at_once(rows: usize, Columns { first, count, stride }: Columns) -> (u32, LaunchConfig) {
    let whole = [first, count, stride].iter().all(|numbers| numbers.is_multiple_of(EIGHT));
    let many = if whole { EIGHT } else { 1 };
    (number(many), per_number(rows * count / many))
}
