//! The scales of blocks, plain or quantised once more: `s ≈ map[code] · s' + mean`, s' shared by 256 of them.

use lorikeet_plan::QUANT_NESTED_BLOCK;

use super::map::dynamic_map;

/// Entries of the table in which bitsandbytes looks codes up on a CPU.
const TABLE: f32 = 65_535.0;

/// One scale a block.
#[derive(Debug, Clone, PartialEq)]
pub enum Scales {
    /// As they are.
    Plain(Vec<f32>),
    /// In 8 bits.
    Nested(Nested),
}

/// Scales in 8 bits.
#[derive(Debug, Clone, PartialEq)]
pub struct Nested {
    /// One a scale.
    pub codes: Vec<u8>,
    /// One a block of scales.
    pub scales: Vec<f32>,
    /// Scales of a block.
    pub block: usize,
    /// What the codes name, ascending.
    pub map: Box<[f32; 256]>,
    /// The mean of all scales.
    pub mean: f32,
}

impl Scales {
    /// Quantises them in blocks of 256. The mean is the exact one, rounded; bitsandbytes adds in an order of its own.
    pub fn nested(scales: &[f32]) -> Scales {
        let sum: f64 = scales.iter().map(|s| f64::from(*s)).sum();
        let mean = (sum / scales.len().max(1) as f64) as f32;
        let map = Box::new(dynamic_map());
        let centred: Vec<f32> = scales.iter().map(|s| s - mean).collect();
        let blocks = || centred.chunks(QUANT_NESTED_BLOCK);
        let of_blocks: Vec<f32> =
            blocks().map(|block| block.iter().fold(0.0, |most: f32, s| most.max(s.abs()))).collect();
        let bounds: Vec<f64> = map.windows(2).map(|pair| f64::midpoint(pair[0].into(), pair[1].into())).collect();
        let codes = blocks().zip(&of_blocks).flat_map(|(block, most)| {
            let (bounds, factor) = (&bounds, 1.0 / most);
            block.iter().map(move |s| if *most == 0.0 { 0 } else { nearest(bounds, s * factor) })
        });
        let codes = codes.collect();
        Scales::Nested(Nested { codes, scales: of_blocks, block: QUANT_NESTED_BLOCK, map, mean })
    }

    /// The scale of one block.
    pub fn get(&self, block: usize) -> f32 {
        match self {
            Scales::Plain(scales) => scales[block],
            Scales::Nested(nested) => {
                nested.map[usize::from(nested.codes[block])] * nested.scales[block / nested.block] + nested.mean
            }
        }
    }

    /// How many there are.
    #[expect(clippy::len_without_is_empty, reason = "a weight has a block at least")]
    pub fn len(&self) -> usize {
        match self {
            Scales::Plain(scales) => scales.len(),
            Scales::Nested(nested) => nested.codes.len(),
        }
    }

    /// Bytes that they take.
    pub fn bytes(&self) -> u64 {
        match self {
            Scales::Plain(scales) => 4 * scales.len() as u64,
            Scales::Nested(nested) => (nested.codes.len() + 4 * (nested.scales.len() + nested.map.len())) as u64,
        }
    }
}

/// The code of a number between −1 and 1, given the middles between the numbers that codes stand for. By way of a table of
/// 65,536 places, as bitsandbytes does it on a CPU: the number is moved to the nearest place before its code is looked for.
fn nearest(bounds: &[f64], x: f32) -> u8 {
    let place = ((x.clamp(-1.0, 1.0) + 1.0) * 0.5 * TABLE + 0.5).floor();
    let x = f64::from(place) * 2.0 / f64::from(TABLE) - 1.0;
    bounds.partition_point(|bound| x > *bound) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_come_back_within_a_step_of_their_map() {
        let scales: Vec<f32> = (0..1000).map(|i| 0.2 + (i * 73 % 997) as f32 / 10_000.0).collect();
        let nested = Scales::nested(&scales);
        assert_eq!(nested.len(), 1000);
        for (block, scale) in scales.iter().enumerate() {
            assert!((nested.get(block) - scale).abs() < 5e-4, "{} for {scale}", nested.get(block));
        }
        assert!(nested.bytes() < Scales::Plain(scales).bytes() * 3 / 5);
    }

    #[test]
    fn equal_scales_come_back_as_they_were() {
        let nested = Scales::nested(&[0.25; 300]);
        assert!((0..300).all(|block| nested.get(block) == 0.25));
    }
}
