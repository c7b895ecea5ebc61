// Dropout from the counter-based generator of src/ops/random.rs: the same masks as on the CPU, bit for bit.
//
// Channel c takes word (c / 16) mod 4 of the Philox block with the counter (c / 64, c mod 16, token, domain).
#include "prelude.cuh"

constexpr u32 DROPOUT = 2; // the domain

struct Words {
  u32 w[4];
};

__device__ __forceinline__ Words philox(u32 k0, u32 k1, u32 c0, u32 c1, u32 c2, u32 c3) {
  for (int round = 0; round < 10; round++) {
    u64 p0 = (u64)c0 * 0xD2511F53u, p1 = (u64)c2 * 0xCD9E8D57u;
    u32 n0 = (u32)(p1 >> 32) ^ c1 ^ k0, n2 = (u32)(p0 >> 32) ^ c3 ^ k1;
    c1 = (u32)p1, c3 = (u32)p0, c0 = n0, c2 = n2;
    k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
  }
  Words words = {{c0, c1, c2, c3}};
  return words;
}

// What one module keeps of every row: bit c % 64 of word c / 64 of a row is channel c. `names` has five words a row, the key of its example's
// masks and its token. A warp owns a row; half of it makes the 16 blocks of a word.
KERNEL(dropout_draw, const u32* names, u64* kept, u32 rows, u32 width, u32 module, u32 threshold) {
  u32 row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
  if (row >= rows) return;
  const u32* name = names + 5 * row;
  Words key = philox(name[0], name[1], name[2], name[3], module, DROPOUT);
  u32 groups = (width + 63) / 64;
  for (u32 first = 0; first < groups; first += 2) {
    u32 group = first + lane / 16;
    Words words = philox(key.w[0], key.w[1], group, lane % 16, name[4], DROPOUT);
    u64 bits = 0;
#pragma unroll
    for (u32 j = 0; j < 4; j++) {
      u32 of_warp = __ballot_sync(0xffffffffu, words.w[j] >= threshold);
      bits |= (u64)(of_warp >> lane / 16 * 16 & 0xffffu) << 16 * j;
    }
    if (lane % 16 == 0 && group < groups) kept[(u64)row * groups + group] = bits;
  }
}

// Hands all eights of rows of `width` numbers to `f`: where they begin, and which of them are kept.
template <class F>
__device__ __forceinline__ void each_eight(const u64* kept, u32 rows, u32 width, const F& f) {
  const u32 of_row = width / 8, words = (width + 63) / 64;
  for (u32 i = blockIdx.x * blockDim.x + threadIdx.x; i < rows * of_row; i += gridDim.x * blockDim.x) {
    u32 row = i / of_row, c = i % of_row * 8;
    f(8 * (u64)i, (u32)(kept[(u64)row * words + c / 64] >> c % 64) & 255u);
  }
}

// y is x where it is kept and 0 elsewhere; whoever multiplies with it takes the factor of what is kept along.
KERNEL(dropout_mask, const bf16* x, const u64* kept, bf16* y, u32 rows, u32 width) {
  each_eight(kept, rows, width, [&](u64 at, u32 bits) {
    Eight own = eight(x + at);
#pragma unroll
    for (u32 i = 0; i < 8; i++) own.x[i] = bits >> i & 1u ? own.x[i] : 0.0f;
    put(y + at, own);
  });
}

// y += x where it is kept.
KERNEL(dropout_add, const bf16* x, const u64* kept, bf16* y, u32 rows, u32 width) {
  each_eight(kept, rows, width, [&](u64 at, u32 bits) {
    Eight own = eight(x + at), sum = eight(y + at);
#pragma unroll
    for (u32 i = 0; i < 8; i++) sum.x[i] += bits >> i & 1u ? own.x[i] : 0.0f;
    put(y + at, sum);
  });
}
