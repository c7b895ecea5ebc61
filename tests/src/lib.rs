//! The harness of the stories: real programs in a temporary folder on free ports, observed as an operator would.
//!
//! A [`Lab`] owns the folder and everything started in it; dropping an agent kills what still runs there and fails the
//! test if that was a worker. Nothing sleeps for a fixed time: [`until`] waits for a state, with a deadline and a word for what it waited for.

pub mod api;
pub mod base;
pub mod conversations;
pub mod crowd;
pub mod findings;
pub mod lab;
pub mod process;
pub mod proxy;
pub mod sim;
pub mod stand_in;

pub use api::Api;
pub use lab::Lab;

use std::time::{Duration, Instant};

/// Long enough for a busy machine of two cores; a state that takes longer is a failure.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Waits for a state and gives what it found; says what it waited for, as that stands by then, when it does not come.
pub fn until<T>(what: impl std::fmt::Display, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited {PATIENCE:?} for {what}");
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

/// The seed of what a story leaves to chance: `LORIKEET_SEED`, else the clock; printed, so that a failure can be replayed.
pub fn seed() -> u64 {
    let given = std::env::var("LORIKEET_SEED").ok().and_then(|text| text.parse().ok());
    let seed = given.unwrap_or_else(|| uuid::Uuid::now_v7().as_u64_pair().1);
    eprintln!("seed: LORIKEET_SEED={seed}");
    seed
}

/// The next number of a small counter-based generator (SplitMix64): chance in a test has to be replayable, nothing more.
pub fn chance(seed: &mut u64, below: u64) -> u64 {
    *seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut mixed = *seed;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (mixed ^ (mixed >> 31)) % below
}
