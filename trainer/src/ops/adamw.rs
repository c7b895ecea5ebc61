//! AdamW over one flat buffer, the gradient's norm, and clipping; all step for step as PyTorch has them.
//!
//! ```text
//! g ← c · g                        c = min(1, max_norm / (‖g‖ + 1e-6))
//! p ← p (1 − lr · decay)
//! m ← β₁ m + (1 − β₁) g            v ← β₂ v + (1 − β₂) g²
//! p ← p − lr / (1 − β₁ᵗ) · m / (√v / √(1 − β₂ᵗ) + ε)
//! ```

use rayon::prelude::*;

use super::real::Real;
use super::simd;

/// Numbers a task takes at a time; also the unit in which the norm is summed, whatever the number of threads.
const CHUNK: usize = 1 << 14;

/// The settings of one update.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamW {
    /// Learning rate of this step.
    pub lr: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Keeps the quotient finite.
    pub eps: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
}

/// What an update multiplies with, computed once.
#[derive(Debug, Clone, Copy)]
pub(super) struct Factors<R> {
    clip: R,
    keep: R,
    beta1: R,
    rest1: R,
    beta2: R,
    rest2: R,
    root: R,
    eps: R,
    rate: R,
}

impl<R: Real> Factors<R> {
    pub(super) fn new(adamw: AdamW, step: u64, clip: f64) -> Factors<R> {
        let power = |beta: f64| 1.0 - beta.powf(step as f64);
        Factors {
            clip: R::of(clip),
            keep: R::of(1.0 - adamw.lr * adamw.weight_decay),
            beta1: R::of(adamw.beta1),
            rest1: R::of(1.0 - adamw.beta1),
            beta2: R::of(adamw.beta2),
            rest2: R::of(1.0 - adamw.beta2),
            root: R::of(power(adamw.beta2).sqrt()),
            eps: R::of(adamw.eps),
            rate: R::of(adamw.lr / power(adamw.beta1)),
        }
    }

    /// All but the clip factor, in the order of `trainer/kernels/adamw.cu`.
    #[cfg(feature = "cuda")]
    pub(super) fn without_clip(&self) -> [R; 8] {
        [self.keep, self.beta1, self.rest1, self.beta2, self.rest2, self.root, self.eps, self.rate]
    }

    #[inline(always)]
    fn update(&self, p: &mut R, m: &mut R, v: &mut R, g: R) {
        let g = g * self.clip;
        *m = self.beta1 * *m + self.rest1 * g;
        *v = self.beta2 * *v + self.rest2 * g * g;
        *p = *p * self.keep;
        *p -= self.rate * *m / (v.sqrt() / self.root + self.eps); // mutate: flip
    }
}

/// One update, plainly. `step` counts from 1.
pub fn adamw_plain<R: Real>(
    params: &mut [R],
    m: &mut [R],
    v: &mut [R],
    grads: &[R],
    adamw: AdamW,
    step: u64,
    clip: f64,
) {
    let factors = Factors::new(adamw, step, clip);
    for (((p, m), v), g) in params.iter_mut().zip(m).zip(v).zip(grads) {
        factors.update(p, m, v, *g);
    }
}

/// One update. `step` counts from 1; `clip` multiplies the gradient.
pub fn adamw(params: &mut [f32], m: &mut [f32], v: &mut [f32], grads: &[f32], adamw: AdamW, step: u64, clip: f64) {
    assert!(step > 0, "steps count from 1");
    assert!(
        m.len() == params.len() && v.len() == params.len() && grads.len() == params.len(),
        "flat buffers of one length"
    );
    let factors: Factors<f32> = Factors::new(adamw, step, clip);
    let chunks = params.par_chunks_mut(CHUNK).zip(m.par_chunks_mut(CHUNK)).zip(v.par_chunks_mut(CHUNK));
    chunks.zip(grads.par_chunks(CHUNK)).for_each(|(((params, m), v), grads)| {
        simd::wide(
            #[inline(always)]
            || {
                for (((p, m), v), g) in params.iter_mut().zip(m).zip(v).zip(grads) {
                    factors.update(p, m, v, *g);
                }
            },
        );
    });
}

/// ‖g‖ over the whole buffer, summed in `f64` over fixed chunks in index order.
pub fn norm(grads: &[f32]) -> f64 {
    let squares: Vec<f64> = grads.par_chunks(CHUNK).map(square_sum).collect();
    squares.iter().sum::<f64>().sqrt()
}

fn square_sum(chunk: &[f32]) -> f64 {
    chunk.iter().map(|g| f64::from(*g) * f64::from(*g)).sum()
}

/// The factor that brings a gradient of that norm under `max_norm`; 1 when it is. No limit clips nothing.
pub fn clip_factor(norm: f64, max_norm: Option<f64>) -> f64 {
    max_norm.map_or(1.0, |most| (most / (norm + 1e-6)).min(1.0))
}

#[cfg(test)]
mod tests {
    use super::super::check::*;
    use super::*;

    const SETTINGS: AdamW = AdamW { lr: 1e-2, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.1 };

    #[test]
    fn three_steps_equal_the_equations_worked_by_hand() {
        let (mut p, mut m, mut v) = ([1.0f64], [0.0], [0.0]);
        let gradients = [0.5, -0.25, 1.0];
        let (mut p2, mut m2, mut v2) = (1.0f64, 0.0, 0.0);
        for (t, g) in (1..).zip(gradients) {
            adamw_plain(&mut p, &mut m, &mut v, &[2.0 * g], SETTINGS, t, 0.5);
            p2 *= 1.0 - 1e-3;
            m2 += 0.1 * (g - m2);
            v2 += 0.001 * (g * g - v2);
            let (m_hat, v_hat) = (m2 / (1.0 - 0.9f64.powi(t as i32)), v2 / (1.0 - 0.999f64.powi(t as i32)));
            p2 -= 1e-2 * m_hat / (v_hat.sqrt() + 1e-8);
            assert!((p[0] - p2).abs() < 1e-12, "step {t}: {} and {p2}", p[0]);
        }
    }

    #[test]
    fn the_cpu_form_equals_the_plain_one() {
        let n = CHUNK + 100;
        let (mut p, mut m, mut v) = (numbers32(1, n), vec![0.0; n], vec![0.0; n]);
        let (mut p2, mut m2, mut v2) = (p.clone(), m.clone(), v.clone());
        for step in 1..4 {
            let g = numbers32(10 + step, n);
            adamw(&mut p, &mut m, &mut v, &g, SETTINGS, u64::from(step), 0.7);
            adamw_plain(&mut p2, &mut m2, &mut v2, &g, SETTINGS, u64::from(step), 0.7);
        }
        assert_close("p", &p, &p2, 1e-6);
        assert_close("m", &m, &m2, 1e-6);
        assert_close("v", &v, &v2, 1e-6);
    }

    #[test]
    fn the_norm_is_that_of_the_whole_buffer_and_clipping_acts_only_above_its_limit() {
        let g = vec![0.5f32; 4 * CHUNK];
        let expected = 0.5 * (4.0 * CHUNK as f64).sqrt();
        assert!((norm(&g) - expected).abs() < 1e-9 * expected);
        assert_eq!(clip_factor(0.5, Some(1.0)), 1.0);
        assert!((clip_factor(4.0, Some(1.0)) - 0.25).abs() < 1e-6);
        assert_eq!(clip_factor(1e9, None), 1.0);
    }

    #[test]
    fn bits_do_not_depend_on_the_number_of_threads() {
        let g = numbers32(1, 5 * CHUNK + 3);
        assert_same_bits_on_any_threads(|| {
            let norm = norm(&g);
            vec![norm as f32, (norm - f64::from(norm as f32)) as f32]
        });
    }
}
