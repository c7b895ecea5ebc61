//! Where a pass computes: on the processor, or on a GPU. The two that there are, as enums (docs/design/0009).
//!
//! A [`Buffer`] lies on one machine and is used there; an operation matches once, on the machine and on all of its buffers, and one that
//! lies elsewhere is our own bug. On the device work is put on the stream and nobody waits; [`Machine::get`] does.
//!
//! Today this carries the forward pass of a block, which the parity cases compose on either machine; `model/` still calls the
//! host's forms itself.

#[cfg(not(feature = "cuda"))]
use std::convert::Infallible;
use std::ops::Range;

#[cfg(feature = "cuda")]
use cudarc::driver::CudaSlice;
#[cfg(feature = "cuda")]
use half::bf16;
use lorikeet_plan::Activation;

use super::attention::Heads;
use super::buffer::Buffers;
#[cfg(feature = "cuda")]
use super::cuda::{self, Gpu, GpuError};
use super::lora::Columns;
use super::qk_norm::Gains;
use super::rope::{Rotations, Turn};
use super::{attention, glu, linear, lora, norm, qk_norm, rope};

/// Why an operation was not done: only a GPU refuses.
#[cfg(feature = "cuda")]
pub type Refusal = GpuError;
/// Why an operation was not done: never.
#[cfg(not(feature = "cuda"))]
pub type Refusal = Infallible;

/// What every operation answers.
pub type Done = Result<(), Refusal>;

/// Where a pass computes.
#[derive(Debug, Clone, Copy)]
pub enum Machine<'m> {
    /// In `f32`, in the surrounding rayon pool.
    Cpu(&'m Buffers),
    /// In bf16 with `f32` arithmetic, on one stream.
    #[cfg(feature = "cuda")]
    Gpu(&'m Gpu),
}

/// Activations.
#[derive(Debug)]
pub enum Buffer {
    /// On the host.
    Host(Vec<f32>),
    /// On the device.
    #[cfg(feature = "cuda")]
    Device(CudaSlice<bf16>),
}

/// Numbers that stay `f32` everywhere: gains, log-sum-exp.
#[derive(Debug)]
pub enum Exact {
    /// On the host.
    Host(Vec<f32>),
    /// On the device.
    #[cfg(feature = "cuda")]
    Device(CudaSlice<f32>),
}

/// A frozen weight.
#[derive(Debug)]
pub enum Weight {
    /// On the host.
    Host(linear::Weight),
    /// On the device.
    #[cfg(feature = "cuda")]
    Device(cuda::linear::Weight),
}

/// What a pass knows of the rows of its micro-batch, made once for all layers of one rope.
#[derive(Debug)]
pub enum Rows {
    /// On the host.
    Host {
        /// Of every segment.
        segments: Vec<Range<usize>>,
        /// Of every row.
        rotations: Rotations,
    },
    /// On the device.
    #[cfg(feature = "cuda")]
    Device {
        /// Of every segment.
        tiles: cuda::attention::Tiles,
        /// Of every row.
        turns: cuda::rope::Turns,
    },
}

/// The norms over query and key heads.
#[derive(Debug)]
pub struct HeadNorm {
    /// Of query heads.
    pub queries: Exact,
    /// Of key heads.
    pub keys: Exact,
    /// As in the configuration.
    pub eps: f64,
}

/// A and B of one module.
#[derive(Debug)]
pub struct Pair {
    /// `[rank, inputs]`.
    pub a: Buffer,
    /// `[outputs, rank]`.
    pub b: Buffer,
    /// Rows of A.
    pub rank: usize,
    /// The factor s.
    pub scale: f32,
}

/// Something lies on the other machine.
#[cfg(feature = "cuda")]
fn elsewhere() -> ! {
    panic!("a pass keeps all it needs on the machine it computes on")
}

impl Machine<'_> {
    /// A buffer with unspecified contents.
    pub fn take(&self, len: usize) -> Result<Buffer, Refusal> {
        Ok(match self {
            Machine::Cpu(buffers) => Buffer::Host(buffers.take(len)),
            #[cfg(feature = "cuda")]
            Machine::Gpu(gpu) => Buffer::Device(gpu.take(len)?),
        })
    }

    /// The same for numbers that stay `f32`.
    pub fn take_exact(&self, len: usize) -> Result<Exact, Refusal> {
        Ok(match self {
            Machine::Cpu(buffers) => Exact::Host(buffers.take(len)),
            #[cfg(feature = "cuda")]
            Machine::Gpu(gpu) => Exact::Device(gpu.take(len)?),
        })
    }

    /// Numbers of the host, there; rounded where the machine keeps bf16.
    pub fn put(&self, numbers: &[f32]) -> Result<Buffer, Refusal> {
        Ok(match self {
            Machine::Cpu(_) => Buffer::Host(numbers.to_vec()),
            #[cfg(feature = "cuda")]
            Machine::Gpu(gpu) => Buffer::Device(gpu.upload(&narrow(numbers))?),
        })
    }

    /// The same, not rounded.
    pub fn put_exact(&self, numbers: &[f32]) -> Result<Exact, Refusal> {
        Ok(match self {
            Machine::Cpu(_) => Exact::Host(numbers.to_vec()),
            #[cfg(feature = "cuda")]
            Machine::Gpu(gpu) => Exact::Device(gpu.upload(numbers)?),
        })
    }

    /// A weight of the host, there; an empty bias is none.
    pub fn put_weight(&self, numbers: &[f32], bias: &[f32], rows: usize) -> Result<Weight, Refusal> {
        let cols = numbers.len() / rows;
        Ok(match self {
            Machine::Cpu(_) => Weight::Host(linear::Weight::new(numbers.to_vec(), rows, cols).with_bias(bias.to_vec())),
            #[cfg(feature = "cuda")]
            Machine::Gpu(gpu) => Weight::Device(cuda::linear::Weight::upload(gpu, &narrow(numbers), bias, rows, cols)?),
        })
    }

    /// What a pass knows of its rows, there.
    pub fn put_rows(&self, segments: Vec<Range<usize>>, rotations: Rotations) -> Result<Rows, Refusal> {
        Ok(match self {
            Machine::Cpu(_) => Rows::Host { segments, rotations },
            #[cfg(feature = "cuda")]
            Machine::Gpu(gpu) => Rows::Device {
                tiles: cuda::attention::Tiles::upload(gpu, &segments)?,
                turns: cuda::rope::Turns::upload(gpu, &rotations)?,
            },
        })
    }

    /// The numbers, on the host; waits for them.
    pub fn get(&self, buffer: &Buffer) -> Result<Vec<f32>, Refusal> {
        match (self, buffer) {
            (Machine::Cpu(_), Buffer::Host(numbers)) => Ok(numbers.clone()),
            #[cfg(feature = "cuda")]
            (Machine::Gpu(gpu), Buffer::Device(numbers)) => {
                Ok(gpu.download(&numbers.as_view())?.into_iter().map(bf16::to_f32).collect())
            }
            #[cfg(feature = "cuda")]
            _ => elsewhere(),
        }
    }

    /// A copy on the same machine.
    pub fn copy(&self, buffer: &Buffer) -> Result<Buffer, Refusal> {
        match (self, buffer) {
            (Machine::Cpu(buffers), Buffer::Host(numbers)) => {
                let mut copy = buffers.take(numbers.len());
                copy.copy_from_slice(numbers);
                Ok(Buffer::Host(copy))
            }
            #[cfg(feature = "cuda")]
            (Machine::Gpu(gpu), Buffer::Device(numbers)) => {
                let mut copy = gpu.take(numbers.len())?;
                gpu.copy(&numbers.as_view(), &mut copy.as_view_mut())?;
                Ok(Buffer::Device(copy))
            }
            #[cfg(feature = "cuda")]
            _ => elsewhere(),
        }
    }

    /// `y = norm(x)`.
    pub fn norm(&self, x: &Buffer, gain: &Exact, eps: f64, y: &mut Buffer) -> Done {
        match (self, x, gain, y) {
            (Machine::Cpu(_), Buffer::Host(x), Exact::Host(gain), Buffer::Host(y)) => norm::forward(x, gain, eps, y),
            #[cfg(feature = "cuda")]
            (Machine::Gpu(gpu), Buffer::Device(x), Exact::Device(gain), Buffer::Device(y)) => {
                cuda::norm::forward(gpu, &x.as_view(), &gain.as_view(), eps, &mut y.as_view_mut())?;
            }
            #[cfg(feature = "cuda")]
            _ => elsewhere(),
        }
        Ok(())
    }

    /// `y = x Wᵀ + b`.
    pub fn linear(&self, x: &Buffer, weight: &Weight, y: &mut Buffer) -> Done {
        match (self, x, weight, y) {
            (Machine::Cpu(_), Buffer::Host(x), Weight::Host(weight), Buffer::Host(y)) => linear::forward(x, weight, y),
            #[cfg(feature = "cuda")]
            (Machine::Gpu(gpu), Buffer::Device(x), Weight::Device(weight), Buffer::Device(y)) => {
                cuda::linear::forward(gpu, &x.as_view(), weight, &mut y.as_view_mut())?;
            }
            #[cfg(feature = "cuda")]
            _ => elsewhere(),
        }
        Ok(())
    }

    /// `y += x Wᵀ + b`.
    pub fn linear_add(&self, x: &Buffer, weight: &Weight, y: &mut Buffer) -> Done {
        match (self, x, weight, y) {
            (Machine::Cpu(_), Buffer::Host(x), Weight::Host(weight), Buffer::Host(y)) => {
                linear::forward_add(x, weight, y);
            }
            #[cfg(feature = "cuda")]
            (Machine::Gpu(gpu), Buffer::Device(x), Weight::Device(weight), Buffer::Device(y)) => {
                cuda::linear::forward_add(gpu, &x.as_view(), weight, &mut y.as_view_mut())?;
            }
            #[cfg(feature = "cuda")]
            _ => elsewhere(),
        }
        Ok(())
    }

    /// `u`, and the module's columns of `y` added to; no dropout.
    pub fn lora(&self, pair: &Pair, x: &Buffer, u: &mut Buffer, y: &mut Buffer, columns: Columns) -> Done {
        let (rank, scale) = (pair.rank, pair.scale);
        match (self, &pair.a, &pair.b, x, u, y) {
            (Machine::Cpu(_), Buffer::Host(a), Buffer::Host(b), Buffer::Host(x), Buffer::Host(u), Buffer::Host(y)) => {
                lora::forward(lora::Pair { a, b, rank, scale }, lora::Input { x, kept: None }, u, y, columns)
            }
            #[cfg(feature = "cuda")]
            (
                Machine::Gpu(gpu),
                Buffer::Device(a),
                Buffer::Device(b),
                Buffer::Device(x),
                Buffer::Device(u),
                Buffer::Device(y),
            ) => {
                let (a, b, x) = (a.as_view(), b.as_view(), x.as_view());
                let pair = cuda::lora::Pair { a: &a, b: &b, rank, scale };
                let input = cuda::lora::Input { x: &x, masks: None };
                cuda::lora::forward(gpu, pair, input, &mut u.as_view_mut(), &mut y.as_view_mut(), columns)?;
            }
            #[cfg(feature = "cuda")]
            _ => elsewhere(),
        }
        Ok(())
    }

    /// Norms, where there is something to norm by, and turns the query and key heads of every row. With a norm, what they were before
    /// it is given back.
    pub fn rope(
        &self,
        heads: Heads,
        norm: Option<&HeadNorm>,
        rows: &Rows,
        qkv: &mut Buffer,
    ) -> Result<Option<Buffer>, Refusal> {
        match (self, rows, qkv) {
            (Machine::Cpu(buffers), Rows::Host { rotations, .. }, Buffer::Host(qkv)) => {
                let raw = norm.map(|norm| {
                    let mut raw = buffers.take(qkv.len() / heads.stride() * heads.turned());
                    let gains = Gains { queries: norm.queries.host(), keys: norm.keys.host() };
                    qk_norm::forward(heads, gains, norm.eps, qkv, &mut raw);
                    Buffer::Host(raw)
                });
                rope::turn(heads, rotations, qkv, Turn::Forth);
                Ok(raw)
            }
            #[cfg(feature = "cuda")]
            (Machine::Gpu(gpu), Rows::Device { turns, .. }, Buffer::Device(qkv)) => {
                let Some(HeadNorm { queries, keys, eps }) = norm else {
                    cuda::rope::forward(gpu, heads, None, turns, &mut qkv.as_view_mut(), None)?;
                    return Ok(None);
                };
                let mut raw = gpu.take(qkv.len() / heads.stride() * heads.turned())?;
                let (queries, keys) = (queries.device().as_view(), keys.device().as_view());
                let norm = cuda::rope::HeadNorm { queries: &queries, keys: &keys, eps: *eps };
                let kept = Some(&mut raw.as_view_mut());
                cuda::rope::forward(gpu, heads, Some(&norm), turns, &mut qkv.as_view_mut(), kept)?;
                Ok(Some(Buffer::Device(raw)))
            }
            #[cfg(feature = "cuda")]
            _ => elsewhere(),
        }
    }

    /// Output of every row, and `lse` per row and head.
    pub fn attention(&self, heads: Heads, rows: &Rows, qkv: &Buffer, out: &mut Buffer, lse: &mut Exact) -> Done {
        match (self, rows, qkv, out, lse) {
            (Machine::Cpu(_), Rows::Host { segments, .. }, Buffer::Host(qkv), Buffer::Host(out), Exact::Host(lse)) => {
                attention::forward(heads, segments, qkv, out, lse);
            }
            #[cfg(feature = "cuda")]
            (
                Machine::Gpu(gpu),
                Rows::Device { tiles, .. },
                Buffer::Device(qkv),
                Buffer::Device(out),
                Exact::Device(lse),
            ) => {
                let (out, lse) = (&mut out.as_view_mut(), &mut lse.as_view_mut());
                cuda::attention::forward(gpu, heads, tiles, &qkv.as_view(), out, lse)?;
            }
            #[cfg(feature = "cuda")]
            _ => elsewhere(),
        }
        Ok(())
    }

    /// `y` of every row of `gate_up`.
    pub fn glu(&self, activation: Activation, gate_up: &Buffer, width: usize, y: &mut Buffer) -> Done {
        match (self, gate_up, y) {
            (Machine::Cpu(_), Buffer::Host(gate_up), Buffer::Host(y)) => glu::forward(activation, gate_up, width, y),
            #[cfg(feature = "cuda")]
            (Machine::Gpu(gpu), Buffer::Device(gate_up), Buffer::Device(y)) => {
                cuda::glu::forward(gpu, activation, &gate_up.as_view(), width, &mut y.as_view_mut())?;
            }
            #[cfg(feature = "cuda")]
            _ => elsewhere(),
        }
        Ok(())
    }
}

impl Exact {
    fn host(&self) -> &[f32] {
        match self {
            Exact::Host(numbers) => numbers,
            #[cfg(feature = "cuda")]
            Exact::Device(_) => elsewhere(),
        }
    }

    #[cfg(feature = "cuda")]
    fn device(&self) -> &CudaSlice<f32> {
        match self {
            Exact::Device(numbers) => numbers,
            Exact::Host(_) => elsewhere(),
        }
    }
}

#[cfg(feature = "cuda")]
fn narrow(numbers: &[f32]) -> Vec<bf16> {
    numbers.iter().map(|x| bf16::from_f32(*x)).collect()
}
