//! The head of a model, on either machine.

use std::ops::Range;

#[cfg(feature = "cuda")]
use cudarc::driver::CudaSlice;

use super::{Buffer, Machine, Weight};
#[cfg(feature = "cuda")]
use super::{done, elsewhere};
#[cfg(feature = "cuda")]
use crate::ops::cuda::{self, head::Targets};
use crate::ops::head::{self, Beside, Wanted};
#[cfg(feature = "cuda")]
use crate::ops::softcap;

/// The head's weight and what becomes of its products.
#[derive(Debug, Clone, Copy)]
pub struct Head<'a> {
    /// One row per token of the vocabulary.
    pub weight: &'a Weight,
    /// Logits stay within ± this.
    pub softcap: Option<f32>,
}

/// Losses that were asked for.
#[derive(Debug)]
pub enum Losses {
    /// They are there.
    Host(Vec<f64>),
    /// They are on their way.
    #[cfg(feature = "cuda")]
    Device(CudaSlice<f32>),
}

/// Losses by adapter, added up over passes.
#[derive(Debug)]
pub enum LossSums {
    /// On the host.
    Host(Vec<f64>),
    /// On the device.
    #[cfg(feature = "cuda")]
    Device(CudaSlice<f64>),
}

impl Head<'_> {
    fn host(&self) -> head::Head<'_> {
        head::Head { weight: self.weight.host(), softcap: self.softcap }
    }
}

impl Machine {
    /// −ln p of every row's target. `x` is [rows, width]; where `dx` is given it is overwritten with the weighted gradient.
    pub fn head_loss(
        &self,
        x: &Buffer,
        head: Head<'_>,
        wanted: &[Wanted],
        beside: &mut dyn Beside,
        dx: Option<&mut Buffer>,
    ) -> Losses {
        match self {
            Machine::Cpu(buffers) => Losses::Host(match dx {
                None => head::loss(x.host(), head.host(), wanted, beside, buffers),
                Some(dx) => head::loss_and_gradient(x.host(), head.host(), wanted, beside, buffers, dx.host_mut()),
            }),
            #[cfg(feature = "cuda")]
            Machine::Gpu(gpu) => {
                let (targets, mut losses) = (done(Targets::upload(gpu, wanted)), done(gpu.take::<f32>(wanted.len())));
                let (head, mut dx) = ((head.weight.device(), head.softcap), dx.map(Buffer::device_mut));
                let to = &mut losses.as_view_mut();
                done(cuda::head::loss(gpu, &x.device(), head, &targets, beside, to, dx.as_mut()));
                Losses::Device(losses)
            }
        }
    }

    /// The losses, on the host; waits for them.
    pub fn read(&self, losses: Losses) -> Vec<f64> {
        match (self, losses) {
            (Machine::Cpu(_), Losses::Host(losses)) => losses,
            #[cfg(feature = "cuda")]
            (Machine::Gpu(gpu), Losses::Device(losses)) => {
                done(gpu.download(&losses.as_view())).into_iter().map(f64::from).collect()
            }
            #[cfg(feature = "cuda")]
            _ => elsewhere(),
        }
    }

    /// Zeros for so many adapters.
    pub fn loss_sums(&self, adapters: usize) -> LossSums {
        match self {
            Machine::Cpu(_) => LossSums::Host(vec![0.0; adapters]),
            #[cfg(feature = "cuda")]
            Machine::Gpu(gpu) => LossSums::Device(done(gpu.zeros(adapters))),
        }
    }

    /// Adds the losses of a pass, given whose each of them is.
    pub fn add_losses(&self, losses: Losses, adapters: &[usize], sums: &mut LossSums) {
        match (self, losses, sums) {
            (Machine::Cpu(_), Losses::Host(losses), LossSums::Host(sums)) => {
                // those of a pass among themselves first, as their mean is taken where there is one pass
                let mut of_pass = vec![0.0; sums.len()];
                losses.into_iter().zip(adapters).for_each(|(loss, adapter)| of_pass[*adapter] += loss);
                sums.iter_mut().zip(of_pass).for_each(|(sum, of_pass)| *sum += of_pass);
            }
            #[cfg(feature = "cuda")]
            (Machine::Gpu(gpu), Losses::Device(losses), LossSums::Device(sums)) => {
                let of_row = |adapter: &usize| u32::try_from(*adapter).expect("far fewer adapters than rows");
                let of_rows: Vec<u32> = adapters.iter().map(of_row).collect();
                let there = (sums.len() > 1).then(|| done(gpu.upload(&of_rows)));
                let there = there.as_ref().map(CudaSlice::as_view);
                let (losses, sums) = (losses.slice(..adapters.len()), &mut sums.as_view_mut());
                done(cuda::head::add_losses(gpu, &losses, there.as_ref(), sums));
            }
            #[cfg(feature = "cuda")]
            _ => elsewhere(),
        }
    }

    /// The sums, on the host; waits for them.
    pub fn read_sums(&self, sums: &LossSums) -> Vec<f64> {
        match (self, sums) {
            (Machine::Cpu(_), LossSums::Host(sums)) => sums.clone(),
            #[cfg(feature = "cuda")]
            (Machine::Gpu(gpu), LossSums::Device(sums)) => done(gpu.download(&sums.as_view())),
            #[cfg(feature = "cuda")]
            _ => elsewhere(),
        }
    }

    /// Puts sums of the host in the place of those that are there.
    pub fn replace_sums(&self, there: &mut LossSums, sums: &[f64]) {
        match (self, there) {
            (Machine::Cpu(_), LossSums::Host(there)) => there.copy_from_slice(sums),
            #[cfg(feature = "cuda")]
            (Machine::Gpu(gpu), LossSums::Device(there)) => done(gpu.replace(&mut there.as_view_mut(), sums)),
            #[cfg(feature = "cuda")]
            _ => elsewhere(),
        }
    }

    /// Logits of `rows`, whose inputs are `x`, on the host.
    pub fn logits(&self, rows: Range<usize>, x: &Buffer, head: Head<'_>, beside: &mut dyn Beside) -> Vec<f32> {
        match self {
            Machine::Cpu(_) => {
                let mut logits = vec![0.0; rows.len() * head.weight.rows()];
                head.host().logits(rows, x.host(), beside, &mut logits);
                logits
            }
            #[cfg(feature = "cuda")]
            Machine::Gpu(_) => {
                let mut logits = self.take(rows.len() * head.weight.rows());
                self.linear(x, head.weight, &mut logits);
                beside.forward(rows, &x.all(), logits.all_mut());
                let mut logits = self.get(logits);
                if let Some(cap) = head.softcap {
                    softcap::forward(&mut logits, cap);
                }
                logits
            }
        }
    }
}
