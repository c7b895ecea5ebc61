//! Where the time of a pass goes, by operation: a few dozen clock readings per layer, always on.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// What a span of time was spent on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are those of the operations")]
pub enum Op {
    Norm,
    Linear,
    Lora,
    Rope,
    Attention,
    Glu,
    Head,
}

impl Op {
    /// Every operation.
    pub const ALL: [Op; 7] = [Op::Norm, Op::Linear, Op::Lora, Op::Rope, Op::Attention, Op::Glu, Op::Head];
}

/// Sums since the model was loaded.
#[derive(Debug, Default)]
pub struct Profile {
    nanos: [AtomicU64; Op::ALL.len()],
}

impl Profile {
    /// Runs `f` and counts its time.
    pub fn time<T>(&self, op: Op, f: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let result = f();
        // a sum of durations for people: no other memory depends on it
        self.nanos[op as usize].fetch_add(start.elapsed().as_nanos() as u64, Ordering::Relaxed);
        result
    }

    /// Time spent so far.
    pub fn spent(&self) -> [(Op, Duration); Op::ALL.len()] {
        Op::ALL.map(|op| (op, Duration::from_nanos(self.nanos[op as usize].load(Ordering::Relaxed))))
    }
}
