//! Wide vectors where the processor has them, chosen at run time; and the few functions that must vectorise.
//!
//! Code inside [`wide`] is plain Rust without fused multiply-add: every processor gives the same bits, a wider one sooner.

/// Runs `f` compiled for the widest vectors this processor has. `f` should be `#[inline(always)]` and call only such.
#[inline(always)]
pub fn wide<R>(f: impl FnOnce() -> R) -> R {
    #[cfg(target_arch = "x86_64")]
    {
        if has_avx512() {
            // SAFETY: the features were just found
            return unsafe { with_avx512(f) };
        }
        if std::arch::is_x86_feature_detected!("avx2") {
            // SAFETY: the feature was just found
            return unsafe { with_avx2(f) };
        }
    }
    f()
}

/// Whether there are vectors of 16 numbers, and masks over them.
#[cfg(target_arch = "x86_64")]
pub(super) fn has_avx512() -> bool {
    use std::arch::is_x86_feature_detected as has;
    has!("avx512f") && has!("avx512dq") && has!("avx512vl") && has!("avx512bw") && has!("avx2")
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512dq,avx512vl,avx512bw,avx2")]
fn with_avx512<R>(f: impl FnOnce() -> R) -> R {
    f()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn with_avx2<R>(f: impl FnOnce() -> R) -> R {
    f()
}

/// Sums kept side by side in a reduction: the order of addition is fixed by this number, not by the processor.
pub const LANES: usize = 16;

/// e^x to about two units in the last place; 0 below the smallest normal number, as a masked score needs it.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    const LOG2_E: f32 = std::f32::consts::LOG2_E;
    // ln 2 in two parts: the first has few bits, so that n · HIGH is exact
    const HIGH: f32 = 0.693_359_4;
    const LOW: f32 = -2.121_944_4e-4;
    // adding 1.5 · 2^23 rounds to the nearest whole number and leaves it in the low bits
    const ROUND: f32 = 12_582_912.0;
    let clamped = x.clamp(-87.0, 88.0);
    let rounded = clamped * LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = (clamped - n * HIGH) - n * LOW;
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_199_9e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 0.5;
    let y = p * (r * r) + r + 1.0;
    // 2^n: n moved into the exponent, whose bias is 127
    let scale = f32::from_bits((rounded.to_bits() << 23).wrapping_add(127 << 23));
    if x < -87.0 { 0.0 } else { y * scale }
}

/// Hyperbolic tangent to about two units in the last place: a polynomial near zero, where 1 − 2 / (e²ˣ + 1) would lose digits.
#[inline(always)]
pub fn tanh(x: f32) -> f32 {
    let square = x * x;
    let mut p = -5.704_988_7e-3;
    p = p * square + 2.063_909e-2;
    p = p * square - 5.373_971_6e-2;
    p = p * square + 1.333_144_2e-1;
    p = p * square - 3.333_328e-1;
    let near = p * square * x + x;
    let far = 1.0 - 2.0 / (exp(2.0 * x.abs()) + 1.0);
    if x.abs() < 0.625 { near } else { far.copysign(x) }
}

/// Σ f(numbers at i of every slice), added in [`LANES`] interleaved sums that are then added in order.
#[inline(always)]
pub fn sum<const N: usize>(of: [&[f32]; N], f: impl Fn([f32; N]) -> f32) -> f32 {
    let len = of[0].len();
    let parts = of.map(|slice| slice[..len].as_chunks::<LANES>());
    let mut lanes = [0.0f32; LANES];
    for i in 0..len / LANES {
        let rows = parts.map(|(chunks, _)| &chunks[i]);
        for (lane, acc) in lanes.iter_mut().enumerate() {
            *acc += f(rows.map(|row| row[lane]));
        }
    }
    for (i, acc) in lanes.iter_mut().enumerate().take(len % LANES) {
        *acc += f(parts.map(|(_, rest)| rest[i]));
    }
    lanes.iter().sum()
}

/// The largest of `values`; −∞ of none.
#[inline(always)]
pub fn max(values: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (chunks, rest) = values.as_chunks::<LANES>();
    for chunk in chunks {
        for (acc, x) in lanes.iter_mut().zip(chunk) {
            *acc = if *x > *acc { *x } else { *acc };
        }
    }
    rest.iter().chain(&lanes).copied().fold(f32::NEG_INFINITY, f32::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_right_to_a_few_units_in_the_last_place() {
        let mut worst = 0.0f64;
        for i in -86_900..88_000 {
            let x = i as f32 * 1e-3;
            let exact = f64::from(x).exp();
            worst = worst.max(((f64::from(exp(x)) - exact) / exact).abs());
        }
        assert!(worst < 3e-7, "{worst}");
        assert_eq!((exp(0.0), exp(f32::NEG_INFINITY), exp(-100.0)), (1.0, 0.0, 0.0));
    }

    #[test]
    fn tanh_is_right_to_a_few_units_in_the_last_place() {
        let mut worst = 0.0f64;
        for i in (-12_000..12_000).filter(|i| *i != 0) {
            let x = i as f32 * 1e-3;
            let exact = f64::from(x).tanh();
            worst = worst.max(((f64::from(tanh(x)) - exact) / exact).abs());
        }
        assert!(worst < 3e-7, "{worst}");
        assert_eq!((tanh(0.0), tanh(1e9), tanh(-1e9)), (0.0, 1.0, -1.0));
    }

    #[test]
    fn sums_and_maxima_cover_the_ragged_end() {
        for n in [0usize, 1, 15, 16, 17, 100] {
            let values: Vec<f32> = (0..n).map(|i| i as f32).collect();
            assert_eq!(sum([&values], |[x]| x), (n * n.saturating_sub(1) / 2) as f32);
            assert_eq!(max(&values), if n == 0 { f32::NEG_INFINITY } else { n as f32 - 1.0 });
        }
    }
}
