//! Adapters' products and their gradients, on either machine. A GPU computes with bf16 copies of A and B and sums their gradients in
//! `f32`; in `f32` lie A and B themselves as well, which are a run's own or the host's.

use std::ops::Range;

#[cfg(feature = "cuda")]
use cudarc::driver::CudaSlice;
#[cfg(feature = "cuda")]
use half::bf16;

use super::{Machine, Params, Part, PartMut};
#[cfg(feature = "cuda")]
use super::{done, elsewhere};
#[cfg(feature = "cuda")]
use crate::ops::cuda;
use crate::ops::dropout::Kept;
use crate::ops::lora::{self, Columns, PairGradient};
use crate::ops::random::Masks;

/// An adapter's numbers as products take them: themselves, or a copy in bf16.
#[derive(Debug)]
pub enum Operand<'a> {
    /// On the host.
    Host(&'a [f32]),
    /// On the device.
    #[cfg(feature = "cuda")]
    Device(CudaSlice<bf16>),
}

/// Gradients that are being added up.
#[derive(Debug)]
pub enum Sums<'g> {
    /// On the host.
    Host(&'g mut [f32]),
    /// On the device.
    #[cfg(feature = "cuda")]
    Device(&'g mut CudaSlice<f32>),
}

/// A and B of one module.
#[derive(Debug)]
pub struct Pair<'a> {
    /// `[rank, inputs]`.
    pub a: Part<'a>,
    /// `[outputs, rank]`.
    pub b: Part<'a>,
    /// Rows of A.
    pub rank: usize,
    /// The factor s.
    pub scale: f32,
}

/// Dropout of a run of rows, of whatever module.
#[derive(Debug)]
pub enum RowMasks {
    /// On the host: each row's masks and its place in its example.
    Host(Vec<(Masks, u32)>),
    /// On the device.
    #[cfg(feature = "cuda")]
    Device(cuda::dropout::RowMasks),
}

/// What one module keeps of a run of rows.
#[derive(Debug)]
pub enum Mask {
    /// On the host.
    Host(Kept),
    /// On the device.
    #[cfg(feature = "cuda")]
    Device(cuda::dropout::Kept),
}

/// A run of rows, and its dropout if there is any.
#[derive(Debug)]
pub struct Input<'a> {
    /// `[tokens, inputs]`.
    pub x: Part<'a>,
    /// What is kept of it.
    pub mask: Option<&'a Mask>,
}

impl Operand<'_> {
    /// Some of them.
    pub fn part(&self, range: Range<usize>) -> Part<'_> {
        match self {
            Operand::Host(numbers) => Part::Host(&numbers[range]),
            #[cfg(feature = "cuda")]
            Operand::Device(numbers) => Part::Device(numbers.slice(range)),
        }
    }
}

impl Sums<'_> {
    /// Those of the host.
    pub fn host(&mut self) -> &mut [f32] {
        match self {
            Sums::Host(sums) => sums,
            #[cfg(feature = "cuda")]
            Sums::Device(_) => elsewhere(),
        }
    }
}

impl<'a> Pair<'a> {
    /// That of the host.
    pub fn host(&self) -> lora::Pair<'a, f32> {
        lora::Pair { a: self.a.host(), b: self.b.host(), rank: self.rank, scale: self.scale }
    }

    #[cfg(feature = "cuda")]
    pub(super) fn device(&self) -> cuda::lora::Pair<'_> {
        cuda::lora::Pair { a: self.a.device(), b: self.b.device(), rank: self.rank, scale: self.scale }
    }
}

impl<'a> Input<'a> {
    /// That of the host.
    pub fn host(&self) -> lora::Input<'a> {
        let kept = self.mask.map(|mask| match mask {
            Mask::Host(kept) => kept,
            #[cfg(feature = "cuda")]
            Mask::Device(_) => elsewhere(),
        });
        lora::Input { x: self.x.host(), kept }
    }

    #[cfg(feature = "cuda")]
    pub(super) fn device(&self) -> cuda::lora::Input<'_> {
        let kept = self.mask.map(|mask| match mask {
            Mask::Device(kept) => kept,
            Mask::Host(_) => elsewhere(),
        });
        cuda::lora::Input { x: self.x.device(), kept }
    }
}

impl Machine {
    /// An adapter's numbers, for products. What a GPU has already is not brought over.
    pub fn operand<'a>(&self, numbers: Params<'a>) -> Operand<'a> {
        match self {
            Machine::Cpu(_) => Operand::Host(numbers.host()),
            #[cfg(feature = "cuda")]
            Machine::Gpu(gpu) => {
                let mut narrow = done(gpu.take(numbers.len()));
                let mut from = |wide: &CudaSlice<f32>| {
                    done(cuda::rows::narrow(gpu, &wide.as_view(), &mut narrow.as_view_mut()));
                };
                match numbers {
                    Params::Host(numbers) => from(&done(gpu.upload(numbers))),
                    Params::Device(numbers) => from(numbers),
                }
                Operand::Device(narrow)
            }
        }
    }

    /// Has `add` add to gradients of the host; on a GPU beside them, and what is added comes over in the end.
    pub fn adding<T, E>(
        &self,
        grads: &mut [&mut [f32]],
        add: impl FnOnce(&mut [Sums<'_>]) -> Result<T, E>,
    ) -> Result<T, E> {
        match self {
            Machine::Cpu(_) => add(&mut grads.iter_mut().map(|grads| Sums::Host(grads)).collect::<Vec<_>>()),
            #[cfg(feature = "cuda")]
            Machine::Gpu(gpu) => {
                let zeros = |grads: &&mut [f32]| done(gpu.zeros::<f32>(grads.len()));
                let mut there: Vec<CudaSlice<f32>> = grads.iter().map(zeros).collect();
                let added = add(&mut there.iter_mut().map(Sums::Device).collect::<Vec<_>>())?;
                for (grads, there) in grads.iter_mut().zip(there) {
                    let sums = done(gpu.download(&there.as_view()));
                    grads.iter_mut().zip(sums).for_each(|(grad, sum)| *grad += sum);
                }
                Ok(added)
            }
        }
    }

    /// The masks of a run of rows, given each row's and its place in its example; there once for all modules.
    pub fn row_masks(&self, rows: Vec<(Masks, u32)>) -> RowMasks {
        match self {
            Machine::Cpu(_) => RowMasks::Host(rows),
            #[cfg(feature = "cuda")]
            Machine::Gpu(gpu) => RowMasks::Device(done(cuda::dropout::RowMasks::upload(gpu, &rows))),
        }
    }

    /// Draws what one module keeps of rows of `width` numbers.
    pub fn mask(&self, rows: &RowMasks, module: u32, width: usize) -> Mask {
        match (self, rows) {
            (Machine::Cpu(_), RowMasks::Host(rows)) => Mask::Host(Kept::draw(rows, module, width)),
            #[cfg(feature = "cuda")]
            (Machine::Gpu(gpu), RowMasks::Device(rows)) => Mask::Device(done(rows.draw(gpu, module, width))),
            #[cfg(feature = "cuda")]
            _ => elsewhere(),
        }
    }

    /// `u`, and the module's columns of `y` added to.
    pub fn lora(&self, pair: &Pair<'_>, input: &Input<'_>, mut u: PartMut<'_>, mut y: PartMut<'_>, columns: Columns) {
        match self {
            Machine::Cpu(_) => lora::forward(pair.host(), input.host(), u.host(), y.host(), columns),
            #[cfg(feature = "cuda")]
            Machine::Gpu(gpu) => {
                done(cuda::lora::forward(gpu, pair.device(), input.device(), u.device(), y.device(), columns));
            }
        }
    }

    /// Adds to the gradients of A and B, which lie at those places of `sums`, A's first, and, where one is wanted, to that of x.
    pub fn lora_backward(
        &self,
        pair: &Pair<'_>,
        input: &Input<'_>,
        (u, dy, columns): (Part<'_>, &Part<'_>, Columns),
        (sums, [a, b]): (&mut Sums<'_>, [Range<usize>; 2]),
        mut dx: Option<PartMut<'_>>,
    ) {
        match self {
            Machine::Cpu(buffers) => {
                let (before, behind) = sums.host().split_at_mut(b.start);
                let mut gradient = PairGradient { a: &mut before[a], b: &mut behind[..b.len()] };
                let (passed, dx) = ((u.host(), dy.host(), columns), dx.as_mut().map(PartMut::host));
                lora::backward(pair.host(), input.host(), buffers, passed, &mut gradient, dx);
            }
            #[cfg(feature = "cuda")]
            Machine::Gpu(gpu) => {
                let Sums::Device(sums) = sums else { elsewhere() };
                let (mut before, mut behind) = sums.split_at_mut(b.start);
                let gradients = [&mut before.slice_mut(a), &mut behind.slice_mut(..b.len())];
                let (passed, dx) = ((u.device(), dy.device(), columns), dx.as_mut().map(PartMut::device));
                done(cuda::lora::backward(gpu, pair.device(), input.device(), passed, gradients, dx));
            }
        }
    }

    /// Adds to the gradient of x alone: A and B are constants and x came without dropout.
    pub fn lora_backward_constant(&self, pair: &Pair<'_>, (dy, columns): (&Part<'_>, Columns), mut dx: PartMut<'_>) {
        match self {
            Machine::Cpu(buffers) => {
                lora::backward_constant(pair.host(), buffers, (dy.host(), columns), dx.host());
            }
            #[cfg(feature = "cuda")]
            Machine::Gpu(gpu) => {
                done(cuda::lora::backward_constant(gpu, pair.device(), (dy.device(), columns), dx.device()));
            }
        }
    }
}
