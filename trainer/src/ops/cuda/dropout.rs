//! Dropout on the device, with the very masks of [`crate::ops::random::Masks`]: drawn once per module and pass, kept as bits, and
//! taken by the products of `lora.rs` as they read their input. A product that is a library's takes a masked copy (`dora.rs`).

use cudarc::driver::{CudaSlice, CudaView, CudaViewMut, LaunchConfig};
use half::bf16;

use super::{Done, EIGHT, Gpu, GpuError, launch, number, per_number, per_warp};
use crate::ops::random::Masks;

/// Channels whose bits lie in one word.
const WORD: usize = u64::BITS as usize;

/// The masks of every row of one run of tokens, of whatever module.
#[derive(Debug)]
pub struct RowMasks {
    /// Five words a row: what tells the masks of its example from others', and its token.
    names: CudaSlice<u32>,
    rows: usize,
    threshold: u32,
    keep: f32,
}

/// What one module keeps of every row.
#[derive(Debug)]
pub struct Kept {
    /// Bit c mod 64 of word c / 64 of a row: channel c is kept.
    pub(super) words: CudaSlice<u64>,
    pub(super) rows: usize,
    pub(super) width: usize,
    /// What the kept ones are multiplied by.
    pub(super) keep: f32,
}

impl RowMasks {
    /// `(masks, token within its example)` per row. All of them come from one adapter: one probability.
    pub fn upload(gpu: &Gpu, rows: &[(Masks, u32)]) -> Result<RowMasks, GpuError> {
        let words: Vec<u32> = rows.iter().flat_map(|(masks, token)| masks.key().into_iter().chain([*token])).collect();
        let (threshold, keep) = rows.first().map_or((0, 1.0), |(masks, _)| (masks.threshold(), masks.keep()));
        assert!(rows.iter().all(|(masks, _)| masks.threshold() == threshold), "one adapter, one probability");
        Ok(RowMasks { names: gpu.upload(&words)?, rows: rows.len(), threshold, keep })
    }

    /// Draws for one module's rows of `width` numbers.
    pub fn draw(&self, gpu: &Gpu, module: u32, width: usize) -> Result<Kept, GpuError> {
        let RowMasks { names, rows, threshold, keep } = self;
        let mut words = gpu.take(rows * width.div_ceil(WORD))?;
        let shape = per_warp(*rows);
        launch!(gpu, "dropout_draw", shape, names, &mut words, &number(*rows), &number(width), &module, threshold)?;
        Ok(Kept { words, rows: *rows, width, keep: *keep })
    }
}

impl Kept {
    /// x where it is kept, otherwise 0: whoever multiplies with it brings the factor `keep`, so that nothing is rounded.
    pub(super) fn masked(&self, gpu: &Gpu, x: &CudaView<'_, bf16>) -> Result<CudaSlice<bf16>, GpuError> {
        let mut y = gpu.take(x.len())?;
        let (shape, [rows, width]) = self.eights(x.len());
        launch!(gpu, "dropout_mask", shape, x, &self.words, &mut y, &rows, &width)?;
        Ok(y)
    }

    /// Adds to `y` what of x is kept.
    pub(super) fn add(&self, gpu: &Gpu, x: &CudaView<'_, bf16>, y: &mut CudaViewMut<'_, bf16>) -> Done {
        assert_eq!(x.len(), y.len(), "one number for each");
        let (shape, [rows, width]) = self.eights(x.len());
        launch!(gpu, "dropout_add", shape, x, &self.words, y, &rows, &width)
    }

    /// A thread for every eight of so many numbers.
    fn eights(&self, count: usize) -> (LaunchConfig, [u32; 2]) {
        assert!(count == self.rows * self.width && self.width.is_multiple_of(EIGHT), "a mask for every eight");
        (per_number(count / EIGHT), [self.rows, self.width].map(number))
    }

    /// The factor (0 or 1 / (1 − p)) of every number, on the host; for whoever compares.
    pub fn factors(&self, gpu: &Gpu) -> Result<Vec<f32>, GpuError> {
        let words = gpu.download(&self.words.as_view())?;
        let of_row = |words: &[u64]| -> Vec<f32> {
            let is_kept = |c: usize| words[c / WORD] >> (c % WORD) & 1 == 1;
            (0..self.width).map(|c| if is_kept(c) { self.keep } else { 0.0 }).collect()
        };
        Ok(words.chunks(self.width.div_ceil(WORD)).take(self.rows).flat_map(of_row).collect())
    }
}
