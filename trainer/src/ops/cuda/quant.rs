//! Frozen weights with fewer bits, made bf16 for one product.

use std::ops::Range;

use cudarc::driver::{CudaSlice, CudaView, CudaViewMut};
use half::bf16;

use super::{Done, EIGHT, Gpu, GpuError, eights, launch, number, per_number};
use crate::quant::{LEVELS, Quantised, Stack};

/// Weights of several modules in few bits, one below the other; the scales of scales are taken apart once.
#[derive(Debug)]
pub struct Stacked {
    parts: Vec<(Range<usize>, Codes)>,
    cols: usize,
}

#[derive(Debug)]
enum Codes {
    Nf4 {
        codes: CudaSlice<u8>,
        factors: CudaSlice<f32>,
        block: usize,
    },
    Int8 {
        codes: CudaSlice<i8>,
        factors: CudaSlice<f32>,
    },
    /// Levels that the kernel does not know.
    Wide(CudaSlice<bf16>),
}

impl Stacked {
    /// Those of the host.
    pub fn upload(gpu: &Gpu, stack: &Stack) -> Result<Stacked, GpuError> {
        let part = |(rows, weight): &(Range<usize>, Quantised)| {
            Ok((rows.clone(), Codes::upload(gpu, weight, rows.len() * stack.cols())?))
        };
        Ok(Stacked { parts: stack.parts().iter().map(part).collect::<Result<_, GpuError>>()?, cols: stack.cols() })
    }

    /// All rows of the modules that some consecutive ones are of.
    pub fn around(&self, rows: &Range<usize>) -> Range<usize> {
        let touched = |(part, _): &&(Range<usize>, Codes)| part.start < rows.end && rows.start < part.end;
        let mut parts = self.parts.iter().filter(touched).map(|(part, _)| part);
        let first = parts.next().expect("a weight has those rows");
        first.start..parts.next_back().unwrap_or(first).end
    }

    /// Overwrites `y` with some consecutive modules' rows.
    pub fn widen(&self, gpu: &Gpu, around: &Range<usize>, y: &mut CudaViewMut<'_, bf16>) -> Done {
        let within = |(rows, _): &&(Range<usize>, Codes)| around.start <= rows.start && rows.end <= around.end;
        self.parts.iter().filter(within).try_for_each(|(rows, part)| {
            let place = (rows.start - around.start) * self.cols..(rows.end - around.start) * self.cols;
            let y = &mut y.slice_mut(place);
            match part {
                Codes::Nf4 { codes, factors, block } => nf4(gpu, &codes.as_view(), &factors.as_view(), *block, y),
                Codes::Int8 { codes, factors } => int8(gpu, &codes.as_view(), &factors.as_view(), self.cols, y),
                Codes::Wide(numbers) => gpu.copy(&numbers.as_view(), y),
            }
        })
    }
}

impl Codes {
    fn upload(gpu: &Gpu, weight: &Quantised, numbers: usize) -> Result<Codes, GpuError> {
        Ok(match weight {
            Quantised::Nf4(nf4)
                if nf4.levels == LEVELS && [numbers, nf4.block].iter().all(|count| count.is_multiple_of(EIGHT)) =>
            {
                let factors: Vec<f32> = (0..nf4.scales.len()).map(|block| nf4.scales.get(block)).collect();
                Codes::Nf4 { codes: gpu.upload(&nf4.codes)?, factors: gpu.upload(&factors)?, block: nf4.block }
            }
            Quantised::Int8(int8) => {
                Codes::Int8 { codes: gpu.upload(&int8.codes)?, factors: gpu.upload(&int8.factors())? }
            }
            Quantised::Nf4(_) => {
                let mut wide = vec![0.0; numbers];
                weight.widen(0, &mut wide);
                Codes::Wide(gpu.upload(&wide.into_iter().map(bf16::from_f32).collect::<Vec<_>>())?)
            }
        })
    }
}

/// NF4: two numbers a byte, the upper half first, and one factor for every `block` numbers.
pub fn nf4(
    gpu: &Gpu,
    codes: &CudaView<'_, u8>,
    factors: &CudaView<'_, f32>,
    block: usize,
    y: &mut CudaViewMut<'_, bf16>,
) -> Done {
    let count = y.len();
    assert!(count == 2 * codes.len() && factors.len() == count.div_ceil(block), "codes and factors for every number");
    assert_eq!(block % EIGHT, 0, "one factor for eight numbers");
    let all = eights(count);
    launch!(gpu, "nf4_widen", per_number(all as usize), codes, factors, y, &all, &number(block))
}

/// Eight bits: one factor for every row of `width` numbers.
pub fn int8(
    gpu: &Gpu,
    codes: &CudaView<'_, i8>,
    factors: &CudaView<'_, f32>,
    width: usize,
    y: &mut CudaViewMut<'_, bf16>,
) -> Done {
    let count = y.len();
    assert!(count == codes.len() && count == factors.len() * width, "codes and factors for every number");
    let [of_row, all] = [width, count].map(eights);
    launch!(gpu, "int8_widen", per_number(all as usize), codes, factors, y, &all, &of_row)
}
