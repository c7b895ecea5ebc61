//! The products that take dropout with them: `lora.cu` started.
//!
//! Rows of x are read eight channels at a time: their count is a multiple of eight, which `model/gpu.rs` asks of a model.

use cudarc::driver::{CudaSlice, CudaView, CudaViewMut, DevicePtr, LaunchConfig};
use half::bf16;

use super::super::dropout::Kept;
use super::super::{Done, Gpu, GpuError, launch, number, per_number};
use super::Pair;

/// As in `lora.cu`.
const CHANNELS: usize = 64;
const RANKS: usize = 32;
const DOWN_ROWS: usize = 16;
const DOWN_THREADS: u32 = 256;
const UP_ROWS: usize = 128;
const THREADS: u32 = 128;
/// What is read of A at once.
const A_BYTES: u64 = 8;

/// Rows of a part of A's gradient at least: what a part writes and reads again is a quarter of what it reads, at rank 16.
const PART_ROWS: usize = lorikeet_plan::GPU_PART_ROWS;
/// Blocks that a large card has at work at once, four on each of 132 multiprocessors: more parts would only be more to add up.
const BLOCKS: usize = lorikeet_plan::GPU_PART_COLUMNS / CHANNELS;

/// `u = (x∘m) Aᵀ`.
pub(super) fn down(
    gpu: &Gpu,
    Pair { a, rank, .. }: Pair<'_>,
    (x, kept): (&CudaView<'_, bf16>, &Kept),
    u: &mut CudaViewMut<'_, bf16>,
) -> Done {
    let (rows, inputs) = shape(x.len(), kept);
    assert!(a.len() == rank * inputs && u.len() >= rows * rank, "u has a row for each of x");
    let copied = aligned(gpu, a)?;
    let a = copied.as_ref().map_or_else(|| a.slice(..), CudaSlice::as_view);
    let shape = grid([rows.div_ceil(DOWN_ROWS), rank.div_ceil(RANKS), 1], DOWN_THREADS);
    let [rows, inputs, rank] = [rows, inputs, rank].map(number);
    launch!(gpu, "lora_down", shape, x, &a, &kept.words, u, &rows, &inputs, &rank, &kept.keep)
}

/// `dA += tᵀ (x∘m)`.
pub(super) fn add_grad_a(
    gpu: &Gpu,
    t: &CudaView<'_, bf16>,
    (x, kept): (&CudaView<'_, bf16>, &Kept),
    da: &mut CudaViewMut<'_, f32>,
) -> Done {
    let (rows, inputs) = shape(x.len(), kept);
    let (rank, count) = (t.len() / rows.max(1), da.len());
    assert!(rows == 0 || rank * inputs == count && t.len() == rows * rank, "A has a row for each column of t");
    let (across, groups) = (inputs.div_ceil(CHANNELS), rank.div_ceil(RANKS));
    let (part_rows, parts) = parts(rows, across * groups);
    let mut sums = gpu.take::<f32>(parts * count)?;
    let [rows, inputs, rank, part_rows] = [rows, inputs, rank, part_rows].map(number);
    let (shape, keep) = (grid([across, parts, groups], THREADS), &kept.keep);
    launch!(gpu, "lora_parts", shape, t, x, &kept.words, &mut sums, &rows, &inputs, &rank, &part_rows, keep)?;
    launch!(gpu, "lora_add_parts", per_number(count), &sums, da, &number(count), &number(parts))
}

/// `dx += (t A)∘m`.
pub(super) fn add_up(
    gpu: &Gpu,
    Pair { a, rank, .. }: Pair<'_>,
    t: &CudaView<'_, bf16>,
    kept: &Kept,
    dx: &mut CudaViewMut<'_, bf16>,
) -> Done {
    let (rows, inputs) = shape(dx.len(), kept);
    assert!(a.len() == rank * inputs && t.len() == rows * rank, "t has a row for each of dx");
    let copied = aligned(gpu, a)?;
    let a = copied.as_ref().map_or_else(|| a.slice(..), CudaSlice::as_view);
    let shape = grid([inputs.div_ceil(CHANNELS), rows.div_ceil(UP_ROWS), 1], THREADS);
    let [rows, inputs, rank] = [rows, inputs, rank].map(number);
    launch!(gpu, "lora_up", shape, t, &a, &kept.words, dx, &rows, &inputs, &rank, &kept.keep)
}

/// A where its rows are read four numbers at a time. Behind an adapter on an embedding of odd size it lies anywhere, and is copied; products of
/// cuBLASLt are chosen for the place where it lies.
fn aligned(gpu: &Gpu, a: &CudaView<'_, bf16>) -> Result<Option<CudaSlice<bf16>>, GpuError> {
    if a.device_ptr(gpu.stream()).0.is_multiple_of(A_BYTES) {
        return Ok(None);
    }
    let mut copy = gpu.take(a.len())?;
    gpu.copy(a, &mut copy.as_view_mut())?;
    Ok(Some(copy))
}

fn shape(numbers: usize, kept: &Kept) -> (usize, usize) {
    assert_eq!(numbers, kept.rows * kept.width, "a mask for every row");
    assert_eq!(kept.width % 8, 0, "rows are read by eights");
    (kept.rows, kept.width)
}

/// Rows of a part, whole turns of the kernel, and how many parts there are: by shape alone, so that sums have one order.
fn parts(rows: usize, across: usize) -> (usize, usize) {
    let wanted = (BLOCKS / across.max(1)).clamp(1, rows.div_ceil(PART_ROWS).max(1));
    let part_rows = rows.div_ceil(wanted).next_multiple_of(CHANNELS).max(CHANNELS);
    (part_rows, rows.div_ceil(part_rows))
}

fn grid([x, y, z]: [usize; 3], threads: u32) -> LaunchConfig {
    LaunchConfig { grid_dim: (number(x), number(y), number(z)), block_dim: (threads, 1, 1), shared_mem_bytes: 0 }
}

#[cfg(test)]
mod tests {
    use super::parts;

    #[test]
    fn parts_cover_all_rows_and_are_no_more_than_a_card_has_room_for() {
        for (rows, across, expected) in
            [(8192, 64, 8), (8192, 224, 2), (8192, 9, 32), (8192, 600, 1), (100, 9, 1), (0, 9, 0)]
        {
            let (part_rows, parts) = parts(rows, across);
            assert_eq!(parts, expected, "{rows} rows, {across} across");
            assert!(part_rows % 64 == 0 && part_rows * parts >= rows, "{part_rows} of {rows}");
        }
    }
}
