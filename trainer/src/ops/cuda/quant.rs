//! Frozen weights with fewer bits, made bf16 for one product.

use cudarc::driver::{CudaView, CudaViewMut};
use half::bf16;

use super::{Done, Gpu, launch, number, per_number};

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
    launch!(gpu, "nf4_widen", per_number(count / 2), codes, factors, y, &(count as u64), &number(block))
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
    launch!(gpu, "int8_widen", per_number(count), codes, factors, y, &(count as u64), &number(width))
}
