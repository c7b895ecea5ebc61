//! [`crate::ops::head`] on the device: logits of a chunk of supervised rows at a time, turned into their own gradient.

use cudarc::driver::{CudaSlice, CudaView, CudaViewMut};
use half::bf16;

use super::linear::{self, Weight};
use super::{Done, Gpu, GpuError, launch, number, shape};
use crate::ops::head::{Beside, Wanted};
use crate::ops::machine::{Part, PartMut};

/// Threads of a row: a vocabulary is long.
const THREADS: u32 = 512;

/// What becomes of each row, on the device.
#[derive(Debug)]
pub struct Targets {
    tokens: CudaSlice<u32>,
    weights: CudaSlice<f32>,
    rows: usize,
    /// Rows whose logits exist at a time, at most.
    at_once: usize,
}

impl Targets {
    /// Tokens lie within the vocabulary; whoever made them has checked that.
    pub fn upload(gpu: &Gpu, wanted: &[Wanted]) -> Result<Targets, GpuError> {
        let tokens: Vec<u32> = wanted.iter().map(|wanted| wanted.target).collect();
        let weights: Vec<f32> = wanted.iter().map(|wanted| wanted.weight).collect();
        let (rows, at_once) = (wanted.len(), usize::MAX);
        Ok(Targets { tokens: gpu.upload(&tokens)?, weights: gpu.upload(&weights)?, rows, at_once })
    }

    /// In smaller chunks than there is room for: for tests, which see several of them so.
    pub fn in_chunks_of(self, at_once: usize) -> Targets {
        Targets { at_once, ..self }
    }

    /// Rows of a chunk: by shape alone.
    fn chunk(&self, vocabulary: usize) -> usize {
        (lorikeet_plan::GPU_LOGITS / vocabulary).max(1).min(self.rows.max(1)).min(self.at_once)
    }
}

/// −ln p of every row's target to `losses`; where `dx` is given it is overwritten with the weighted gradient. `x` is
/// [rows, width]. A row of weight 0 has a gradient of zeros.
pub fn loss(
    gpu: &Gpu,
    x: &CudaView<'_, bf16>,
    (weight, softcap): (&Weight, Option<f32>),
    targets: &Targets,
    beside: &mut dyn Beside,
    losses: &mut CudaViewMut<'_, f32>,
    mut dx: Option<&mut CudaViewMut<'_, bf16>>,
) -> Done {
    let (width, vocabulary) = (weight.cols(), weight.rows());
    assert!(x.len() == targets.rows * width && losses.len() >= targets.rows, "a row for every target");
    let chunk = targets.chunk(vocabulary);
    let mut logits = gpu.take::<bf16>(chunk * vocabulary)?;
    for first in (0..targets.rows).step_by(chunk) {
        let rows = first..(first + chunk).min(targets.rows);
        let of_x = rows.start * width..rows.end * width;
        let (x, mut logits) = (x.slice(of_x.clone()), logits.slice_mut(..rows.len() * vocabulary));
        linear::forward(gpu, &x, weight, &mut logits)?;
        let x = Part::Device(x);
        beside.forward(rows.clone(), &x, PartMut::Device(logits.slice_mut(..)));
        launch!(
            gpu,
            "head_loss",
            shape(rows.len(), THREADS),
            &mut logits,
            &targets.tokens.slice(rows.clone()),
            &targets.weights.slice(rows.clone()),
            &mut losses.slice_mut(rows.clone()),
            &number(vocabulary),
            &softcap.unwrap_or(0.0),
            &u32::from(dx.is_some())
        )?;
        if let Some(dx) = dx.as_deref_mut() {
            let mut dx = dx.slice_mut(of_x);
            linear::backward(gpu, &logits.as_view(), weight, &mut dx)?;
            beside.backward(rows, &x, &Part::Device(logits.as_view()), PartMut::Device(dx));
        }
    }
    Ok(())
}

/// Adds the losses of every adapter's rows to its sum. Who knows of one adapter only names none: every row is the first one's.
pub fn add_losses(
    gpu: &Gpu,
    losses: &CudaView<'_, f32>,
    adapters: Option<&CudaView<'_, u32>>,
    sums: &mut CudaViewMut<'_, f64>,
) -> Done {
    assert!(adapters.is_none_or(|adapters| adapters.len() == losses.len()), "every row is somebody's");
    assert!(adapters.is_some() || sums.len() == 1, "one sum for one adapter");
    let (rows, blocks) = (number(losses.len()), shape(sums.len(), super::THREADS));
    launch!(gpu, "add_losses", blocks, losses, &gpu.address(adapters), &rows, sums)
}
