//! Drawing and applying masks where a bit per lane is what the processor's own masks are. The compiler finds neither by itself; the
//! forms beside it say what is meant, and the tests hold both together.

use std::arch::x86_64::*;

use super::super::random::{MULTIPLIERS, WEYL};

/// One round of Philox for 16 counters, word by word.
#[inline]
#[target_feature(enable = "avx512f")]
fn round(keys: [u32; 2], c: [__m512i; 4]) -> [__m512i; 4] {
    let [p0, p1] = [(c[0], MULTIPLIERS[0]), (c[2], MULTIPLIERS[1])].map(|(word, by)| {
        let by = _mm512_set1_epi64(i64::from(by));
        let (even, odd) = (_mm512_mul_epu32(word, by), _mm512_mul_epu32(_mm512_srli_epi64(word, 32), by));
        let low = _mm512_mask_blend_epi32(0xAAAA, even, _mm512_slli_epi64(odd, 32));
        [low, _mm512_mask_blend_epi32(0xAAAA, _mm512_srli_epi64(even, 32), odd)]
    });
    let [k0, k1] = keys.map(|key| _mm512_set1_epi32(key.cast_signed()));
    let xor = |a, b, c| _mm512_xor_si512(_mm512_xor_si512(a, b), c);
    [xor(p1[1], c[1], k0), p1[0], xor(p0[1], c[3], k1), p0[0]]
}

/// [`super::super::random::Masks::kept`] for the counters `[group, lane, token, domain]`.
#[target_feature(enable = "avx512f")]
pub(in super::super) fn kept([mut k0, mut k1]: [u32; 2], [token, domain]: [u32; 2], threshold: u32, out: &mut [u16]) {
    let all = |x: u32| _mm512_set1_epi32(x.cast_signed());
    let lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    let (first, least) = ([k0, k1], all(threshold));
    for (group, out) in out.chunks_mut(4).enumerate() {
        let mut c = [all(group as u32), lanes, all(token), all(domain)];
        [k0, k1] = first;
        for _ in 0..10 {
            c = round([k0, k1], c);
            (k0, k1) = (k0.wrapping_add(WEYL[0]), k1.wrapping_add(WEYL[1]));
        }
        for (out, words) in out.iter_mut().zip(c) {
            *out = _mm512_cmpge_epu32_mask(words, least);
        }
    }
}

/// `y = x∘m`, or `y += x∘m`, of one row whose length is whole words.
#[target_feature(enable = "avx512f")]
pub(super) fn apply(words: &[u16], factor: f32, add: bool, x: &[[f32; 16]], y: &mut [[f32; 16]]) {
    let factor = _mm512_set1_ps(factor);
    for ((y, x), word) in y.iter_mut().zip(x).zip(words) {
        // SAFETY: 16 numbers each
        let x = unsafe { _mm512_loadu_ps(x.as_ptr()) };
        let mut masked = _mm512_maskz_mul_ps(*word, x, factor);
        if add {
            // SAFETY: as before
            masked = _mm512_add_ps(unsafe { _mm512_loadu_ps(y.as_ptr()) }, masked);
        }
        // SAFETY: as before
        unsafe { _mm512_storeu_ps(y.as_mut_ptr(), masked) };
    }
}
