//! Numbers as weight files hold them, to `f32`.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

/// A stored number format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    /// 32-bit floats.
    F32,
    /// 16-bit floats, IEEE.
    F16,
    /// 16-bit brain floats.
    Bf16,
}

impl Stored {
    /// Bytes of one number.
    pub const fn bytes(self) -> usize {
        match self {
            Stored::F32 => 4,
            Stored::F16 | Stored::Bf16 => 2,
        }
    }
}

/// Numbers converted at a time, on the stack: the bytes may lie unaligned.
const BLOCK: usize = 256;

/// Little-endian numbers to `f32`; every stored number has its exact value there.
pub fn widen(stored: Stored, bytes: &[u8], out: &mut [f32]) {
    assert_eq!(bytes.len(), out.len() * stored.bytes(), "one number per place");
    let blocks = out.chunks_mut(BLOCK).zip(bytes.chunks(BLOCK * stored.bytes()));
    match stored {
        Stored::F32 => {
            for (x, four) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
                *x = f32::from_le_bytes(*four);
            }
        }
        Stored::F16 => blocks.for_each(|(out, bytes)| half(bytes, f16::from_le_bytes).convert_to(out)),
        Stored::Bf16 => blocks.for_each(|(out, bytes)| half(bytes, bf16::from_le_bytes).convert_to(out)),
    }
}

struct Block<T>([T; BLOCK]);

fn half<T: Copy + Default>(bytes: &[u8], of: fn([u8; 2]) -> T) -> Block<T> {
    let mut block = Block([T::default(); BLOCK]);
    block.0.iter_mut().zip(bytes.as_chunks::<2>().0).for_each(|(x, two)| *x = of(*two));
    block
}

impl<T> Block<T>
where
    [T]: HalfFloatSliceExt,
{
    fn convert_to(&self, out: &mut [f32]) {
        self.0[..out.len()].convert_to_f32_slice(out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_format_keeps_its_values_whatever_the_length() {
        let values: Vec<f32> = (0..700).map(|i| (i as f32 - 350.0) * 0.25).collect();
        let f32s: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        let f16s: Vec<u8> = values.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect();
        let bf16s: Vec<u8> = values.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect();
        for (stored, bytes) in [(Stored::F32, f32s), (Stored::F16, f16s), (Stored::Bf16, bf16s)] {
            let mut out = vec![0.0; values.len()];
            widen(stored, &bytes, &mut out);
            assert!(out.iter().zip(&values).all(|(a, b)| (a - b).abs() <= b.abs() / 256.0), "{stored:?}");
        }
    }
}
