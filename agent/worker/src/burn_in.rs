//! A small test of a device: does it still compute, and does its memory hold what was written?
//!
//! For the processor, on every core at once: a product of two matrices of small whole numbers, which 32-bit floats hold exactly, is
//! compared with itself by another way round, A·(B·x) = (A·B)·x (Freivalds 1979); and a stretch of memory is written and read back. Any
//! difference at all is the machine's. For a GPU, every kernel of the trainer beside its plain form.

use std::thread;

use lorikeet_protocol::worker::NO_TEST;

/// Rows and columns: sums stay below 2^24, the last whole number that a 32-bit float is sure of.
const SIDE: usize = 192;
/// Products per core: a second or so.
const ROUNDS: u64 = 40;
/// 64-bit words of memory per core: 32 MiB.
const WORDS: usize = 4 << 20;

/// Whether the device is fit; what differs is said in words.
pub fn burn_in(device: &str) -> Result<(), String> {
    if device != "cpu" {
        // the agent lets a test see that GPU alone
        return lorikeet_trainer::test_gpu(0).unwrap_or_else(|| Err(format!("{NO_TEST}{device}")));
    }
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let results: Vec<_> = thread::scope(|scope| {
        let cores: Vec<_> = (0..cores as u64).map(|core| scope.spawn(move || one_core(core))).collect();
        cores.into_iter().map(|core| core.join().unwrap_or_else(|_| Err("a core's test panicked".into()))).collect()
    });
    results.into_iter().collect()
}

fn one_core(core: u64) -> Result<(), String> {
    for round in 0..ROUNDS {
        let seed = core * ROUNDS + round;
        let (a, b) = (matrix(seed * 2), matrix(seed * 2 + 1));
        let wrong = differences(&a, &b, &product(&a, &b));
        if wrong > 0 {
            return Err(format!("core {core}, round {round}: {wrong} of {SIDE} rows of a product differ"));
        }
    }
    let written: Vec<u64> = (0..WORDS as u64).map(|word| mixed(word ^ core)).collect();
    let wrong =
        std::hint::black_box(&written).iter().zip(0..).filter(|(held, word)| **held != mixed(word ^ core)).count();
    if wrong > 0 { Err(format!("core {core}: {wrong} of {WORDS} words of memory changed")) } else { Ok(()) }
}

/// Small whole numbers out of a seed.
fn matrix(seed: u64) -> Vec<f32> {
    (0..SIDE * SIDE).map(|place| (mixed((seed << 32) | place as u64) % 17) as f32 - 8.0).collect()
}

fn mixed(seed: u64) -> u64 {
    let bits = (seed ^ (seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

fn product(a: &[f32], b: &[f32]) -> Vec<f32> {
    let mut c = vec![0.0; SIDE * SIDE];
    for (row, out) in a.chunks(SIDE).zip(c.chunks_mut(SIDE)) {
        for (left, line) in row.iter().zip(b.chunks(SIDE)) {
            out.iter_mut().zip(line).for_each(|(sum, right)| *sum += left * right);
        }
    }
    c
}

/// Rows in which (A·B)·x and A·(B·x) are not the same, for x of small whole numbers.
fn differences(a: &[f32], b: &[f32], c: &[f32]) -> usize {
    let x: Vec<f32> = (0..SIDE).map(|place| (place % 3) as f32 - 1.0).collect();
    let times = |m: &[f32], v: &[f32]| -> Vec<f64> {
        m.chunks(SIDE).map(|row| row.iter().zip(v).map(|(m, v)| f64::from(*m) * f64::from(*v)).sum()).collect()
    };
    let bx: Vec<f32> = times(b, &x).into_iter().map(|value| value as f32).collect();
    times(c, &x).into_iter().zip(times(a, &bx)).filter(|(one, other)| one != other).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sound_processor_passes_and_a_build_without_gpus_has_no_test_for_one() {
        assert_eq!(burn_in("cpu"), Ok(()));
        assert!(burn_in("GPU-1").unwrap_err().contains("no test for GPU-1"));
    }

    #[test]
    fn one_wrong_number_is_noticed() {
        let (a, b) = (matrix(1), matrix(2));
        let mut c = product(&a, &b);
        assert_eq!(differences(&a, &b, &c), 0);
        // Where x is not zero.
        c[5 * SIDE + 3] += 1.0;
        assert_eq!(differences(&a, &b, &c), 1);
    }
}
