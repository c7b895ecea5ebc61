//! The operations of a block, each on either machine.

use std::ops::Range;

use lorikeet_plan::Activation;

use super::{Buffer, Exact, Machine, Sums, Weight};
#[cfg(feature = "cuda")]
use super::{done, elsewhere};
use crate::ops::attention::{self, Heads};
#[cfg(feature = "cuda")]
use crate::ops::cuda;
use crate::ops::qk_norm::{self, Gains};
use crate::ops::rope::{self, Rotations, Turn};
use crate::ops::{glu, linear, norm};

/// The segments of a micro-batch, made once for all of its layers.
#[derive(Debug)]
pub enum Segments {
    /// Rows of each.
    Host(Vec<Range<usize>>),
    /// Cut into tiles.
    #[cfg(feature = "cuda")]
    Device(cuda::attention::Tiles),
}

/// How every row of a micro-batch turns, made once for all layers of one rope.
#[derive(Debug)]
pub enum Turns {
    /// On the host.
    Host(Rotations),
    /// On the device.
    #[cfg(feature = "cuda")]
    Device(cuda::rope::Turns),
}

/// The norms over query and key heads.
#[derive(Debug, Clone, Copy)]
pub struct HeadNorm<'a> {
    /// Of query heads.
    pub queries: &'a Exact,
    /// Of key heads.
    pub keys: &'a Exact,
    /// As in the configuration.
    pub eps: f64,
}

impl HeadNorm<'_> {
    fn gains(&self) -> Gains<'_, f32> {
        Gains { queries: self.queries.host(), keys: self.keys.host() }
    }

    /// Hands the norm of the device to `use_it`.
    #[cfg(feature = "cuda")]
    fn on_device<T>(&self, use_it: impl FnOnce(&cuda::rope::HeadNorm<'_>) -> T) -> T {
        let (queries, keys) = (self.queries.device(), self.keys.device());
        use_it(&cuda::rope::HeadNorm { queries: &queries, keys: &keys, eps: self.eps })
    }
}

impl Segments {
    /// Those of the host.
    pub fn host(&self) -> &[Range<usize>] {
        match self {
            Segments::Host(segments) => segments,
            #[cfg(feature = "cuda")]
            Segments::Device(_) => elsewhere(),
        }
    }

    #[cfg(feature = "cuda")]
    fn device(&self) -> &cuda::attention::Tiles {
        match self {
            Segments::Device(tiles) => tiles,
            Segments::Host(_) => elsewhere(),
        }
    }
}

impl Turns {
    fn host(&self) -> &Rotations {
        match self {
            Turns::Host(rotations) => rotations,
            #[cfg(feature = "cuda")]
            Turns::Device(_) => elsewhere(),
        }
    }

    #[cfg(feature = "cuda")]
    fn device(&self) -> &cuda::rope::Turns {
        match self {
            Turns::Device(turns) => turns,
            Turns::Host(_) => elsewhere(),
        }
    }
}

impl Machine {
    /// Segments that cover all rows in order, there.
    pub fn segments(&self, segments: Vec<Range<usize>>) -> Segments {
        match self {
            Machine::Cpu(_) => Segments::Host(segments),
            #[cfg(feature = "cuda")]
            Machine::Gpu(gpu) => Segments::Device(done(cuda::attention::Tiles::upload(gpu, &segments))),
        }
    }

    /// The rotation of every row, there.
    pub fn turns(&self, rotations: Rotations) -> Turns {
        match self {
            Machine::Cpu(_) => Turns::Host(rotations),
            #[cfg(feature = "cuda")]
            Machine::Gpu(gpu) => Turns::Device(done(cuda::rope::Turns::upload(gpu, &rotations))),
        }
    }

    /// Rows of a table, one per token, times `scale`.
    pub fn embed(&self, table: &Weight, tokens: &[u32], scale: f32) -> Buffer {
        let width = table.cols();
        let mut x = self.take(tokens.len() * width);
        match self {
            Machine::Cpu(_) => {
                let x = x.host_mut();
                for (row, token) in x.chunks_mut(width).zip(tokens) {
                    row.copy_from_slice(&table.host().rows_of(*token as usize..*token as usize + 1));
                }
                if scale != 1.0 {
                    x.iter_mut().for_each(|x| *x *= scale);
                }
            }
            #[cfg(feature = "cuda")]
            Machine::Gpu(gpu) => {
                let tokens = done(gpu.upload(tokens));
                let table = table.device().data();
                done(cuda::rows::gather(gpu, &table, &tokens.as_view(), width, scale, &mut x.device_mut()));
            }
        }
        x
    }

    /// Some rows of `x`, one below the other.
    pub fn gather(&self, x: &Buffer, width: usize, rows: &[usize]) -> Buffer {
        let mut y = self.take(rows.len() * width);
        match self {
            Machine::Cpu(_) => {
                for (to, row) in y.host_mut().chunks_mut(width).zip(rows) {
                    to.copy_from_slice(&x.host()[row * width..][..width]);
                }
            }
            #[cfg(feature = "cuda")]
            Machine::Gpu(gpu) => {
                let rows = done(gpu.upload(&numbered(rows)));
                done(cuda::rows::gather(gpu, &x.device(), &rows.as_view(), width, 1.0, &mut y.device_mut()));
            }
        }
        y
    }

    /// Puts the rows of `x` in the place of some of `y`, none of which is named twice.
    pub fn scatter(&self, x: &Buffer, width: usize, rows: &[usize], y: &mut Buffer) {
        match self {
            Machine::Cpu(_) => {
                for (from, row) in x.host().chunks(width).zip(rows) {
                    y.host_mut()[row * width..][..width].copy_from_slice(from);
                }
            }
            #[cfg(feature = "cuda")]
            Machine::Gpu(gpu) => {
                let rows = done(gpu.upload(&numbered(rows)));
                done(cuda::rows::scatter(gpu, &x.device(), &rows.as_view(), width, &mut y.device_mut()));
            }
        }
    }

    /// `y = norm(x)`.
    pub fn norm(&self, x: &Buffer, gain: &Exact, eps: f64, y: &mut Buffer) {
        match self {
            Machine::Cpu(_) => norm::forward(x.host(), gain.host(), eps, y.host_mut()),
            #[cfg(feature = "cuda")]
            Machine::Gpu(gpu) => {
                done(cuda::norm::forward(gpu, &x.device(), &gain.device(), eps, &mut y.device_mut()));
            }
        }
    }

    /// `y += norm(x)`.
    pub fn norm_add(&self, x: &Buffer, gain: &Exact, eps: f64, y: &mut Buffer) {
        match self {
            Machine::Cpu(_) => norm::forward_add(x.host(), gain.host(), eps, y.host_mut()),
            #[cfg(feature = "cuda")]
            Machine::Gpu(gpu) => {
                done(cuda::norm::forward_add(gpu, &x.device(), &gain.device(), eps, &mut y.device_mut()));
            }
        }
    }

    /// Adds the gradient for `x` to `dx`.
    pub fn norm_backward(&self, x: &Buffer, gain: &Exact, eps: f64, dy: &Buffer, dx: &mut Buffer) {
        match self {
            Machine::Cpu(_) => norm::backward(x.host(), gain.host(), eps, dy.host(), dx.host_mut()),
            #[cfg(feature = "cuda")]
            Machine::Gpu(gpu) => {
                let (x, gain, dy) = (x.device(), gain.device(), dy.device());
                done(cuda::norm::backward(gpu, &x, &gain, eps, &dy, &mut dx.device_mut()));
            }
        }
    }

    /// `y = x Wᵀ + b`.
    pub fn linear(&self, x: &Buffer, weight: &Weight, y: &mut Buffer) {
        match self {
            Machine::Cpu(_) => linear::forward(x.host(), weight.host(), y.host_mut()),
            #[cfg(feature = "cuda")]
            Machine::Gpu(gpu) => {
                done(cuda::linear::forward(gpu, &x.device(), weight.device(), &mut y.device_mut()));
            }
        }
    }

    /// `y = onto + x Wᵀ + b`.
    pub fn linear_onto(&self, x: &Buffer, weight: &Weight, onto: &Buffer, y: &mut Buffer) {
        match self {
            Machine::Cpu(_) => {
                y.host_mut().copy_from_slice(onto.host());
                linear::forward_add(x.host(), weight.host(), y.host_mut());
            }
            #[cfg(feature = "cuda")]
            Machine::Gpu(gpu) => {
                let (x, onto, mut y) = (x.device(), onto.device(), y.device_mut());
                done(cuda::linear::forward_onto(gpu, &x, weight.device(), &onto, &mut y));
            }
        }
    }

    /// `dx = dy W`.
    pub fn linear_backward(&self, dy: &Buffer, weight: &Weight, dx: &mut Buffer) {
        match self {
            Machine::Cpu(_) => linear::backward(dy.host(), weight.host(), dx.host_mut()),
            #[cfg(feature = "cuda")]
            Machine::Gpu(gpu) => {
                done(cuda::linear::backward(gpu, &dy.device(), weight.device(), &mut dx.device_mut()));
            }
        }
    }

    /// Norms, where there is something to norm by, and turns the query and key heads of every row, in place. With a norm, what
    /// they were before it is given back.
    pub fn rope(&self, heads: Heads, norm: Option<HeadNorm<'_>>, turns: &Turns, qkv: &mut Buffer) -> Option<Buffer> {
        let mut raw = norm.map(|_| self.take(qkv.len() / heads.stride() * heads.turned()));
        match self {
            Machine::Cpu(_) => {
                if let (Some(norm), Some(raw)) = (norm, &mut raw) {
                    qk_norm::forward(heads, norm.gains(), norm.eps, qkv.host_mut(), raw.host_mut());
                }
                rope::turn(heads, turns.host(), qkv.host_mut(), Turn::Forth);
            }
            #[cfg(feature = "cuda")]
            Machine::Gpu(gpu) => {
                let (turns, mut qkv) = (turns.device(), qkv.device_mut());
                done(match (norm, &mut raw) {
                    (Some(norm), Some(raw)) => norm.on_device(|norm| {
                        cuda::rope::forward(gpu, heads, Some(norm), turns, &mut qkv, Some(&mut raw.device_mut()))
                    }),
                    _ => cuda::rope::forward(gpu, heads, None, turns, &mut qkv, None),
                });
            }
        }
        raw
    }

    /// Turns the gradient back and carries it through the norm, in place. The gradients of the gains, queries' and keys', are added where
    /// they are wanted, at those places of the sums.
    pub fn rope_backward(
        &self,
        heads: Heads,
        norm: Option<(HeadNorm<'_>, &Buffer)>,
        turns: &Turns,
        dqkv: &mut Buffer,
        gains: Option<(&mut Sums<'_>, [Range<usize>; 2])>,
    ) {
        match self {
            Machine::Cpu(_) => {
                let dqkv = dqkv.host_mut();
                rope::turn(heads, turns.host(), dqkv, Turn::Back);
                if let Some((norm, raw)) = norm {
                    if let Some((sums, places)) = gains {
                        let gains = sums.host().get_disjoint_mut(places).expect("two tensors have two places");
                        qk_norm::gains_backward(heads, norm.eps, raw.host(), dqkv, gains);
                    }
                    qk_norm::backward(heads, norm.gains(), norm.eps, raw.host(), dqkv);
                }
            }
            #[cfg(feature = "cuda")]
            Machine::Gpu(gpu) => {
                let turns = turns.device();
                if let (Some((norm, raw)), Some((sums, places))) = (norm, gains) {
                    let Sums::Device(sums) = sums else { elsewhere() };
                    let passed = (&raw.device(), &dqkv.device());
                    done(cuda::rope::gains_backward(gpu, heads, norm.eps, turns, passed, (sums, places)));
                }
                let mut dqkv = dqkv.device_mut();
                done(match norm {
                    Some((norm, raw)) => norm.on_device(|norm| {
                        cuda::rope::backward(gpu, heads, Some(norm), turns, Some(&raw.device()), &mut dqkv)
                    }),
                    None => cuda::rope::backward(gpu, heads, None, turns, None, &mut dqkv),
                });
            }
        }
    }

    /// Output of every row, and `lse` per row and head.
    pub fn attention(&self, heads: Heads, segments: &Segments, qkv: &Buffer, out: &mut Buffer, lse: &mut Exact) {
        match self {
            Machine::Cpu(_) => {
                attention::forward(heads, segments.host(), qkv.host(), out.host_mut(), lse.host_mut());
            }
            #[cfg(feature = "cuda")]
            Machine::Gpu(gpu) => {
                let (mut out, mut lse) = (out.device_mut(), lse.device_mut());
                done(cuda::attention::forward(gpu, heads, segments.device(), &qkv.device(), &mut out, &mut lse));
            }
        }
    }

    /// Overwrites `dqkv` with the gradient of the projections.
    pub fn attention_backward(
        &self,
        heads: Heads,
        segments: &Segments,
        qkv: &Buffer,
        (out, lse): (&Buffer, &Exact),
        dout: &Buffer,
        dqkv: &mut Buffer,
    ) {
        match self {
            Machine::Cpu(_) => {
                let kept = (out.host(), lse.host());
                attention::backward(heads, segments.host(), qkv.host(), kept, dout.host(), dqkv.host_mut());
            }
            #[cfg(feature = "cuda")]
            Machine::Gpu(gpu) => {
                let (qkv, out, lse, dout) = (qkv.device(), out.device(), lse.device(), dout.device());
                let (tiles, mut dqkv) = (segments.device(), dqkv.device_mut());
                done(cuda::attention::backward(gpu, heads, tiles, &qkv, (&out, &lse), &dout, &mut dqkv));
            }
        }
    }

    /// `y` of every row of `gate_up`.
    pub fn glu(&self, activation: Activation, gate_up: &Buffer, width: usize, y: &mut Buffer) {
        match self {
            Machine::Cpu(_) => glu::forward(activation, gate_up.host(), width, y.host_mut()),
            #[cfg(feature = "cuda")]
            Machine::Gpu(gpu) => {
                done(cuda::glu::forward(gpu, activation, &gate_up.device(), width, &mut y.device_mut()));
            }
        }
    }

    /// Overwrites `gate_up` with its gradient.
    pub fn glu_backward(&self, activation: Activation, gate_up: &mut Buffer, width: usize, dy: &Buffer) {
        match self {
            Machine::Cpu(_) => glu::backward(activation, gate_up.host_mut(), width, dy.host()),
            #[cfg(feature = "cuda")]
            Machine::Gpu(gpu) => {
                done(cuda::glu::backward(gpu, activation, &mut gate_up.device_mut(), width, &dy.device()));
            }
        }
    }
}

/// As kernels count rows.
#[cfg(feature = "cuda")]
fn numbered(rows: &[usize]) -> Vec<u32> {
    rows.iter().map(|row| u32::try_from(*row).expect("a micro-batch has fewer than 2^32 rows")).collect()
}
