//! Dropout on the device, with the very masks of [`crate::ops::random::Masks`].

use cudarc::driver::{CudaSlice, CudaView, CudaViewMut};
use half::bf16;

use super::{Done, Gpu, GpuError, launch, number, shape};
use crate::ops::random::Masks;

/// The masks of every row of one run of tokens, on the device.
#[derive(Debug)]
pub struct RowMasks {
    /// Three words a row: the key of its masks and its token.
    keys: CudaSlice<u32>,
    rows: usize,
    threshold: u32,
    keep: f32,
}

impl RowMasks {
    /// `(masks, token within its example)` per row. All of them come from one adapter: one probability.
    pub fn upload(gpu: &Gpu, rows: &[(Masks, u32)]) -> Result<RowMasks, GpuError> {
        let words: Vec<u32> = rows
            .iter()
            .flat_map(|(masks, token)| {
                let [k0, k1] = masks.key();
                [k0, k1, *token]
            })
            .collect();
        let (threshold, keep) = rows.first().map_or((0, 1.0), |(masks, _)| (masks.threshold(), masks.keep()));
        assert!(rows.iter().all(|(masks, _)| masks.threshold() == threshold), "one adapter, one probability");
        Ok(RowMasks { keys: gpu.upload(&words)?, rows: rows.len(), threshold, keep })
    }

    /// `y = x∘m`.
    pub fn apply(&self, gpu: &Gpu, x: &CudaView<'_, bf16>, y: &mut CudaViewMut<'_, bf16>) -> Done {
        self.run(gpu, x, y, 0)
    }

    /// `y += x∘m`.
    pub fn add(&self, gpu: &Gpu, x: &CudaView<'_, bf16>, y: &mut CudaViewMut<'_, bf16>) -> Done {
        self.run(gpu, x, y, 1)
    }

    fn run(&self, gpu: &Gpu, x: &CudaView<'_, bf16>, y: &mut CudaViewMut<'_, bf16>, add: u32) -> Done {
        let width = x.len() / self.rows.max(1);
        assert!(x.len() == y.len() && x.len() == self.rows * width, "masks for every row");
        // a thread makes four channels of a group of 64
        let threads = self.rows * width.div_ceil(64) * 16;
        let (threshold, keep) = (self.threshold, self.keep);
        launch!(
            gpu,
            "dropout",
            shape(threads.div_ceil(256), 256),
            x,
            y,
            &self.keys,
            &number(self.rows),
            &number(width),
            &threshold,
            &keep,
            &add
        )
    }
}
