//! An adapter on the embedding, on either machine.

use std::ops::Range;

use super::{Machine, Pair, Part, PartMut, Sums};
#[cfg(feature = "cuda")]
use super::{done, elsewhere};
#[cfg(feature = "cuda")]
use crate::ops::cuda;
use crate::ops::lookup;
use crate::ops::lora::PairGradient;

impl Machine {
    /// Adds the adapter's product to `y`, a row for each of `tokens`.
    pub fn lookup(&self, pair: &Pair<'_>, tokens: &[u32], mut y: PartMut<'_>) {
        match self {
            Machine::Cpu(_) => lookup::forward(pair.host(), tokens, y.host()),
            #[cfg(feature = "cuda")]
            Machine::Gpu(gpu) => done(cuda::lookup::forward(gpu, pair.device(), tokens, y.device())),
        }
    }

    /// Adds to the gradients of A and B, which lie at those places of `sums`, A's first; padding has none in A.
    pub fn lookup_backward(
        &self,
        pair: &Pair<'_>,
        (tokens, padding): (&[u32], Option<u32>),
        dy: &Part<'_>,
        (sums, [a, b]): (&mut Sums<'_>, [Range<usize>; 2]),
    ) {
        match self {
            Machine::Cpu(_) => {
                let (before, behind) = sums.host().split_at_mut(b.start);
                let mut gradient = PairGradient { a: &mut before[a], b: &mut behind[..b.len()] };
                lookup::backward(pair.host(), (tokens, padding), dy.host(), &mut gradient);
            }
            #[cfg(feature = "cuda")]
            Machine::Gpu(gpu) => {
                let Sums::Device(sums) = sums else { elsewhere() };
                let (mut before, mut behind) = sums.split_at_mut(b.start);
                let gradients = [&mut before.slice_mut(a), &mut behind.slice_mut(..b.len())];
                done(cuda::lookup::backward(gpu, pair.device(), (tokens, padding), dy.device(), gradients));
            }
        }
    }
}
