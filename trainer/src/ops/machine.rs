//! Where a pass computes: on the processor, or on a GPU. The two that there are, as enums (docs/design/0009).
//!
//! ```text
//! model/*.rs ── machine.norm(&x, &gain, eps, &mut y) ──┬─ Machine::Cpu    ops/norm.rs        f32 slices, rayon
//!   (one tape)     x: &Buffer, y: &mut Buffer          └─ Machine::Gpu    ops/cuda/norm.rs   bf16 views, one stream
//! ```
//! A [`Buffer`] lies on one machine and is used there: one that lies elsewhere is our own bug, and a panic. On a GPU work is put on
//! the stream and nobody waits for it; what comes back to the host does ([`Machine::get`], [`Machine::read`], [`Machine::receive`]).
//!
//! What a machine refuses, memory above all, unwinds out of the pass, for no operation could go on without; the door through which
//! the pass was begun catches it (`caught`).

mod adamw;
mod adapter;
mod block;
mod buffer;
mod collective;
mod decode;
mod dora;
mod head;
mod lookup;
mod trained;
mod weight;

use std::borrow::Cow;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;

#[cfg(feature = "cuda")]
use half::bf16;

use super::buffer::{Buffers, Refused};
#[cfg(feature = "cuda")]
use super::cuda::{Gpu, GpuError};
use crate::TrainError;

pub use adamw::{Clip, Judged, Sent};
pub use adapter::{Input, Mask, Operand, Pair, RowMasks, Sums};
pub use block::{HeadNorm, Segments, Turns};
pub use buffer::{Buffer, Exact, Params, Part, PartMut};
pub use collective::{Collective, Meeting};
pub use decode::Past;
pub use dora::{Dora, Lengths};
pub use head::{Head, LossSums, Losses};
pub use trained::{ParamsAt, SumsAt};
pub use weight::Weight;

/// Where a model computes. A copy is the same one.
#[derive(Debug, Clone)]
pub enum Machine {
    /// In `f32`, in the surrounding rayon pool.
    Cpu(Arc<Buffers>),
    /// In bf16 with `f32` arithmetic, on one stream.
    #[cfg(feature = "cuda")]
    Gpu(Arc<Gpu>),
}

impl Default for Machine {
    fn default() -> Machine {
        Machine::Cpu(Arc::default())
    }
}

/// Why a pass was broken off.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    /// There is no memory for it.
    #[error("take {} bytes of memory", .0.bytes)]
    Refused(Refused),
    /// The GPU refused something else.
    #[cfg(feature = "cuda")]
    #[error(transparent)]
    Gpu(GpuError),
}

/// Does `pass` and tells what a machine refused from every other panic.
pub(crate) fn caught<T>(pass: impl FnOnce() -> T) -> Result<T, Broken> {
    let panic = match catch_unwind(AssertUnwindSafe(pass)) {
        Ok(answer) => return Ok(answer),
        Err(panic) => panic,
    };
    #[cfg(feature = "cuda")]
    let panic = match panic.downcast::<GpuError>() {
        Ok(error) => return Err(Broken::Gpu(*error)),
        Err(other) => other,
    };
    match panic.downcast::<Refused>() {
        Ok(refused) => Err(Broken::Refused(*refused)),
        Err(other) => resume_unwind(other),
    }
}

/// What the GPU answered; what it refused ends the pass.
#[cfg(feature = "cuda")]
fn done<T>(answer: Result<T, GpuError>) -> T {
    answer.unwrap_or_else(|error| {
        if error.is_out_of_memory() {
            resume_unwind(Box::new(Refused { bytes: error.wanted_bytes() }))
        }
        resume_unwind(Box::new(error))
    })
}

/// Something lies on the other machine.
#[cfg(feature = "cuda")]
fn elsewhere() -> ! {
    panic!("a pass keeps all it needs on the machine it computes on")
}

impl Machine {
    /// The GPU at that place among those that this process sees; compiles every kernel for it, which takes a second or two.
    #[cfg(feature = "cuda")]
    pub fn gpu(ordinal: usize) -> Result<Machine, TrainError> {
        Ok(Machine::Gpu(Arc::new(Gpu::open(ordinal)?)))
    }

    /// There is none in this build.
    #[cfg(not(feature = "cuda"))]
    pub fn gpu(ordinal: usize) -> Result<Machine, TrainError> {
        let reason =
            format!("open GPU {ordinal}: this build has no CUDA support, expected one made with `--features cuda`");
        Err(TrainError::Device { reason })
    }

    /// Makes ready what a model with heads of that width needs, so that nothing is compiled, and no memory found missing for it, in a pass.
    pub fn prepare(&self, head_dim: usize) {
        match self {
            Machine::Cpu(_) => {}
            #[cfg(feature = "cuda")]
            Machine::Gpu(gpu) => done(gpu.prepare_attention(head_dim)),
        }
        let _ = head_dim;
    }

    /// What a run may hold of memory that is the machine's own, in bytes, with what it holds already; a processor has none.
    pub fn available_bytes(&self) -> Result<Option<u64>, TrainError> {
        match self {
            Machine::Cpu(_) => Ok(None),
            #[cfg(feature = "cuda")]
            Machine::Gpu(gpu) => Ok(Some(gpu.available()?)),
        }
    }

    /// Whether it is a GPU: some things are done on the processor only.
    pub fn is_gpu(&self) -> bool {
        match self {
            Machine::Cpu(_) => false,
            #[cfg(feature = "cuda")]
            Machine::Gpu(_) => true,
        }
    }

    /// Whether what lies on one of them can be used on the other.
    pub fn is(&self, other: &Machine) -> bool {
        match (self, other) {
            (Machine::Cpu(_), Machine::Cpu(_)) => true,
            #[cfg(feature = "cuda")]
            (Machine::Gpu(one), Machine::Gpu(other)) => Arc::ptr_eq(one, other),
            #[cfg(feature = "cuda")]
            _ => false,
        }
    }

    /// A pass begins.
    pub fn begin(&self) {
        match self {
            Machine::Cpu(buffers) => buffers.begin(),
            #[cfg(feature = "cuda")]
            Machine::Gpu(_) => {}
        }
    }

    /// A buffer with unspecified contents.
    pub fn take(&self, len: usize) -> Buffer {
        match self {
            Machine::Cpu(buffers) => Buffer::Host(buffers.take(len)),
            #[cfg(feature = "cuda")]
            Machine::Gpu(gpu) => Buffer::Device(done(gpu.take(len))),
        }
    }

    /// A buffer of zeros.
    pub fn zeros(&self, len: usize) -> Buffer {
        match self {
            Machine::Cpu(buffers) => Buffer::Host(buffers.zeros(len)),
            #[cfg(feature = "cuda")]
            Machine::Gpu(gpu) => Buffer::Device(done(gpu.zeros(len))),
        }
    }

    /// Fills a buffer with zeros.
    pub fn clear(&self, buffer: &mut Buffer) {
        match self {
            Machine::Cpu(_) => buffer.host_mut().fill(0.0),
            #[cfg(feature = "cuda")]
            Machine::Gpu(gpu) => done(gpu.clear(&mut buffer.device_mut())),
        }
    }

    /// Numbers with unspecified contents that stay `f32`.
    pub fn take_exact(&self, len: usize) -> Exact {
        match self {
            Machine::Cpu(buffers) => Exact::Host(buffers.take(len)),
            #[cfg(feature = "cuda")]
            Machine::Gpu(gpu) => Exact::Device(done(gpu.take(len))),
        }
    }

    /// A copy.
    pub fn copy(&self, buffer: &Buffer) -> Buffer {
        let mut copy = self.take(buffer.len());
        match self {
            Machine::Cpu(_) => copy.host_mut().copy_from_slice(buffer.host()),
            #[cfg(feature = "cuda")]
            Machine::Gpu(gpu) => done(gpu.copy(&buffer.device(), &mut copy.device_mut())),
        }
        copy
    }

    /// Hands a buffer back. The driver's pool takes a device's.
    pub fn give(&self, buffer: Buffer) {
        match (self, buffer) {
            (Machine::Cpu(buffers), Buffer::Host(numbers)) => buffers.give(numbers),
            #[cfg(feature = "cuda")]
            (Machine::Gpu(_), buffer) => drop(buffer),
            #[cfg(feature = "cuda")]
            (Machine::Cpu(_), Buffer::Device(_)) => elsewhere(),
        }
    }

    /// Hands numbers that stay `f32` back.
    pub fn give_exact(&self, numbers: Exact) {
        match (self, numbers) {
            (Machine::Cpu(buffers), Exact::Host(numbers)) => buffers.give(numbers),
            #[cfg(feature = "cuda")]
            (Machine::Gpu(_), numbers) => drop(numbers),
            #[cfg(feature = "cuda")]
            (Machine::Cpu(_), Exact::Device(_)) => elsewhere(),
        }
    }

    /// Numbers of the host, there; they stay `f32`. Out of memory is an error of whoever loads, not of a pass.
    pub fn put_exact<'a>(&self, numbers: impl Into<Cow<'a, [f32]>>) -> Exact {
        let numbers = numbers.into();
        match self {
            Machine::Cpu(_) => Exact::Host(numbers.into_owned()),
            #[cfg(feature = "cuda")]
            Machine::Gpu(gpu) => Exact::Device(done(gpu.upload(&numbers))),
        }
    }

    /// Has `change` change numbers on the host: what lies elsewhere comes over for it, and goes back unless that was an error.
    pub fn on_host<T, E>(
        &self,
        numbers: &mut [&mut Exact],
        change: impl FnOnce(&mut [&mut [f32]]) -> Result<T, E>,
    ) -> Result<T, E> {
        match self {
            Machine::Cpu(_) => change(&mut numbers.iter_mut().map(|numbers| numbers.host_mut()).collect::<Vec<_>>()),
            #[cfg(feature = "cuda")]
            Machine::Gpu(gpu) => {
                let mut here: Vec<Vec<f32>> =
                    numbers.iter().map(|numbers| done(gpu.download(&numbers.device()))).collect();
                let changed = change(&mut here.iter_mut().map(Vec::as_mut_slice).collect::<Vec<_>>())?;
                for (numbers, here) in numbers.iter_mut().zip(&here) {
                    done(gpu.replace(&mut numbers.device_mut(), here));
                }
                Ok(changed)
            }
        }
    }

    /// Fills numbers that stay `f32` with zeros.
    pub fn clear_exact(&self, numbers: &mut Exact) {
        match self {
            Machine::Cpu(_) => numbers.host_mut().fill(0.0),
            #[cfg(feature = "cuda")]
            Machine::Gpu(gpu) => done(gpu.clear(&mut numbers.device_mut())),
        }
    }

    /// Numbers that stay `f32`, on the host; waits for them.
    pub fn get_exact<'a>(&self, numbers: &'a Exact) -> Cow<'a, [f32]> {
        match self {
            Machine::Cpu(_) => Cow::Borrowed(numbers.host()),
            #[cfg(feature = "cuda")]
            Machine::Gpu(gpu) => Cow::Owned(done(gpu.download(&numbers.device()))),
        }
    }

    /// The numbers, on the host; waits for them.
    pub fn get(&self, buffer: Buffer) -> Vec<f32> {
        match (self, buffer) {
            (Machine::Cpu(_), Buffer::Host(numbers)) => numbers,
            #[cfg(feature = "cuda")]
            (Machine::Gpu(gpu), Buffer::Device(numbers)) => {
                done(gpu.download(&numbers.as_view())).into_iter().map(bf16::to_f32).collect()
            }
            #[cfg(feature = "cuda")]
            _ => elsewhere(),
        }
    }

    /// The most bytes that were in use at once: of passes' buffers, on a GPU of weights as well.
    pub fn most_in_use(&self) -> u64 {
        match self {
            Machine::Cpu(buffers) => buffers.most_in_use(),
            #[cfg(feature = "cuda")]
            // a driver without pools does not count
            Machine::Gpu(gpu) => gpu.most_in_use().unwrap_or_default(),
        }
    }

    /// Begins to count that anew.
    pub fn forget_use(&self) {
        match self {
            Machine::Cpu(buffers) => buffers.forget(),
            #[cfg(feature = "cuda")]
            Machine::Gpu(gpu) => gpu.forget_use().unwrap_or_default(),
        }
    }

    /// The pool of what is done on the processor only.
    pub fn buffers(&self) -> &Buffers {
        match self {
            Machine::Cpu(buffers) => buffers,
            #[cfg(feature = "cuda")]
            Machine::Gpu(_) => elsewhere(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_buffer_is_told_from_a_bug() {
        let refused: Result<(), Broken> = caught(|| resume_unwind(Box::new(Refused { bytes: 7 })));
        assert!(matches!(refused, Err(Broken::Refused(Refused { bytes: 7 }))), "{refused:?}");
        let bug: Result<Result<(), Broken>, _> = catch_unwind(|| caught(|| resume_unwind(Box::new("a bug"))));
        assert!(bug.is_err_and(|panic| panic.is::<&str>()));
        assert!(caught(|| 3).is_ok_and(|three| three == 3));
    }
}
