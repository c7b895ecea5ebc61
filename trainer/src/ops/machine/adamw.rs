//! The end of a step, on either machine: what its loss and its gradient come to, and the update. On a GPU none of it waits: what
//! the step came to is sent, and received when the work of the next one is on the stream.

use std::ops::Range;

use super::{Exact, LossSums, Machine};
#[cfg(feature = "cuda")]
use super::{done, elsewhere};
use crate::ops::adamw::{self, AdamW};
#[cfg(feature = "cuda")]
use crate::ops::cuda::adamw as cuda;

/// What a step came to, where its update is made: one after the other uses it.
#[derive(Debug)]
pub enum Clip {
    /// On the host.
    Host(Judged),
    /// On the device.
    #[cfg(feature = "cuda")]
    Device(cuda::Judge),
}

/// The same, on its way to whoever tells of the step.
#[derive(Debug)]
pub enum Sent {
    /// It is there.
    Host(Judged),
    /// It is on its way.
    #[cfg(feature = "cuda")]
    Device(cuda::Sent),
}

/// What a step's loss and gradient come to.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Judged {
    /// Mean over the targets.
    pub loss: f64,
    /// ‖g‖.
    pub norm: f64,
    /// What the gradient is multiplied with.
    pub factor: f64,
}

impl Judged {
    /// Whether the update took place.
    pub fn is_finite(&self) -> bool {
        self.loss.is_finite() && self.norm.is_finite()
    }
}

impl Machine {
    /// Room for what steps with gradients of `count` numbers come to.
    pub fn clip(&self, count: usize) -> Clip {
        let _ = count;
        match self {
            Machine::Cpu(_) => Clip::Host(Judged::default()),
            #[cfg(feature = "cuda")]
            Machine::Gpu(gpu) => Clip::Device(done(cuda::Judge::new(gpu, count))),
        }
    }

    /// Judges a step by its gradient and one adapter's sum of losses over so many targets.
    pub fn judge(
        &self,
        clip: &mut Clip,
        grads: &Exact,
        (losses, adapter, targets): (&LossSums, usize, u64),
        max_norm: Option<f64>,
    ) -> Sent {
        match (self, clip, losses) {
            (Machine::Cpu(_), Clip::Host(judged), LossSums::Host(losses)) => {
                let (loss, norm) = (losses[adapter] / targets as f64, adamw::norm(grads.host()));
                *judged = Judged { loss, norm, factor: adamw::clip_factor(norm, max_norm) };
                Sent::Host(*judged)
            }
            #[cfg(feature = "cuda")]
            (Machine::Gpu(gpu), Clip::Device(judge), LossSums::Device(losses)) => {
                let loss = losses.slice(adapter..adapter + 1);
                done(judge.judge(gpu, &grads.device(), Some((&loss, targets as f64)), max_norm));
                Sent::Device(done(judge.send(gpu)))
            }
            #[cfg(feature = "cuda")]
            _ => elsewhere(),
        }
    }

    /// One update of a part, number `step` from 1; none where the step was judged to be not finite.
    pub fn adamw(
        &self,
        [params, m, v]: [&mut Exact; 3],
        (grads, clip): (&Exact, &Clip),
        place: Range<usize>,
        settings: AdamW,
        step: u64,
    ) {
        let at = || place.clone();
        match (self, clip) {
            (Machine::Cpu(_), Clip::Host(judged)) => {
                if judged.is_finite() {
                    let [params, m, v] = [params, m, v].map(|numbers| &mut numbers.host_mut()[at()]);
                    adamw::adamw(params, m, v, &grads.host()[at()], settings, step, judged.factor);
                }
            }
            #[cfg(feature = "cuda")]
            (Machine::Gpu(gpu), Clip::Device(judge)) => {
                let [mut params, mut m, mut v] = [params, m, v].map(Exact::device_mut);
                let part = [&mut params.slice_mut(at()), &mut m.slice_mut(at()), &mut v.slice_mut(at())];
                done(cuda::adamw(gpu, part, &grads.device().slice(at()), judge, settings, step));
            }
            #[cfg(feature = "cuda")]
            _ => elsewhere(),
        }
    }

    /// What a step came to; waits for it, and on a GPU for nothing behind it.
    pub fn receive(&self, sent: Sent) -> Judged {
        match (self, sent) {
            (Machine::Cpu(_), Sent::Host(judged)) => judged,
            #[cfg(feature = "cuda")]
            (Machine::Gpu(gpu), Sent::Device(sent)) => {
                let cuda::Clip { loss, norm, factor, .. } = done(sent.receive(gpu));
                Judged { loss, norm, factor: f64::from(factor) }
            }
            #[cfg(feature = "cuda")]
            _ => elsewhere(),
        }
    }
}
