//! Frozen weights in fewer bits, number for number as bitsandbytes has them.
//!
//! ```text
//! nf4    blocks of 64 numbers share a scale s = max |w|; a number is one of 16 levels, w ≈ level · s      quant/nf4.rs
//!        the scales are kept in 8 bits themselves: blocks of 256 of them, s ≈ map[code] · s' + mean       quant/scale.rs
//! int8   a row shares a scale s = max |w|; a number is an integer n, w ≈ n · s / 127                      quant/int8.rs
//! ```
//! Nothing computes with the codes: a product takes a few rows apart into 32-bit floats and multiplies those. What comes out is
//! rounded to the type that the weight had before, as bitsandbytes does it, so that a 16-bit model is one again.

mod base;
mod int8;
mod map;
mod nf4;
mod scale;
mod stack;

pub use base::write_base;
pub use int8::Int8;
pub use map::dynamic_map;
pub use nf4::{LEVELS, Nf4};
pub use scale::{Nested, Scales};
pub use stack::Stack;

use crate::ops::widen::Stored;
use half::{bf16, f16};

/// A matrix in fewer bits, `[rows, cols]`.
#[derive(Debug, Clone, PartialEq)]
pub enum Quantised {
    /// 4-bit normal floats.
    Nf4(Nf4),
    /// 8-bit integers.
    Int8(Int8),
}

impl Quantised {
    /// Overwrites `out` with the numbers from `first` on, row by row.
    pub fn widen(&self, first: usize, out: &mut [f32]) {
        match self {
            Quantised::Nf4(weight) => weight.widen(first, out),
            Quantised::Int8(weight) => weight.widen(first, out),
        }
    }

    /// Bytes that it takes.
    pub fn bytes(&self) -> u64 {
        match self {
            Quantised::Nf4(weight) => weight.bytes(),
            Quantised::Int8(weight) => weight.bytes(),
        }
    }
}

/// The nearest number of a type, as `f32`.
fn rounded(x: f32, stored: Stored) -> f32 {
    match stored {
        Stored::F32 => x,
        Stored::F16 => f16::from_f32(x).to_f32(),
        Stored::Bf16 => bf16::from_f32(x).to_f32(),
    }
}
