//! [`crate::ops::attention`] on the device: tiles of 64 or 128 rows, compiled for the width of a head.

use std::ops::Range;
use std::sync::{Arc, PoisonError};

use cudarc::driver::sys::CUfunction_attribute;
use cudarc::driver::{CudaFunction, CudaSlice, CudaView, CudaViewMut, DeviceRepr, LaunchConfig};
use half::bf16;

use super::{Done, Gpu, GpuError, compile, launch, number, per_warp};
use crate::ops::attention::Heads;

/// Threads that work on a tile; they own 64 rows or twice as many, as in `attention.cu`.
const THREADS: u32 = 128;
const TILE: usize = 64;

/// A kernel that walks over tiles.
#[derive(Debug, Clone, Copy)]
enum Walk {
    Forward,
    Queries,
    Keys,
}

impl Walk {
    /// Rows that a block owns, for heads of this width.
    fn tile(self, width: usize) -> usize {
        match self {
            Walk::Forward | Walk::Queries if width <= 128 => 2 * TILE,
            Walk::Forward | Walk::Queries | Walk::Keys => TILE,
        }
    }

    /// What a block shares: its own rows, of one kind or two, and those of two kinds that it walks over.
    fn shared_bytes(self, width: usize) -> u32 {
        let kinds = match self {
            Walk::Forward => 1,
            Walk::Queries | Walk::Keys => 2,
        };
        let other = match (self, width > 128) {
            (Walk::Forward, false) => 64,
            (Walk::Queries | Walk::Keys, true) => 16,
            (Walk::Forward, true) | (Walk::Queries | Walk::Keys, false) => 32,
        };
        let rows = kinds * self.tile(width) + 2 * other;
        let columns = width.next_multiple_of(if width > 128 { 32 } else { 16 });
        number(rows * (columns + 8) * size_of::<bf16>())
    }
}

/// Those for one width of a head.
#[derive(Debug)]
pub(super) struct Kernels {
    forward: CudaFunction,
    delta: CudaFunction,
    queries: CudaFunction,
    keys: CudaFunction,
}

/// `Heads` as the kernels read it.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(super) struct Passed {
    queries: u32,
    keys: u32,
    scale: f32,
    cap: f32,
    window: u32,
}

// SAFETY: plain numbers in C's order, as `struct Heads` in prelude.cuh.
unsafe impl DeviceRepr for Passed {}

impl Passed {
    pub(super) fn new(heads: Heads) -> Passed {
        Passed {
            queries: number(heads.queries),
            keys: number(heads.keys),
            scale: heads.scale as f32,
            cap: heads.softcap.unwrap_or(0.0) as f32,
            window: heads.window.map_or(0, number),
        }
    }
}

/// The segments of a micro-batch cut into tiles, on the device; made once per micro-batch.
#[derive(Debug)]
pub struct Tiles {
    /// Three words a tile: the segment's first row, the one behind its last, the tile's first. Those of [`TILE`] rows, then the others.
    words: CudaSlice<u32>,
    /// Words of the first kind.
    single: usize,
    rows: usize,
}

impl Tiles {
    /// Segments cover all rows in order.
    pub fn upload(gpu: &Gpu, segments: &[Range<usize>]) -> Result<Tiles, GpuError> {
        let cut = |tile: usize| {
            segments.iter().flat_map(move |segment| {
                let (first, end) = (segment.start, segment.end);
                (first..end).step_by(tile).flat_map(move |row| [first, end, row].map(number))
            })
        };
        let words: Vec<u32> = cut(TILE).chain(cut(2 * TILE)).collect();
        let rows = segments.last().map_or(0, |segment| segment.end);
        Ok(Tiles { single: cut(TILE).count(), words: gpu.upload(&words)?, rows })
    }

    /// Those that a kernel walks over, and the shape of its blocks: one for each tile and head.
    fn of(&self, walk: Walk, width: usize, heads: usize) -> (CudaView<'_, u32>, LaunchConfig) {
        let words = if walk.tile(width) == TILE { 0..self.single } else { self.single..self.words.len() };
        let grid_dim = (number(words.len() / 3), number(heads), 1);
        let shared_mem_bytes = walk.shared_bytes(width);
        (self.words.slice(words), LaunchConfig { grid_dim, block_dim: (THREADS, 1, 1), shared_mem_bytes })
    }
}

/// Output of every row, and `lse` per row and head.
pub fn forward(
    gpu: &Gpu,
    heads: Heads,
    tiles: &Tiles,
    qkv: &CudaView<'_, bf16>,
    out: &mut CudaViewMut<'_, bf16>,
    lse: &mut CudaViewMut<'_, f32>,
) -> Done {
    check(heads, tiles, [qkv.len(), out.len(), lse.len()]);
    let kernels = gpu.attention(heads.width)?;
    let passed = Passed::new(heads);
    let (tiles, shape) = tiles.of(Walk::Forward, heads.width, heads.queries);
    launch!(gpu, &kernels.forward, "attention_forward", shape, qkv, &tiles, out, lse, &passed)
}

/// Overwrites `dqkv` with the gradient.
pub fn backward(
    gpu: &Gpu,
    heads: Heads,
    tiles: &Tiles,
    qkv: &CudaView<'_, bf16>,
    (out, lse): (&CudaView<'_, bf16>, &CudaView<'_, f32>),
    dout: &CudaView<'_, bf16>,
    dqkv: &mut CudaViewMut<'_, bf16>,
) -> Done {
    check(heads, tiles, [qkv.len(), out.len(), lse.len()]);
    check(heads, tiles, [dqkv.len(), dout.len(), lse.len()]);
    let kernels = gpu.attention(heads.width)?;
    let (passed, pairs) = (Passed::new(heads), tiles.rows * heads.queries);
    let mut delta = gpu.take::<f32>(pairs)?;
    launch!(gpu, &kernels.delta, "attention_delta", per_warp(pairs), out, dout, &mut delta, &number(pairs))?;
    let (queries, shape) = tiles.of(Walk::Queries, heads.width, heads.queries);
    launch!(
        gpu,
        &kernels.queries,
        "attention_backward_queries",
        shape,
        qkv,
        dout,
        lse,
        &delta,
        &queries,
        &mut *dqkv,
        &passed
    )?;
    let (keys, shape) = tiles.of(Walk::Keys, heads.width, heads.keys);
    launch!(gpu, &kernels.keys, "attention_backward_keys", shape, qkv, dout, lse, &delta, &keys, dqkv, &passed)
}

impl Gpu {
    /// Compiles the kernels for heads of this width.
    pub fn prepare_attention(&self, width: usize) -> Done {
        self.attention(width).map(drop)
    }

    /// The kernels for heads of this width; compiled when a width is first met.
    fn attention(&self, width: usize) -> Result<Arc<Kernels>, GpuError> {
        let mut known = self.attention.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kernels) = known.get(&width) {
            return Ok(Arc::clone(kernels));
        }
        assert_eq!(width % 8, 0, "attention takes heads whose width is a multiple of 8");
        let module = compile::module(&self.context, &compile::ATTENTION, self.compute, &[format!("-DHEAD={width}")])?;
        let kernels = Arc::new(Kernels {
            forward: compile::find(&module, "attention_forward")?,
            delta: compile::find(&module, "attention_delta")?,
            queries: compile::find(&module, "attention_backward_queries")?,
            keys: compile::find(&module, "attention_backward_keys")?,
        });
        let walks = [(&kernels.forward, Walk::Forward), (&kernels.queries, Walk::Queries), (&kernels.keys, Walk::Keys)];
        for (function, walk) in walks {
            let most = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            let bytes = walk.shared_bytes(width) as i32;
            function.set_attribute(most, bytes).map_err(GpuError::driver("take shared memory for attention"))?;
        }
        known.insert(width, Arc::clone(&kernels));
        Ok(kernels)
    }
}

fn check(heads: Heads, tiles: &Tiles, lengths: [usize; 3]) {
    let expected = [heads.stride(), heads.out_stride(), heads.queries].map(|stride| tiles.rows * stride);
    assert_eq!(lengths, expected, "rows of q, k and v, of the output and of log-sum-exp");
    assert_eq!(heads.queries % heads.keys, 0, "key heads are shared evenly");
}
