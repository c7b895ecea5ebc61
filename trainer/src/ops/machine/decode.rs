//! What is kept of a sequence that goes on, on the machine that attends over it.

use super::{Buffer, Machine};
#[cfg(feature = "cuda")]
use super::{done, elsewhere};
use crate::ops::attention::Heads;
#[cfg(feature = "cuda")]
use crate::ops::cuda;
use crate::ops::decode;

/// Keys and values of every position so far, of one layer.
#[derive(Debug)]
pub enum Past {
    /// On the host.
    Host(decode::Kept),
    /// On the device.
    #[cfg(feature = "cuda")]
    Device(cuda::decode::Kept),
}

impl Past {
    /// Whether nothing has been kept yet.
    pub fn is_empty(&self) -> bool {
        match self {
            Past::Host(kept) => kept.is_empty(),
            #[cfg(feature = "cuda")]
            Past::Device(kept) => kept.is_empty(),
        }
    }
}

impl Machine {
    /// One that holds nothing.
    pub fn past(&self) -> Past {
        match self {
            Machine::Cpu(_) => Past::Host(decode::Kept::default()),
            #[cfg(feature = "cuda")]
            Machine::Gpu(_) => Past::Device(cuda::decode::Kept::default()),
        }
    }

    /// Keeps keys and values of new rows.
    pub fn keep(&self, heads: Heads, qkv: &Buffer, past: &mut Past) {
        match (self, past) {
            (Machine::Cpu(_), Past::Host(kept)) => kept.push(heads, qkv.host()),
            #[cfg(feature = "cuda")]
            (Machine::Gpu(gpu), Past::Device(kept)) => done(kept.push(gpu, heads, &qkv.device())),
            #[cfg(feature = "cuda")]
            _ => elsewhere(),
        }
    }

    /// Output of new rows, whose keys and values are the last of those kept.
    pub fn attend(&self, heads: Heads, qkv: &Buffer, past: &Past, out: &mut Buffer) {
        match (self, past) {
            (Machine::Cpu(_), Past::Host(kept)) => decode::forward(heads, qkv.host(), kept, out.host_mut()),
            #[cfg(feature = "cuda")]
            (Machine::Gpu(gpu), Past::Device(kept)) => {
                done(cuda::decode::forward(gpu, heads, &qkv.device(), kept, &mut out.device_mut()));
            }
            #[cfg(feature = "cuda")]
            _ => elsewhere(),
        }
    }
}
