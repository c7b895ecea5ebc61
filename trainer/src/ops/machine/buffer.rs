//! Numbers of a pass, on the machine that computes with them.

use std::ops::Range;

#[cfg(feature = "cuda")]
use cudarc::driver::{CudaSlice, CudaView, CudaViewMut};
#[cfg(feature = "cuda")]
use half::bf16;

use super::Sums;
#[cfg(feature = "cuda")]
use super::elsewhere;

/// Activations.
#[derive(Debug)]
pub enum Buffer {
    /// On the host.
    Host(Vec<f32>),
    /// On the device.
    #[cfg(feature = "cuda")]
    Device(CudaSlice<bf16>),
}

/// Some consecutive numbers of a buffer.
#[derive(Debug)]
pub enum Part<'a> {
    /// On the host.
    Host(&'a [f32]),
    /// On the device.
    #[cfg(feature = "cuda")]
    Device(CudaView<'a, bf16>),
}

/// The same, to be written.
#[derive(Debug)]
pub enum PartMut<'a> {
    /// On the host.
    Host(&'a mut [f32]),
    /// On the device.
    #[cfg(feature = "cuda")]
    Device(CudaViewMut<'a, bf16>),
}

/// Numbers that stay `f32` everywhere: gains, log-sum-exp, and what a run trains with its gradient and moments.
#[derive(Debug)]
pub enum Exact {
    /// On the host.
    Host(Vec<f32>),
    /// On the device.
    #[cfg(feature = "cuda")]
    Device(CudaSlice<f32>),
}

/// The numbers of an adapter, wherever they lie.
#[derive(Debug, Clone, Copy)]
pub enum Params<'a> {
    /// On the host.
    Host(&'a [f32]),
    /// On the device.
    #[cfg(feature = "cuda")]
    Device(&'a CudaSlice<f32>),
}

impl<'a> From<&'a [f32]> for Params<'a> {
    fn from(numbers: &'a [f32]) -> Params<'a> {
        Params::Host(numbers)
    }
}

impl<'a> From<&'a Vec<f32>> for Params<'a> {
    fn from(numbers: &'a Vec<f32>) -> Params<'a> {
        Params::Host(numbers)
    }
}

#[expect(clippy::len_without_is_empty, reason = "an adapter is never of nothing")]
impl<'a> Params<'a> {
    /// How many they are.
    pub fn len(&self) -> usize {
        match self {
            Params::Host(numbers) => numbers.len(),
            #[cfg(feature = "cuda")]
            Params::Device(numbers) => numbers.len(),
        }
    }

    /// Those of the host.
    pub fn host(&self) -> &'a [f32] {
        match self {
            Params::Host(numbers) => numbers,
            #[cfg(feature = "cuda")]
            Params::Device(_) => elsewhere(),
        }
    }
}

#[expect(clippy::len_without_is_empty, reason = "nobody asks whether a buffer is of nothing")]
impl Buffer {
    /// How many numbers it holds.
    pub fn len(&self) -> usize {
        match self {
            Buffer::Host(numbers) => numbers.len(),
            #[cfg(feature = "cuda")]
            Buffer::Device(numbers) => numbers.len(),
        }
    }

    /// Those of the host.
    pub fn host(&self) -> &[f32] {
        match self {
            Buffer::Host(numbers) => numbers,
            #[cfg(feature = "cuda")]
            Buffer::Device(_) => elsewhere(),
        }
    }

    /// Those of the host, to be written.
    pub fn host_mut(&mut self) -> &mut [f32] {
        match self {
            Buffer::Host(numbers) => numbers,
            #[cfg(feature = "cuda")]
            Buffer::Device(_) => elsewhere(),
        }
    }

    #[cfg(feature = "cuda")]
    pub(super) fn device(&self) -> CudaView<'_, bf16> {
        match self {
            Buffer::Device(numbers) => numbers.as_view(),
            Buffer::Host(_) => elsewhere(),
        }
    }

    #[cfg(feature = "cuda")]
    pub(super) fn device_mut(&mut self) -> CudaViewMut<'_, bf16> {
        match self {
            Buffer::Device(numbers) => numbers.as_view_mut(),
            Buffer::Host(_) => elsewhere(),
        }
    }

    /// All of them.
    pub fn all(&self) -> Part<'_> {
        match self {
            Buffer::Host(numbers) => Part::Host(numbers),
            #[cfg(feature = "cuda")]
            Buffer::Device(numbers) => Part::Device(numbers.as_view()),
        }
    }

    /// All of them, to be written.
    pub fn all_mut(&mut self) -> PartMut<'_> {
        match self {
            Buffer::Host(numbers) => PartMut::Host(numbers),
            #[cfg(feature = "cuda")]
            Buffer::Device(numbers) => PartMut::Device(numbers.as_view_mut()),
        }
    }
}

impl<'a> Part<'a> {
    /// Some of them.
    pub fn slice(&self, range: Range<usize>) -> Part<'a> {
        match self {
            Part::Host(numbers) => Part::Host(&numbers[range]),
            #[cfg(feature = "cuda")]
            Part::Device(numbers) => Part::Device(numbers.slice(range)),
        }
    }

    /// Those of the host.
    pub fn host(&self) -> &'a [f32] {
        match self {
            Part::Host(numbers) => numbers,
            #[cfg(feature = "cuda")]
            Part::Device(_) => elsewhere(),
        }
    }

    #[cfg(feature = "cuda")]
    pub(super) fn device(&self) -> &CudaView<'a, bf16> {
        match self {
            Part::Device(numbers) => numbers,
            Part::Host(_) => elsewhere(),
        }
    }
}

impl<'a> PartMut<'a> {
    /// All of them, for a while.
    pub fn again(&mut self) -> PartMut<'_> {
        match self {
            PartMut::Host(numbers) => PartMut::Host(numbers),
            #[cfg(feature = "cuda")]
            PartMut::Device(numbers) => PartMut::Device(numbers.slice_mut(..)),
        }
    }

    /// Some of them.
    pub fn slice(&mut self, range: Range<usize>) -> PartMut<'_> {
        match self {
            PartMut::Host(numbers) => PartMut::Host(&mut numbers[range]),
            #[cfg(feature = "cuda")]
            PartMut::Device(numbers) => PartMut::Device(numbers.slice_mut(range)),
        }
    }

    /// Those of the host.
    pub fn host(&mut self) -> &mut [f32] {
        match self {
            PartMut::Host(numbers) => numbers,
            #[cfg(feature = "cuda")]
            PartMut::Device(_) => elsewhere(),
        }
    }

    #[cfg(feature = "cuda")]
    pub(super) fn device(&mut self) -> &mut CudaViewMut<'a, bf16> {
        match self {
            PartMut::Device(numbers) => numbers,
            PartMut::Host(_) => elsewhere(),
        }
    }
}

#[expect(clippy::len_without_is_empty, reason = "nobody asks whether they are none")]
impl Exact {
    /// How many they are.
    pub fn len(&self) -> usize {
        match self {
            Exact::Host(numbers) => numbers.len(),
            #[cfg(feature = "cuda")]
            Exact::Device(numbers) => numbers.len(),
        }
    }

    /// As a pass sees them.
    pub fn params(&self) -> Params<'_> {
        match self {
            Exact::Host(numbers) => Params::Host(numbers),
            #[cfg(feature = "cuda")]
            Exact::Device(numbers) => Params::Device(numbers),
        }
    }

    /// As gradients are added to them.
    pub fn sums(&mut self) -> Sums<'_> {
        match self {
            Exact::Host(numbers) => Sums::Host(numbers),
            #[cfg(feature = "cuda")]
            Exact::Device(numbers) => Sums::Device(numbers),
        }
    }

    /// Those of the host.
    pub fn host(&self) -> &[f32] {
        match self {
            Exact::Host(numbers) => numbers,
            #[cfg(feature = "cuda")]
            Exact::Device(_) => elsewhere(),
        }
    }

    /// Those of the host, to be written.
    pub fn host_mut(&mut self) -> &mut [f32] {
        match self {
            Exact::Host(numbers) => numbers,
            #[cfg(feature = "cuda")]
            Exact::Device(_) => elsewhere(),
        }
    }

    #[cfg(feature = "cuda")]
    pub(super) fn device(&self) -> CudaView<'_, f32> {
        match self {
            Exact::Device(numbers) => numbers.as_view(),
            Exact::Host(_) => elsewhere(),
        }
    }

    #[cfg(feature = "cuda")]
    pub(super) fn device_mut(&mut self) -> CudaViewMut<'_, f32> {
        match self {
            Exact::Device(numbers) => numbers.as_view_mut(),
            Exact::Host(_) => elsewhere(),
        }
    }
}
