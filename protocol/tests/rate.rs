//! The bound of the data plane, by a virtual clock: whoever waits for as long as the bucket says passes no more than was agreed, and no less.

use lorikeet_protocol::{file::CHUNK_BYTES, rate::Bucket};
use std::time::{Duration, SystemTime};

/// What a node may fetch, and give, in a second.
const RATE: u64 = 100 << 20;

#[test]
fn in_no_span_of_time_more_passes_than_the_rate_and_one_burst() {
    let mut seed = seed();
    let (mut bucket, mut now, mut passed) = (Bucket::new(RATE, CHUNK_BYTES), Duration::ZERO, Vec::new());
    for _ in 0..2_000 {
        // Several ask at once, then nobody for a while.
        now += Duration::from_millis(chance(&mut seed, 4) * chance(&mut seed, 300));
        let bytes = 1 + chance(&mut seed, CHUNK_BYTES);
        passed.push((now + bucket.take(bytes, now), bytes));
    }
    for (index, (from, _)) in passed.iter().enumerate() {
        let mut bytes = 0;
        for (to, more) in &passed[index..] {
            bytes += more;
            let agreed = RATE as f64 * to.saturating_sub(*from).as_secs_f64() + CHUNK_BYTES as f64;
            // A time is rounded to the nanosecond, which is a tenth of a byte.
            assert!(bytes as f64 <= agreed + 1_024.0, "{bytes} bytes from {from:?} to {to:?}");
        }
    }
}

#[test]
fn who_always_asks_gets_the_whole_rate() {
    let mut bucket = Bucket::new(RATE, CHUNK_BYTES);
    let (mut now, chunks) = (Duration::from_secs(5), 1_000);
    let begun = now;
    for _ in 0..chunks {
        now += bucket.take(CHUNK_BYTES, now);
    }
    let (bytes, seconds) = ((chunks - 1) * CHUNK_BYTES, (now - begun).as_secs_f64());
    let measured = bytes as f64 / seconds;
    assert!((measured / RATE as f64 - 1.0).abs() < 1e-6, "{measured} bytes a second");
}

fn seed() -> u64 {
    let given = std::env::var("LORIKEET_SEED").ok().and_then(|text| text.parse().ok());
    let clock = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_nanos() as u64;
    let seed = given.unwrap_or_else(clock);
    eprintln!("seed: LORIKEET_SEED={seed}");
    seed
}

/// SplitMix64.
fn chance(seed: &mut u64, below: u64) -> u64 {
    *seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut mixed = *seed;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (mixed ^ (mixed >> 31)) % below
}
