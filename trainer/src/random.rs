//! Random numbers for everything outside the passes: the order of an epoch and the weights of a new base.
//!
//! A stream is the output of BLAKE3 over a purpose and a list of keys, so it depends on nothing but them: no state to save,
//! the same numbers on every machine.

/// An endless stream of numbers for one purpose and key.
pub(crate) struct Stream {
    reader: blake3::OutputReader,
}

impl Stream {
    /// `purpose` keeps streams of equal keys apart.
    pub(crate) fn new(purpose: &str, keys: &[u64]) -> Stream {
        let mut hasher = blake3::Hasher::new_derive_key(&format!("lorikeet 1 {purpose}"));
        keys.iter().for_each(|key| {
            hasher.update(&key.to_le_bytes());
        });
        Stream { reader: hasher.finalize_xof() }
    }

    fn next(&mut self) -> u64 {
        let mut bytes = [0; 8];
        self.reader.fill(&mut bytes);
        u64::from_le_bytes(bytes)
    }

    /// Evenly from `0..bound` (multiply-shift; its bias, under bound / 2^64, is beyond measuring).
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }

    /// Two independent standard normal numbers (Box–Muller).
    pub(crate) fn normal_pair(&mut self) -> [f64; 2] {
        let radius = (-2.0 * (1.0 - self.unit()).ln()).sqrt();
        let (sin, cos) = (std::f64::consts::TAU * self.unit()).sin_cos();
        [radius * cos, radius * sin]
    }

    /// Evenly from `[0, 1)`, 53 bits.
    pub(crate) fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normal_numbers_have_mean_zero_and_variance_one() {
        let mut stream = Stream::new("test", &[1]);
        let numbers: Vec<f64> = (0..50_000).flat_map(|_| stream.normal_pair()).collect();
        let mean = numbers.iter().sum::<f64>() / numbers.len() as f64;
        let variance = numbers.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / numbers.len() as f64;
        assert!(mean.abs() < 0.02 && (variance - 1.0).abs() < 0.02, "mean {mean}, variance {variance}");
    }
}
