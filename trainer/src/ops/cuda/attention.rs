//! [`crate::ops::attention`] on the device: tiles of 64 rows, compiled for the width of a head.

use std::ops::Range;
use std::sync::{Arc, PoisonError};

use cudarc::driver::sys::CUfunction_attribute;
use cudarc::driver::{CudaFunction, CudaSlice, CudaView, CudaViewMut, DeviceRepr, LaunchConfig};
use half::bf16;

use super::{Done, Gpu, GpuError, compile, launch, number, per_warp};
use crate::ops::attention::Heads;

/// Rows of a tile, and threads that work on one: as in `attention.cu`.
const TILE: usize = 64;
const THREADS: u32 = 128;

/// What a block shares, in rows: its own of one or two kinds, and those of two kinds that it walks over.
#[derive(Debug, Clone, Copy)]
enum Shared {
    Forward,
    Queries,
    Keys,
}

impl Shared {
    fn bytes(self, width: usize) -> u32 {
        let wide = width > 128;
        let rows = match self {
            Shared::Forward => TILE + 2 * if wide { 32 } else { 64 },
            Shared::Queries => 2 * TILE + 2 * if wide { 16 } else { 64 },
            Shared::Keys => 2 * TILE + 2 * if wide { 16 } else { 32 },
        };
        number(rows * (width.next_multiple_of(16) + 8) * size_of::<bf16>())
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
struct Passed {
    queries: u32,
    keys: u32,
    scale: f32,
    cap: f32,
    window: u32,
}

// SAFETY: plain numbers in C's order, as `struct Heads` in attention.cu.
unsafe impl DeviceRepr for Passed {}

impl Passed {
    fn new(heads: Heads) -> Passed {
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
    /// Three words a tile: the segment's first row, the one behind its last, the tile's first.
    words: CudaSlice<u32>,
    count: usize,
    rows: usize,
}

impl Tiles {
    /// Segments cover all rows in order.
    pub fn upload(gpu: &Gpu, segments: &[Range<usize>]) -> Result<Tiles, GpuError> {
        let of = |segment: &Range<usize>| {
            let (first, end) = (segment.start, segment.end);
            (first..end).step_by(TILE).flat_map(move |row| [first, end, row].map(number))
        };
        let words: Vec<u32> = segments.iter().flat_map(of).collect();
        let rows = segments.last().map_or(0, |segment| segment.end);
        Ok(Tiles { count: words.len() / 3, words: gpu.upload(&words)?, rows })
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
    launch!(
        gpu,
        &kernels.forward,
        "attention_forward",
        shape(tiles, heads.queries, Shared::Forward.bytes(heads.width)),
        qkv,
        &tiles.words,
        out,
        lse,
        &passed
    )
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
    launch!(
        gpu,
        &kernels.queries,
        "attention_backward_queries",
        shape(tiles, heads.queries, Shared::Queries.bytes(heads.width)),
        qkv,
        dout,
        lse,
        &delta,
        &tiles.words,
        &mut *dqkv,
        &passed
    )?;
    launch!(
        gpu,
        &kernels.keys,
        "attention_backward_keys",
        shape(tiles, heads.keys, Shared::Keys.bytes(heads.width)),
        qkv,
        dout,
        lse,
        &delta,
        &tiles.words,
        dqkv,
        &passed
    )
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
        let all =
            [(&kernels.forward, Shared::Forward), (&kernels.queries, Shared::Queries), (&kernels.keys, Shared::Keys)];
        for (function, shared) in all {
            let most = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            let bytes = shared.bytes(width) as i32;
            function.set_attribute(most, bytes).map_err(GpuError::driver("take shared memory for attention"))?;
        }
        known.insert(width, Arc::clone(&kernels));
        Ok(kernels)
    }
}

fn shape(tiles: &Tiles, heads: usize, shared_mem_bytes: u32) -> LaunchConfig {
    LaunchConfig { grid_dim: (number(tiles.count), number(heads), 1), block_dim: (THREADS, 1, 1), shared_mem_bytes }
}

fn check(heads: Heads, tiles: &Tiles, lengths: [usize; 3]) {
    let expected = [heads.stride(), heads.out_stride(), heads.queries].map(|stride| tiles.rows * stride);
    assert_eq!(lengths, expected, "rows of q, k and v, of the output and of log-sum-exp");
    assert_eq!(heads.queries % heads.keys, 0, "key heads are shared evenly");
}
