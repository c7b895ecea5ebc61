// Causal attention inside each segment on tensor cores, forward and backward, streaming over tiles (Dao, "FlashAttention-2", 2307.08691).
// src/ops/attention.rs has the equations and the layout of a row: query heads, key heads, value heads, HEAD numbers each.
//
// Compiled once per width of a head (HEAD, a multiple of 8). A block has four warps and owns 64 rows of one segment, a warp 16 of them;
// `tiles` names, three words a tile, the segment's first row, the row behind its last, and the tile's first row. Everybody
// walks over the tiles of the other side together. A warp's products are of 16 x 8 x 16 numbers (`mma` in prelude.cuh): a thread holds rows g
// and g + 8 of each, columns 2t and 2t + 1 (g = lane / 4, t = lane % 4), which is also how the left factor of the next product is held,
// so that probabilities never leave the registers.
//
// The backward has two kernels: one block owns 64 queries and walks over keys, another owns 64 keys and walks over the queries
// (and heads) that see them. Each result is summed by one thread in one order.
#include "prelude.cuh"

constexpr u32 WARPS = 4, ROWS = 16 * WARPS, THREADS = 32 * WARPS;
// Products take 16 columns at a time; what is behind HEAD is zero. Eight more set the rows of shared memory four banks apart.
constexpr u32 COLUMNS = (HEAD + 15) / 16 * 16, LONG = COLUMNS + 8;
// Rows of the other side's tiles: so many that what a block shares stays below 99 KiB on every card, and what a thread holds in registers.
constexpr u32 KEYS = HEAD > 128 ? 32 : 64, KEYS_BACK = HEAD > 128 ? 16 : 64, QUERIES_BACK = HEAD > 128 ? 16 : 32;
// Gradients of keys and values are made in halves where they would not fit into registers together.
constexpr u32 HALVES = HEAD > 128 ? 2 : 1, PART = COLUMNS / HALVES;
static_assert(PART % 16 == 0, "two tiles of eight columns at a time");
constexpr float LOG2E = 1.4426950408889634f, LN2 = 0.6931471805599453f;

struct Heads {
  u32 queries, keys;
  float scale, cap; // cap 0: none
  u32 window;       // 0: none
};

__device__ __forceinline__ u32 stride_of(Heads heads) { return (heads.queries + 2 * heads.keys) * HEAD; }

// COUNT rows from `row` on, until `end`; what is behind it or behind HEAD is zero.
template <u32 COUNT>
__device__ __forceinline__ void load(bf16* to, const bf16* from, u32 stride, u32 row, u32 end) {
  constexpr u32 EIGHTS = COLUMNS / 8;
  for (u32 i = threadIdx.x; i < COUNT * EIGHTS; i += THREADS) {
    u32 r = i / EIGHTS, c = 8 * (i % EIGHTS);
    uint4 eight = make_uint4(0, 0, 0, 0);
    if (row + r < end && c < HEAD) eight = *reinterpret_cast<const uint4*>(from + (u64)(row + r) * stride + c);
    *reinterpret_cast<uint4*>(to + r * LONG + c) = eight;
  }
}

// A left factor: 16 rows by 16 columns.
__device__ __forceinline__ void left(u32 (&a)[4], const bf16* at) {
  u32 lane = threadIdx.x % 32;
  load_matrices(a, at + (lane / 8 % 2 * 8 + lane % 8) * LONG + lane / 16 * 8);
}

// Two right factors whose columns are the 16 rows at hand; 16 columns of them are summed over.
__device__ __forceinline__ void right(u32 (&b)[4], const bf16* at) {
  u32 lane = threadIdx.x % 32;
  load_matrices(b, at + (lane / 16 * 8 + lane % 8) * LONG + lane / 8 % 2 * 8);
}

// Two right factors of 8 columns each; the 16 rows at hand are summed over.
__device__ __forceinline__ void right_turned(u32 (&b)[4], const bf16* at) {
  u32 lane = threadIdx.x % 32;
  load_matrices_turned(b, at + (lane / 8 % 2 * 8 + lane % 8) * LONG + lane / 16 * 8);
}

// c[n] = the warp's 16 rows of x times rows 8 n to 8 n + 7 of y.
template <u32 N>
__device__ __forceinline__ void score(float (&c)[N][4], const bf16* x, const bf16* y) {
#pragma unroll
  for (u32 n = 0; n < N; n++)
#pragma unroll
    for (u32 e = 0; e < 4; e++) c[n][e] = 0.0f;
#pragma unroll
  for (u32 k = 0; k < COLUMNS; k += 16) {
    u32 a[4], b[4];
    left(a, x + k);
#pragma unroll
    for (u32 n = 0; n < N; n += 2) {
      right(b, y + 8 * n * LONG + k);
      mma(c[n], a, b[0], b[1]);
      mma(c[n + 1], a, b[2], b[3]);
    }
  }
}

// sum[c] += p times columns 8 c to 8 c + 7 of y; p is what `score` left, y has as many rows as p has columns.
template <u32 N, u32 C>
__device__ __forceinline__ void add(float (&sum)[C][4], const float (&p)[N][4], const bf16* y) {
#pragma unroll
  for (u32 n = 0; n < N; n += 2) {
    u32 a[4] = {both(p[n][0], p[n][1]), both(p[n][2], p[n][3]), both(p[n + 1][0], p[n + 1][1]),
                both(p[n + 1][2], p[n + 1][3])};
#pragma unroll
    for (u32 c = 0; c < C; c += 2) {
      u32 b[4];
      right_turned(b, y + 8 * n * LONG + 8 * c);
      mma(sum[c], a, b[0], b[1]);
      mma(sum[c + 1], a, b[2], b[3]);
    }
  }
}

// Whether the query in row i sees the key in row j; both lie in one segment that ends at `end`.
__device__ __forceinline__ bool sees(Heads heads, u32 i, u32 j, u32 end) {
  return i < end && j <= i && (heads.window == 0 || i - j < heads.window);
}

__device__ __forceinline__ float capped(Heads heads, float product) {
  float s = heads.scale * product;
  return heads.cap > 0.0f ? heads.cap * tanhf(s / heads.cap) : s;
}

// The gradient of q . k from the capped score, the probability and the gradient that arrives for it.
__device__ __forceinline__ float slope(Heads heads, float s, float p, float dp, float delta) {
  float ds = p * (dp - delta);
  if (heads.cap > 0.0f) ds *= 1.0f - s / heads.cap * (s / heads.cap);
  return ds * heads.scale;
}

// The warp's columns of a row, from `column` on.
template <u32 C>
__device__ __forceinline__ void store(bf16* row, const float (&sum)[C][4], u32 half, float factor, u32 column) {
  u32 t = threadIdx.x % 4;
#pragma unroll
  for (u32 c = 0; c < C; c++) {
    u32 at = column + 8 * c + 2 * t;
    if (at < HEAD)
      *reinterpret_cast<u32*>(row + at) = both(sum[c][2 * half] * factor, sum[c][2 * half + 1] * factor);
  }
}

// The first key that anybody in the rows from `row` on sees.
__device__ __forceinline__ u32 first_seen(Heads heads, u32 first, u32 row) {
  return heads.window != 0 && row + 1 > heads.window + first ? row + 1 - heads.window : first;
}

// Grid: tiles x query heads. Shared: ROWS + 2 KEYS rows.
KERNEL(attention_forward, const bf16* qkv, const u32* tiles, bf16* out, float* lse, Heads heads) {
  DYNAMIC_SHARED(bf16, q);
  bf16 *k = q + ROWS * LONG, *v = k + KEYS * LONG;
  const u32 first = tiles[3 * blockIdx.x], end = tiles[3 * blockIdx.x + 1], row = tiles[3 * blockIdx.x + 2];
  const u32 head = blockIdx.y, shared_head = head / (heads.queries / heads.keys), stride = stride_of(heads);
  const u32 warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4, i = row + 16 * warp + g;
  load<ROWS>(q, qkv + head * HEAD, stride, row, end);
  float most[2] = {-INFINITY, -INFINITY}, sum[2] = {0.0f, 0.0f}, o[COLUMNS / 8][4] = {};
  for (u32 j0 = first_seen(heads, first, row); j0 < row + ROWS && j0 < end; j0 += KEYS) {
    __syncthreads();
    load<KEYS>(k, qkv + (heads.queries + shared_head) * HEAD, stride, j0, end);
    load<KEYS>(v, qkv + (heads.queries + heads.keys + shared_head) * HEAD, stride, j0, end);
    __syncthreads();
    float s[KEYS / 8][4];
    score(s, q + 16 * warp * LONG, k);
    float now[2] = {most[0], most[1]}, rescale[2];
#pragma unroll
    for (u32 n = 0; n < KEYS / 8; n++)
#pragma unroll
      for (u32 e = 0; e < 4; e++) {
        bool seen = sees(heads, i + e / 2 * 8, j0 + 8 * n + 2 * t + e % 2, end);
        s[n][e] = seen ? capped(heads, s[n][e]) * LOG2E : -INFINITY;
        now[e / 2] = fmaxf(now[e / 2], s[n][e]);
      }
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
      now[half] = quad_max(now[half]);
      // before a query has seen any key there is nothing to rescale
      rescale[half] = now[half] == -INFINITY ? 1.0f : exp2f(most[half] - now[half]);
      most[half] = now[half];
      sum[half] *= rescale[half];
    }
#pragma unroll
    for (u32 n = 0; n < KEYS / 8; n++)
#pragma unroll
      for (u32 e = 0; e < 4; e++) {
        s[n][e] = s[n][e] == -INFINITY ? 0.0f : exp2f(s[n][e] - now[e / 2]);
        sum[e / 2] += s[n][e];
      }
#pragma unroll
    for (u32 c = 0; c < COLUMNS / 8; c++)
#pragma unroll
      for (u32 e = 0; e < 4; e++) o[c][e] *= rescale[e / 2];
    add(o, s, v);
  }
#pragma unroll
  for (u32 half = 0; half < 2; half++) {
    float whole = quad_sum(sum[half]);
    u32 at = i + 8 * half;
    if (at >= end) continue;
    store(out + ((u64)at * heads.queries + head) * HEAD, o, half, 1.0f / whole, 0);
    if (t == 0) lse[(u64)at * heads.queries + head] = most[half] * LN2 + logf(whole);
  }
}

// delta = sum of out dout, one warp per row and query head.
KERNEL(attention_delta, const bf16* out, const bf16* dout, float* delta, u32 count) {
  u64 warp = ((u64)blockIdx.x * blockDim.x + threadIdx.x) / 32;
  if (warp >= count) return;
  float sum = 0.0f;
  for (u32 c = threadIdx.x % 32; c < HEAD; c += 32) sum += wide(out[warp * HEAD + c]) * wide(dout[warp * HEAD + c]);
  sum = warp_sum(sum);
  if (threadIdx.x % 32 == 0) delta[warp] = sum;
}

// Grid: tiles of queries x query heads. Shared: 2 ROWS + 2 KEYS_BACK rows. Overwrites the query columns of dqkv.
KERNEL(attention_backward_queries, const bf16* qkv, const bf16* dout, const float* lse, const float* delta,
       const u32* tiles, bf16* dqkv, Heads heads) {
  DYNAMIC_SHARED(bf16, q);
  bf16 *d = q + ROWS * LONG, *k = d + ROWS * LONG, *v = k + KEYS_BACK * LONG;
  const u32 first = tiles[3 * blockIdx.x], end = tiles[3 * blockIdx.x + 1], row = tiles[3 * blockIdx.x + 2];
  const u32 head = blockIdx.y, shared_head = head / (heads.queries / heads.keys), stride = stride_of(heads);
  const u32 warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4, i = row + 16 * warp + g;
  load<ROWS>(q, qkv + head * HEAD, stride, row, end);
  load<ROWS>(d, dout + head * HEAD, heads.queries * HEAD, row, end);
  float own_lse[2], own_delta[2], dq[COLUMNS / 8][4] = {};
#pragma unroll
  for (u32 half = 0; half < 2; half++) {
    u64 at = (u64)(i + 8 * half) * heads.queries + head;
    own_lse[half] = i + 8 * half < end ? lse[at] * LOG2E : 0.0f;
    own_delta[half] = i + 8 * half < end ? delta[at] : 0.0f;
  }
  for (u32 j0 = first_seen(heads, first, row); j0 < row + ROWS && j0 < end; j0 += KEYS_BACK) {
    __syncthreads();
    load<KEYS_BACK>(k, qkv + (heads.queries + shared_head) * HEAD, stride, j0, end);
    load<KEYS_BACK>(v, qkv + (heads.queries + heads.keys + shared_head) * HEAD, stride, j0, end);
    __syncthreads();
    float s[KEYS_BACK / 8][4], dp[KEYS_BACK / 8][4];
    score(s, q + 16 * warp * LONG, k);
    score(dp, d + 16 * warp * LONG, v);
#pragma unroll
    for (u32 n = 0; n < KEYS_BACK / 8; n++)
#pragma unroll
      for (u32 e = 0; e < 4; e++) {
        float gradient = 0.0f;
        if (sees(heads, i + e / 2 * 8, j0 + 8 * n + 2 * t + e % 2, end)) {
          float bent = capped(heads, s[n][e]);
          gradient = slope(heads, bent, exp2f(bent * LOG2E - own_lse[e / 2]), dp[n][e], own_delta[e / 2]);
        }
        s[n][e] = gradient;
      }
    add(dq, s, k);
  }
#pragma unroll
  for (u32 half = 0; half < 2; half++)
    if (i + 8 * half < end) store(dqkv + (u64)(i + 8 * half) * stride + head * HEAD, dq, half, 1.0f, 0);
}

// Grid: tiles of keys x key heads. Shared: 2 ROWS + 2 QUERIES_BACK rows. Overwrites the key and value columns of dqkv.
KERNEL(attention_backward_keys, const bf16* qkv, const bf16* dout, const float* lse, const float* delta,
       const u32* tiles, bf16* dqkv, Heads heads) {
  DYNAMIC_SHARED(bf16, k);
  bf16 *v = k + ROWS * LONG, *q = v + ROWS * LONG, *d = q + QUERIES_BACK * LONG;
  __shared__ float of_lse[QUERIES_BACK], of_delta[QUERIES_BACK];
  const u32 end = tiles[3 * blockIdx.x + 1], row = tiles[3 * blockIdx.x + 2];
  const u32 shared_head = blockIdx.y, group = heads.queries / heads.keys, stride = stride_of(heads);
  const u32 warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4, j = row + 16 * warp + g;
  const u32 key_column = (heads.queries + shared_head) * HEAD, value_column = key_column + heads.keys * HEAD;
  load<ROWS>(k, qkv + key_column, stride, row, end);
  load<ROWS>(v, qkv + value_column, stride, row, end);
  // the last key of the tile is seen by the queries up to window - 1 behind it
  const u32 last = heads.window != 0 && row + ROWS - 1 + heads.window < end ? row + ROWS - 1 + heads.window : end;
  for (u32 column = 0; column < COLUMNS; column += PART) {
    float dk[PART / 8][4] = {}, dv[PART / 8][4] = {};
    for (u32 head = shared_head * group; head < (shared_head + 1) * group; head++) {
      for (u32 i0 = row; i0 < last; i0 += QUERIES_BACK) {
        __syncthreads();
        load<QUERIES_BACK>(q, qkv + head * HEAD, stride, i0, end);
        load<QUERIES_BACK>(d, dout + head * HEAD, heads.queries * HEAD, i0, end);
        if (threadIdx.x < QUERIES_BACK) {
          u64 at = (u64)(i0 + threadIdx.x) * heads.queries + head;
          bool there = i0 + threadIdx.x < end;
          of_lse[threadIdx.x] = there ? lse[at] * LOG2E : 0.0f;
          of_delta[threadIdx.x] = there ? delta[at] : 0.0f;
        }
        __syncthreads();
        float p[QUERIES_BACK / 8][4], ds[QUERIES_BACK / 8][4];
        score(p, k + 16 * warp * LONG, q);
        score(ds, v + 16 * warp * LONG, d);
#pragma unroll
        for (u32 n = 0; n < QUERIES_BACK / 8; n++)
#pragma unroll
          for (u32 e = 0; e < 4; e++) {
            u32 at = 8 * n + 2 * t + e % 2;
            float probability = 0.0f, gradient = 0.0f;
            if (sees(heads, i0 + at, j + e / 2 * 8, end)) {
              float bent = capped(heads, p[n][e]);
              probability = exp2f(bent * LOG2E - of_lse[at]);
              gradient = slope(heads, bent, probability, ds[n][e], of_delta[at]);
            }
            p[n][e] = probability;
            ds[n][e] = gradient;
          }
        add(dv, p, d + column);
        add(dk, ds, q + column);
      }
    }
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
      if (j + 8 * half >= end) continue;
      bf16* of_row = dqkv + (u64)(j + 8 * half) * stride;
      store(of_row + key_column, dk, half, 1.0f, column);
      store(of_row + value_column, dv, half, 1.0f, column);
    }
  }
}
