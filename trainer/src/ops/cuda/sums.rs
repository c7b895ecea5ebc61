//! Sums over rows, made in parts that follow from the number of rows alone and are added in order.

use cudarc::driver::{CudaSlice, CudaView, CudaViewMut, LaunchConfig};
use half::bf16;
use lorikeet_plan::GPU_SUM_PARTS;

use super::{Done, EIGHT, Gpu, launch, number, shape};
use crate::ops::lora::Columns;

/// What each row is multiplied with before it is added, number by number: a row of `x`, and a factor.
pub(super) type Factors<'a> = (&'a CudaView<'a, bf16>, &'a CudaSlice<f32>);

/// Threads of a block, each with eight columns: neighbours of a row are read together.
const THREADS: usize = 64;

/// Adds the rows of some columns of `dy`, times factors where there are any, to `sums`.
pub(super) fn add_rows(
    gpu: &Gpu,
    (dy, columns): (&CudaView<'_, bf16>, Columns),
    factors: Option<Factors<'_>>,
    sums: &mut CudaViewMut<'_, f32>,
) -> Done {
    let Columns { first, count, stride } = columns;
    assert!(first % EIGHT == 0 && count % EIGHT == 0 && stride % EIGHT == 0, "whole eights a row");
    let rows = dy.len() / stride;
    let (of_part, many) = parts(rows, GPU_SUM_PARTS);
    let mut made = gpu.take::<f32>(many * count)?;
    let shape = LaunchConfig {
        grid_dim: (number(count.div_ceil(EIGHT * THREADS)), number(many), 1),
        block_dim: (THREADS as u32, 1, 1),
        shared_mem_bytes: 0,
    };
    let (x, rho) = (gpu.address(factors.map(|(x, _)| x)), factors.map(|(_, rho)| rho.as_view()));
    let (dy, rho) = (dy.slice(first..), gpu.address(rho.as_ref()));
    let [rows, columns, stride] = [rows, count, stride].map(number);
    launch!(gpu, "row_parts", shape, &dy, &x, &rho, &mut made, &rows, &columns, &stride, &number(of_part))?;
    add_parts(gpu, &made.slice(..many * count), sums)
}

/// Rows of a part, and how many there are: as many as `most`.
pub(super) fn parts(rows: usize, most: usize) -> (usize, usize) {
    let of_part = rows.div_ceil(most).max(1);
    (of_part, rows.div_ceil(of_part))
}

/// Adds parts, one after another as long as `sums`, to it.
pub(super) fn add_parts(gpu: &Gpu, parts: &CudaView<'_, f32>, sums: &mut CudaViewMut<'_, f32>) -> Done {
    let count = sums.len();
    assert_eq!(parts.len() % count, 0, "whole parts");
    let (many, blocks) = (number(parts.len() / count), shape(count.div_ceil(32), super::THREADS));
    launch!(gpu, "add_row_parts", blocks, parts, sums, &many, &number(count))
}
