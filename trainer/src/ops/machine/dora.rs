//! DoRA, on either machine: an adapter's products and gradients where rows of the adapted weight keep a length of their own.

use std::ops::Range;

use super::{Input, Machine, Pair, Params, Part, PartMut, Sums, Weight};
#[cfg(feature = "cuda")]
use super::{done, elsewhere};
#[cfg(feature = "cuda")]
use crate::ops::cuda;
use crate::ops::dora::{self, DoraGradient};
use crate::ops::lora::{Columns, PairGradient};

/// The lengths of one adapted module's rows: the trained ones, and those that `W + s B A` has until the next step.
#[derive(Debug)]
pub enum Lengths {
    /// On the host.
    Host {
        /// m.
        magnitude: Vec<f32>,
        /// n.
        norms: Vec<f32>,
    },
    /// On the device.
    #[cfg(feature = "cuda")]
    Device(cuda::dora::Lengths),
}

/// What a module with DoRA needs beside A and B.
#[derive(Debug, Clone, Copy)]
pub struct Dora<'a> {
    /// Of which the module's columns of output are rows.
    pub weight: &'a Weight,
    /// Of those rows.
    pub lengths: &'a Lengths,
}

impl Dora<'_> {
    /// Hands that of the host to `use_it`.
    fn on_host<T>(&self, columns: Columns, use_it: impl FnOnce(dora::Dora<'_, f32>) -> T) -> T {
        let (magnitude, norms) = match self.lengths {
            Lengths::Host { magnitude, norms } => (magnitude, norms),
            #[cfg(feature = "cuda")]
            Lengths::Device(_) => elsewhere(),
        };
        use_it(dora::Dora { weight: &self.weight.host().rows_of(rows(columns)), magnitude, norms })
    }

    #[cfg(feature = "cuda")]
    fn device(&self) -> cuda::dora::Dora<'_> {
        let Lengths::Device(lengths) = self.lengths else { elsewhere() };
        cuda::dora::Dora { weight: self.weight.device(), lengths }
    }
}

impl Machine {
    /// The lengths of a module's rows, of which the trained ones lie at that place of an adapter's numbers.
    pub fn lengths(
        &self,
        weight: &Weight,
        columns: Columns,
        pair: &Pair<'_>,
        (params, place): (Params<'_>, Range<usize>),
    ) -> Lengths {
        match self {
            Machine::Cpu(_) => {
                let mut norms = vec![0.0; columns.count];
                dora::norms(&weight.host().rows_of(rows(columns)), pair.host(), &mut norms);
                Lengths::Host { magnitude: params.host()[place].to_vec(), norms }
            }
            #[cfg(feature = "cuda")]
            Machine::Gpu(gpu) => {
                let measured = |m| cuda::dora::Lengths::measure(gpu, weight.device(), columns, pair.device(), m);
                Lengths::Device(done(match params {
                    Params::Host(numbers) => measured(&done(gpu.upload(&numbers[place])).as_view()),
                    Params::Device(numbers) => measured(&numbers.slice(place)),
                }))
            }
        }
    }

    /// `u`, `v`, and the module's columns of `y`, which hold the frozen layer's output, added to.
    pub fn dora(
        &self,
        dora: Dora<'_>,
        pair: &Pair<'_>,
        input: &Input<'_>,
        (mut u, mut v): (PartMut<'_>, PartMut<'_>),
        (mut y, columns): (PartMut<'_>, Columns),
    ) {
        match self {
            Machine::Cpu(buffers) => dora.on_host(columns, |dora| {
                let (kept, to) = ((u.host(), v.host()), (y.host(), columns));
                dora::forward(dora, pair.host(), input.host(), buffers, kept, to);
            }),
            #[cfg(feature = "cuda")]
            Machine::Gpu(gpu) => {
                let (kept, to) = ((u.device(), v.device()), (y.device(), columns));
                done(cuda::dora::forward(gpu, dora.device(), pair.device(), input.device(), kept, to));
            }
        }
    }

    /// Adds to the gradients of A, B and m, which lie at those places of `sums`, one behind the other, and, where one is wanted, to that of x.
    pub fn dora_backward(
        &self,
        dora: Dora<'_>,
        pair: &Pair<'_>,
        (input, u, v): (&Input<'_>, Part<'_>, Part<'_>),
        (dy, columns): (&Part<'_>, Columns),
        (sums, [a, b, m]): (&mut Sums<'_>, [Range<usize>; 3]),
        mut dx: Option<PartMut<'_>>,
    ) {
        match self {
            Machine::Cpu(buffers) => dora.on_host(columns, |dora| {
                let (before, magnitude) = sums.host()[..m.end].split_at_mut(m.start);
                let (before, b) = before.split_at_mut(b.start);
                let pair_gradient = PairGradient { a: &mut before[a], b };
                let mut gradient = DoraGradient { pair: pair_gradient, magnitude };
                let (kept, dx) = ((input.host(), u.host(), v.host()), dx.as_mut().map(PartMut::host));
                dora::backward(dora, pair.host(), kept, buffers, (dy.host(), columns), &mut gradient, dx);
            }),
            #[cfg(feature = "cuda")]
            Machine::Gpu(gpu) => {
                let Sums::Device(sums) = sums else { elsewhere() };
                let (mut before, mut behind) = sums.split_at_mut(b.start);
                let (mut db, mut behind) = behind.split_at_mut(b.len());
                let gradients = [&mut before.slice_mut(a), &mut db, &mut behind.slice_mut(..m.len())];
                let (kept, dx) = ((input.device(), u.device(), v.device()), dx.as_mut().map(PartMut::device));
                let dora = dora.device();
                done(cuda::dora::backward(gpu, dora, pair.device(), kept, (dy.device(), columns), gradients, dx));
            }
        }
    }
}

/// Columns of output are rows of the weight.
fn rows(columns: Columns) -> Range<usize> {
    columns.first..columns.first + columns.count
}
