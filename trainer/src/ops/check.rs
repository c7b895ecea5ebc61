//! Helpers of the operations' tests: seeded inputs, finite differences, closeness.

use super::random::philox;

/// `n` numbers in ±1, the same for the same seed.
pub(crate) fn numbers(seed: u32, n: usize) -> Vec<f64> {
    let word = |i: usize| philox([seed, 77], [i as u32, 0, 0, 0])[0];
    (0..n).map(|i| f64::from(word(i)) / f64::from(u32::MAX) * 2.0 - 1.0).collect()
}

/// The same in `f32`.
pub(crate) fn numbers32(seed: u32, n: usize) -> Vec<f32> {
    numbers(seed, n).into_iter().map(|x| x as f32).collect()
}

/// Asserts that `gradient` is that of `f` at `x`, to 1e-6 of its largest entry.
pub(crate) fn assert_gradient(name: &str, f: impl Fn(&[f64]) -> f64, x: &[f64], gradient: &[f64]) {
    const STEP: f64 = 1e-4;
    assert_eq!(x.len(), gradient.len(), "{name}");
    let at = |i: usize, delta: f64| {
        let mut moved = x.to_vec();
        moved[i] += delta;
        f(&moved)
    };
    // five points: the error falls with the fourth power of the step
    let slope =
        |i: usize| (8.0 * (at(i, STEP) - at(i, -STEP)) - (at(i, 2.0 * STEP) - at(i, -2.0 * STEP))) / (12.0 * STEP);
    let numeric: Vec<f64> = (0..x.len()).map(slope).collect();
    let size = numeric.iter().fold(0.0f64, |most, g| most.max(g.abs()));
    assert!(size > 0.0, "{name}: nothing depends on this input");
    for (i, (ours, theirs)) in gradient.iter().zip(&numeric).enumerate() {
        assert!((ours - theirs).abs() <= 1e-6 * size, "{name}[{i}]: {ours} against {theirs} by finite differences");
    }
}

/// Asserts that two results agree to `tolerance` of the largest number.
pub(crate) fn assert_close(name: &str, ours: &[f32], reference: &[f32], tolerance: f32) {
    assert_eq!(ours.len(), reference.len(), "{name}");
    let size = reference.iter().fold(0.0f32, |most, x| most.max(x.abs()));
    for (i, (a, b)) in ours.iter().zip(reference).enumerate() {
        assert!((a - b).abs() <= tolerance * size, "{name}[{i}]: {a}, expected {b}");
    }
}

/// Σ weights · values: turns a vector result into the number that finite differences need.
pub(crate) fn dot(weights: &[f64], values: &[f64]) -> f64 {
    weights.iter().zip(values).map(|(w, v)| w * v).sum()
}

/// Runs `f` in pools of 1, 2 and 3 threads and asserts the same bits.
pub(crate) fn assert_same_bits_on_any_threads(f: impl Fn() -> Vec<f32> + Sync) {
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads start");
        pool.install(&f).into_iter().map(f32::to_bits).collect::<Vec<_>>()
    };
    let one = run(1);
    assert!(one == run(2) && one == run(3), "bits depend on the number of threads");
}
