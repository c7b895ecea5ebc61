//! A weight, where its machine wants it.

use std::borrow::Cow;
use std::ops::Range;

use super::Machine;
#[cfg(feature = "cuda")]
use super::{done, elsewhere};
#[cfg(feature = "cuda")]
use crate::ops::cuda;
use crate::ops::linear;

/// A weight that no pass changes, `[rows, cols]`: rows are outputs.
#[derive(Debug)]
pub enum Weight {
    /// On the host.
    Host(linear::Weight),
    /// On the device.
    #[cfg(feature = "cuda")]
    Device(cuda::linear::Weight),
}

impl Weight {
    /// Outputs.
    pub fn rows(&self) -> usize {
        match self {
            Weight::Host(weight) => weight.rows(),
            #[cfg(feature = "cuda")]
            Weight::Device(weight) => weight.rows(),
        }
    }

    /// Inputs.
    pub fn cols(&self) -> usize {
        match self {
            Weight::Host(weight) => weight.cols(),
            #[cfg(feature = "cuda")]
            Weight::Device(weight) => weight.cols(),
        }
    }

    /// That of the host.
    pub fn host(&self) -> &linear::Weight {
        match self {
            Weight::Host(weight) => weight,
            #[cfg(feature = "cuda")]
            Weight::Device(_) => elsewhere(),
        }
    }

    /// That of the host, to be changed.
    pub fn host_mut(&mut self) -> &mut linear::Weight {
        match self {
            Weight::Host(weight) => weight,
            #[cfg(feature = "cuda")]
            Weight::Device(_) => elsewhere(),
        }
    }

    #[cfg(feature = "cuda")]
    pub(super) fn device(&self) -> &cuda::linear::Weight {
        match self {
            Weight::Device(weight) => weight,
            Weight::Host(_) => elsewhere(),
        }
    }

    #[cfg(feature = "cuda")]
    pub(super) fn device_mut(&mut self) -> &mut cuda::linear::Weight {
        match self {
            Weight::Device(weight) => weight,
            Weight::Host(_) => elsewhere(),
        }
    }
}

impl Machine {
    /// A weight of the host, there: in bf16, or in its few bits.
    pub fn put_weight(&self, weight: linear::Weight) -> Weight {
        match self {
            Machine::Cpu(_) => Weight::Host(weight),
            #[cfg(feature = "cuda")]
            Machine::Gpu(gpu) => Weight::Device(done(cuda::linear::Weight::of_host(gpu, &weight))),
        }
    }

    /// Consecutive rows as `f32`, as products see them.
    pub fn rows_of<'w>(&self, weight: &'w Weight, rows: Range<usize>) -> Cow<'w, [f32]> {
        match (self, weight) {
            (Machine::Cpu(_), Weight::Host(weight)) => weight.rows_of(rows),
            #[cfg(feature = "cuda")]
            (Machine::Gpu(gpu), Weight::Device(weight)) => Cow::Owned(done(weight.rows_of(gpu, rows))),
            #[cfg(feature = "cuda")]
            _ => elsewhere(),
        }
    }
}
