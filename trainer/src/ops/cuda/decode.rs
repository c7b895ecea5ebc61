//! [`crate::ops::decode`] on the device: what a row sees is dealt to several blocks, whose parts are merged.

use cudarc::driver::{CudaSlice, CudaView, CudaViewMut, LaunchConfig};
use half::bf16;

use super::attention::Passed;
use super::{Done, Gpu, launch, number, per_number, per_row};
use crate::ops::attention::Heads;

/// As in `decode.cu`.
const THREADS: u32 = 128;
const TOGETHER: usize = 4;

/// Keys of a part at least: fewer would be read sooner than their parts are merged.
const PART_KEYS: usize = 128;
/// Blocks that a large card has at work at once, four on each of 132 multiprocessors.
const BLOCKS: usize = 528;
/// Positions that there is room for at first.
const POSITIONS: usize = 256;

/// Keys and values of every position so far of one layer, `[positions, 2 · keys · width]`: all key heads, then all value heads.
#[derive(Debug, Default)]
pub struct Kept {
    /// With room for more behind them.
    numbers: Option<CudaSlice<bf16>>,
    positions: usize,
}

impl Kept {
    /// Whether it holds none yet.
    pub fn is_empty(&self) -> bool {
        self.positions == 0
    }

    /// Appends those of new rows.
    pub fn push(&mut self, gpu: &Gpu, heads: Heads, qkv: &CudaView<'_, bf16>) -> Done {
        let (rows, row) = (qkv.len() / heads.stride(), row_of(heads));
        assert_eq!(qkv.len(), rows * heads.stride(), "whole rows of q, k and v");
        let (from, to) = (self.positions * row, (self.positions + rows) * row);
        self.grow(gpu, self.positions + rows, row)?;
        let numbers = self.numbers.as_mut().expect("it has grown");
        let (to, shape) = (&mut numbers.slice_mut(from..to), per_row(rows, row));
        launch!(gpu, "decode_keep", shape, qkv, to, &number(heads.stride()), &number(row))?;
        self.positions += rows;
        Ok(())
    }

    /// Twice the room where there is not enough, so that all is copied a few times only, however long it becomes.
    fn grow(&mut self, gpu: &Gpu, positions: usize, row: usize) -> Done {
        if self.numbers.as_ref().is_some_and(|numbers| numbers.len() >= positions * row) {
            return Ok(());
        }
        let mut larger = gpu.take(positions.next_power_of_two().max(POSITIONS) * row)?;
        if let Some(numbers) = &self.numbers {
            let kept = ..self.positions * row;
            gpu.copy(&numbers.slice(kept), &mut larger.slice_mut(kept))?;
        }
        self.numbers = Some(larger);
        Ok(())
    }
}

/// Numbers of a position.
fn row_of(heads: Heads) -> usize {
    2 * heads.keys * heads.width
}

/// Output of the rows of `qkv`, whose keys and values are the last of those kept.
pub fn forward(
    gpu: &Gpu,
    heads: Heads,
    qkv: &CudaView<'_, bf16>,
    kept: &Kept,
    out: &mut CudaViewMut<'_, bf16>,
) -> Done {
    let (rows, positions, width) = (qkv.len() / heads.stride(), kept.positions, heads.width);
    assert!(qkv.len() == rows * heads.stride() && out.len() == rows * heads.out_stride(), "rows of q, k, v and output");
    assert!(rows <= positions && heads.queries.is_multiple_of(heads.keys), "new rows are kept, heads shared evenly");
    assert!(width.is_multiple_of(8) && width <= 256, "a lane holds eight columns, a warp all");
    let Some(numbers) = &kept.numbers else { return Ok(()) };
    let across = heads.keys * (heads.queries / heads.keys).div_ceil(TOGETHER);
    let seen = heads.window.map_or(positions, |window| window.min(positions));
    let (part_keys, parts) = parts(seen, rows * across);
    let mut sums = gpu.take::<f32>(rows * heads.queries * parts * (width + 2))?;
    let grid_dim = (number(rows), number(across), number(parts));
    let shape = LaunchConfig { grid_dim, block_dim: (THREADS, 1, 1), shared_mem_bytes: 0 };
    let [positions, width, part_keys, parts] = [positions, width, part_keys, parts].map(number);
    let heads = Passed::new(heads);
    launch!(gpu, "decode_parts", shape, qkv, numbers, &mut sums, &positions, &width, &part_keys, &heads)?;
    let (shape, count) = (per_number(out.len()), number(out.len()));
    launch!(gpu, "decode_merge", shape, &sums, out, &count, &width, &parts)
}

/// Keys of a part, and how many parts there are: by shape alone, so that sums have one order.
fn parts(seen: usize, across: usize) -> (usize, usize) {
    let wanted = (BLOCKS / across.max(1)).clamp(1, seen.div_ceil(PART_KEYS).max(1));
    let part_keys = seen.div_ceil(wanted);
    (part_keys, seen.div_ceil(part_keys.max(1)))
}

#[cfg(test)]
mod tests {
    use super::parts;

    #[test]
    fn parts_cover_all_keys_and_are_no_more_than_a_card_has_room_for() {
        for (seen, across, expected) in
            [(4096, 8, 32), (100_000, 8, 66), (100, 8, 1), (129, 8, 2), (4096, 4000, 1), (1, 1, 1)]
        {
            let (part_keys, parts) = parts(seen, across);
            assert_eq!(parts, expected, "{seen} keys, {across} across");
            assert!(part_keys * parts >= seen && part_keys * (parts - 1) < seen, "{part_keys} of {seen}");
        }
    }
}
