//! Rows looked up, gathered and put back, biases, and numbers from one format to the other.

use cudarc::driver::{CudaView, CudaViewMut};
use half::bf16;

use super::{Done, EIGHT, Gpu, eights, launch, number, per_number, per_row};

/// `y[i] = scale · table[rows[i]]`: the embedding, and the gathering of supervised rows. `rows` lie within the table; whoever
/// made them has checked that.
pub fn gather(
    gpu: &Gpu,
    table: &CudaView<'_, bf16>,
    rows: &CudaView<'_, u32>,
    width: usize,
    scale: f32,
    y: &mut CudaViewMut<'_, bf16>,
) -> Done {
    assert_eq!(y.len(), rows.len() * width, "one row for every row named");
    launch!(gpu, "rows_gather", per_row(rows.len(), width), table, rows, y, &number(width), &scale)
}

/// `y[rows[i]] = x[i]`; no row comes twice.
pub fn scatter(
    gpu: &Gpu,
    x: &CudaView<'_, bf16>,
    rows: &CudaView<'_, u32>,
    width: usize,
    y: &mut CudaViewMut<'_, bf16>,
) -> Done {
    assert_eq!(x.len(), rows.len() * width, "one row for every row named");
    launch!(gpu, "rows_scatter", per_row(rows.len(), width), x, rows, y, &number(width))
}

/// Adds a bias to every row.
pub fn add_bias(gpu: &Gpu, bias: &CudaView<'_, f32>, y: &mut CudaViewMut<'_, bf16>) -> Done {
    let count = y.len();
    assert_eq!(count % bias.len(), 0, "whole rows");
    let [of_row, all] = [bias.len(), count].map(eights);
    launch!(gpu, "rows_add_bias", per_number(all as usize), y, bias, &of_row, &all)
}

/// To the nearest bf16, ties to even.
pub fn narrow(gpu: &Gpu, x: &CudaView<'_, f32>, y: &mut CudaViewMut<'_, bf16>) -> Done {
    assert_eq!(x.len(), y.len(), "one number for each");
    launch!(gpu, "cast_narrow", per_number(x.len().div_ceil(EIGHT)), x, y, &(x.len() as u64))
}

/// `y = x + by`.
pub fn shift(gpu: &Gpu, x: &CudaView<'_, f32>, by: f32, y: &mut CudaViewMut<'_, f32>) -> Done {
    assert_eq!(x.len(), y.len(), "one number for each");
    launch!(gpu, "shift", per_number(x.len()), x, y, &by, &(x.len() as u64))
}
