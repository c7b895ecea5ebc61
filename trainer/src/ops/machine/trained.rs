//! What a model that is trained itself needs beside its passes, on either machine: gradients of its weights, which are added up in one flat
//! buffer, and new weights from another.

use std::ops::Range;

#[cfg(feature = "cuda")]
use cudarc::driver::{CudaView, CudaViewMut};

use super::{Buffer, Exact, Machine, Params, Part, Sums, Weight};
#[cfg(feature = "cuda")]
use super::{done, elsewhere};
#[cfg(feature = "cuda")]
use crate::ops::cuda;
use crate::ops::lora::Columns;
use crate::ops::{linear, lookup, norm};

/// The gradient of one tensor, among those of all.
#[derive(Debug)]
pub enum SumsAt<'s> {
    /// On the host.
    Host(&'s mut [f32]),
    /// On the device.
    #[cfg(feature = "cuda")]
    Device(CudaViewMut<'s, f32>),
}

/// New numbers of one tensor, among those of all.
#[derive(Debug)]
pub enum ParamsAt<'p> {
    /// On the host.
    Host(&'p [f32]),
    /// On the device.
    #[cfg(feature = "cuda")]
    Device(CudaView<'p, f32>),
}

impl Sums<'_> {
    /// Those of one tensor.
    pub fn at(&mut self, place: Range<usize>) -> SumsAt<'_> {
        match self {
            Sums::Host(sums) => SumsAt::Host(&mut sums[place]),
            #[cfg(feature = "cuda")]
            Sums::Device(sums) => SumsAt::Device(sums.slice_mut(place)),
        }
    }
}

impl SumsAt<'_> {
    /// Those of the host.
    pub fn host(&mut self) -> &mut [f32] {
        match self {
            SumsAt::Host(sums) => sums,
            #[cfg(feature = "cuda")]
            SumsAt::Device(_) => elsewhere(),
        }
    }
}

#[cfg(feature = "cuda")]
impl<'s> SumsAt<'s> {
    pub(super) fn device(&mut self) -> &mut CudaViewMut<'s, f32> {
        match self {
            SumsAt::Device(sums) => sums,
            SumsAt::Host(_) => elsewhere(),
        }
    }
}

impl<'p> Params<'p> {
    /// Those of one tensor.
    pub fn at(&self, place: Range<usize>) -> ParamsAt<'p> {
        match self {
            Params::Host(numbers) => ParamsAt::Host(&numbers[place]),
            #[cfg(feature = "cuda")]
            Params::Device(numbers) => ParamsAt::Device(numbers.slice(place)),
        }
    }
}

impl<'p> ParamsAt<'p> {
    fn host(&self) -> &'p [f32] {
        match self {
            ParamsAt::Host(numbers) => numbers,
            #[cfg(feature = "cuda")]
            ParamsAt::Device(_) => elsewhere(),
        }
    }

    #[cfg(feature = "cuda")]
    fn device(&self) -> &CudaView<'p, f32> {
        match self {
            ParamsAt::Device(numbers) => numbers,
            ParamsAt::Host(_) => elsewhere(),
        }
    }
}

impl Machine {
    /// Adds to the gradient of the rows of a weight whose outputs are those columns of `dy`; x has rows of so many inputs.
    pub fn weight_backward(
        &self,
        (x, inputs): (&Part<'_>, usize),
        (dy, columns): (&Part<'_>, Columns),
        mut to: SumsAt<'_>,
    ) {
        match self {
            Machine::Cpu(_) => linear::weight_backward(x.host(), inputs, (dy.host(), columns), to.host()),
            #[cfg(feature = "cuda")]
            Machine::Gpu(gpu) => {
                let dy = (dy.device(), columns);
                done(cuda::linear::weight_backward(gpu, x.device(), inputs, dy, to.device()));
            }
        }
    }

    /// Adds to the gradient of their bias.
    pub fn bias_backward(&self, (dy, columns): (&Part<'_>, Columns), mut to: SumsAt<'_>) {
        match self {
            Machine::Cpu(_) => linear::bias_backward((dy.host(), columns), to.host()),
            #[cfg(feature = "cuda")]
            Machine::Gpu(gpu) => done(cuda::linear::bias_backward(gpu, (dy.device(), columns), to.device())),
        }
    }

    /// Adds to the gradient of a norm's gain.
    pub fn gain_backward(&self, x: &Buffer, eps: f64, dy: &Buffer, mut to: SumsAt<'_>) {
        match self {
            Machine::Cpu(_) => norm::gain_backward(x.host(), eps, dy.host(), to.host()),
            #[cfg(feature = "cuda")]
            Machine::Gpu(gpu) => {
                done(cuda::norm::gain_backward(gpu, &x.device(), eps, &dy.device(), to.device()));
            }
        }
    }

    /// Adds to the gradient of the embedding's table, whose rows are as wide as those of `dx`, from that of what was looked up. Padding gets
    /// none; `scale` is the embedding's factor.
    pub fn table_backward(
        &self,
        (tokens, padding): (&[u32], Option<u32>),
        dx: &Buffer,
        scale: f32,
        mut to: SumsAt<'_>,
    ) {
        let width = dx.len() / tokens.len();
        match self {
            Machine::Cpu(_) => lookup::table_backward((tokens, padding), dx.host(), scale, width, to.host()),
            #[cfg(feature = "cuda")]
            Machine::Gpu(gpu) => {
                let standing = lookup::Standing::new(tokens, padding);
                let standing = done(cuda::lookup::Standing::upload(gpu, &standing));
                done(cuda::lookup::table_backward(gpu, &standing, &dx.device(), scale, width, to.device()));
            }
        }
    }

    /// Puts numbers in the place of consecutive rows, as products take them.
    pub fn set_rows(&self, weight: &mut Weight, rows: Range<usize>, numbers: &ParamsAt<'_>) {
        match self {
            Machine::Cpu(_) => weight.host_mut().rows_mut(rows).0.copy_from_slice(numbers.host()),
            #[cfg(feature = "cuda")]
            Machine::Gpu(gpu) => done(weight.device_mut().set_rows(gpu, rows, numbers.device())),
        }
    }

    /// Puts numbers in the place of those rows' bias.
    pub fn set_bias(&self, weight: &mut Weight, rows: Range<usize>, numbers: &ParamsAt<'_>) {
        match self {
            Machine::Cpu(_) => weight.host_mut().rows_mut(rows).1.copy_from_slice(numbers.host()),
            #[cfg(feature = "cuda")]
            Machine::Gpu(gpu) => done(weight.device_mut().set_bias(gpu, rows, numbers.device())),
        }
    }

    /// Puts numbers in the place of a gain, more by `offset` than they are.
    pub fn set_gain(&self, gain: &mut Exact, numbers: &ParamsAt<'_>, offset: f32) {
        match self {
            Machine::Cpu(_) => gain.host_mut().iter_mut().zip(numbers.host()).for_each(|(g, x)| *g = x + offset),
            #[cfg(feature = "cuda")]
            Machine::Gpu(gpu) => done(cuda::rows::shift(gpu, numbers.device(), offset, &mut gain.device_mut())),
        }
    }
}
