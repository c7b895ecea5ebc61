// Causal attention inside each segment on tensor cores, forward and backward, streaming over tiles (Dao, "FlashAttention-2", 2307.08691).
// src/ops/attention.rs has the equations and the layout of a row: query heads, key heads, value heads, HEAD numbers each.
//
// Compiled once per width of a head (HEAD, a multiple of 8). A block has four warps and owns 64 or 128 rows of one segment, a warp one or two
// strips of 16 of them; `tiles` names, three words a tile, the segment's first row, the row behind its last, and the tile's first row. Everybody
// walks over the tiles of the other side together. A warp's products are of 16 x 8 x 16 numbers (`mma` in prelude.cuh): a thread holds rows g
// and g + 8 of each, columns 2t and 2t + 1 (g = lane / 4, t = lane % 4), which is also how the left factor of the next product is held,
// so that probabilities never leave the registers.
//
// What the next product reads is copied to shared memory while the present one is made: a tile's place is copied to as soon as the
// last product that reads it is done, and its own first product comes after one that does not need it.
//
// The backward has two kernels: one block owns queries and walks over keys, another owns keys and walks over the queries
// (and heads) that see them. Each result is summed by one thread in one order.
//
// A row behind the segment's end is read as zeros. What comes of it as a query is never stored and adds nothing, for its gradient is zero; as a
// key it comes behind every query that is stored, so that it is hidden like any other that is not seen. No test for the end is needed.
#include "prelude.cuh"

constexpr u32 WARPS = 4, THREADS = 32 * WARPS;
// Products take 16 columns at a time, of each half where there are halves; what is behind HEAD is zero. With eight more a row is an odd number of
// eights long.
constexpr u32 HALVES = HEAD > 128 ? 2 : 1, COLUMNS = (HEAD + 16 * HALVES - 1) / (16 * HALVES) * (16 * HALVES), LONG = COLUMNS + 8;
// A warp that owns queries has two strips where their sums fit into registers: what it reads of the keys serves both.
constexpr u32 STRIPS = HEAD > 128 ? 1 : 2, STRIP_ROWS = 16 * STRIPS, ROWS = WARPS * STRIP_ROWS, KEY_ROWS = 16 * WARPS;
// Rows of the other side's tiles: so many that what a block shares stays below 99 KiB on every card, and what a thread holds in registers.
constexpr u32 KEYS = HEAD > 128 ? 32 : 64, KEYS_BACK = HEAD > 128 ? 16 : 32, QUERIES_BACK = HEAD > 128 ? 16 : 32;
// Gradients of keys and values are made in halves where they would not fit into registers together.
constexpr u32 PART = COLUMNS / HALVES;
constexpr float LN2 = 0.6931471805599453f;
// Below every score, and a number: a query that has seen no key yet measures from it.
constexpr float LEAST = -1e30f;

__device__ __forceinline__ u32 stride_of(Heads heads) { return (heads.queries + 2 * heads.keys) * HEAD; }

// Begins to copy COUNT rows from `row` on, until `end`; what is behind it or behind HEAD is zero.
template <u32 COUNT>
__device__ __forceinline__ void load(bf16* to, const bf16* from, u32 stride, u32 row, u32 end) {
  constexpr u32 EIGHTS = COLUMNS / 8;
#pragma unroll
  for (u32 i = threadIdx.x; i < COUNT * EIGHTS; i += THREADS) {
    u32 r = i / EIGHTS, c = 8 * (i % EIGHTS);
    bool there = row + r < end && c < HEAD;
    copy<16>(to + r * LONG + c, there ? from + (u64)(row + r) * stride + c : from, there);
  }
}

// Every number that a thread holds of M strips by N tiles of eight columns: strip, tile, and e, whose row is e / 2 and column e % 2.
template <u32 M, u32 N, class F>
__device__ __forceinline__ void each(const F& f) {
#pragma unroll
  for (u32 m = 0; m < M; m++)
#pragma unroll
    for (u32 n = 0; n < N; n++)
#pragma unroll
      for (u32 e = 0; e < 4; e++) f(m, n, e);
}

// The rows of M strips of which a thread holds numbers: strip, and which half of it.
template <u32 M, class F>
__device__ __forceinline__ void each_row(const F& f) {
#pragma unroll
  for (u32 m = 0; m < M; m++)
#pragma unroll
    for (u32 half = 0; half < 2; half++) f(m, half);
}

// c[m][n] = strip m of x times rows 8 n to 8 n + 7 of y.
template <u32 M, u32 N>
__device__ __forceinline__ void score(float (&c)[M][N][4], const bf16* x, const bf16* y) {
  each<M, N>([&](u32 m, u32 n, u32 e) { c[m][n][e] = 0.0f; });
#pragma unroll
  for (u32 k = 0; k < COLUMNS; k += 16) {
    u32 a[M][4];
#pragma unroll
    for (u32 m = 0; m < M; m++) left<LONG>(a[m], x + 16 * m * LONG + k);
#pragma unroll
    for (u32 n = 0; n < N; n += 2) {
      u32 b[4];
      right<LONG>(b, y + 8 * n * LONG + k);
#pragma unroll
      for (u32 m = 0; m < M; m++) {
        mma(c[m][n], a[m], b[0], b[1]);
        mma(c[m][n + 1], a[m], b[2], b[3]);
      }
    }
  }
}

// sum[m][c] += strip m of p times columns 8 c to 8 c + 7 of y; p is what `score` left, y has as many rows as p has columns.
template <u32 M, u32 N, u32 C>
__device__ __forceinline__ void add(float (&sum)[M][C][4], const float (&p)[M][N][4], const bf16* y) {
#pragma unroll
  for (u32 n = 0; n < N; n += 2) {
    u32 a[M][4];
#pragma unroll
    for (u32 m = 0; m < M; m++) {
      a[m][0] = both(p[m][n][0], p[m][n][1]), a[m][1] = both(p[m][n][2], p[m][n][3]);
      a[m][2] = both(p[m][n + 1][0], p[m][n + 1][1]), a[m][3] = both(p[m][n + 1][2], p[m][n + 1][3]);
    }
#pragma unroll
    for (u32 c = 0; c < C; c += 2) {
      u32 b[4];
      right_turned<LONG>(b, y + 8 * n * LONG + 8 * c);
#pragma unroll
      for (u32 m = 0; m < M; m++) {
        mma(sum[m][c], a[m], b[0], b[1]);
        mma(sum[m][c + 1], a[m], b[2], b[3]);
      }
    }
  }
}

// Whether all queries from row i0 to before i1 see all keys from row j0 to before j1.
__device__ __forceinline__ bool all_seen(Heads heads, u32 i0, u32 i1, u32 j0, u32 j1) {
  return j1 <= i0 + 1 && (heads.window == 0 || i1 - j0 <= heads.window);
}

// Whether any query of the warp's strips, from row i0 on, may see a key from row j0 on.
__device__ __forceinline__ bool sees_any(u32 i0, u32 j0, u32 end) { return i0 < end && j0 < i0 + STRIP_ROWS; }

// `value` wherever a query does not see a key; the thread's first number is of query i and key j, KEYS_DOWN says which of them a row is.
template <bool KEYS_DOWN, u32 M, u32 N>
__device__ __forceinline__ void hide(Heads heads, float (&c)[M][N][4], u32 i, u32 j, float value) {
  each<M, N>([&](u32 m, u32 n, u32 e) {
    u32 down = 16 * m + e / 2 * 8, across = 8 * n + e % 2;
    u32 query = i + (KEYS_DOWN ? across : down), key = j + (KEYS_DOWN ? down : across);
    bool seen = key <= query && (heads.window == 0 || query - key < heads.window);
    c[m][n][e] = seen ? c[m][n][e] : value;
  });
}

// Products of queries and keys to those whose `scale`-fold is the capped score.
template <u32 M, u32 N>
__device__ __forceinline__ void soft_cap(Heads heads, float (&c)[M][N][4]) {
  if (heads.cap == 0.0f) return;
  each<M, N>([&](u32 m, u32 n, u32 e) { c[m][n][e] = heads.cap / heads.scale * tanhf(heads.scale / heads.cap * c[m][n][e]); });
}

// From the gradient of a score to that of its product but for `scale`; c is what `soft_cap` left.
template <u32 M, u32 N>
__device__ __forceinline__ void soft_cap_backward(Heads heads, float (&gradient)[M][N][4], const float (&c)[M][N][4]) {
  if (heads.cap == 0.0f) return;
  each<M, N>([&](u32 m, u32 n, u32 e) {
    float part = heads.scale / heads.cap * c[m][n][e];
    gradient[m][n][e] *= 1.0f - part * part;
  });
}

// The thread's columns of a row, from `column` on.
template <u32 C>
__device__ __forceinline__ void store(bf16* row, const float (&sum)[C][4], u32 half, float factor, u32 column) {
  u32 t = threadIdx.x % 4;
#pragma unroll
  for (u32 c = 0; c < C; c++) {
    u32 at = column + 8 * c + 2 * t;
    if (at < HEAD)
      *at_once<u32>(row + at) = both(sum[c][2 * half] * factor, sum[c][2 * half + 1] * factor);
  }
}

// The first key that anybody in the rows from `row` on sees.
__device__ __forceinline__ u32 first_seen(Heads heads, u32 first, u32 row) {
  return heads.window != 0 && row + 1 > heads.window + first ? row + 1 - heads.window : first;
}

// Grid: tiles of ROWS x query heads. Shared: ROWS + 2 KEYS rows.
KERNEL(attention_forward, const bf16* qkv, const u32* tiles, bf16* out, float* lse, Heads heads) {
  DYNAMIC_SHARED(bf16, q);
  bf16 *k = q + ROWS * LONG, *v = k + KEYS * LONG;
  const u32 first = tiles[3 * blockIdx.x], end = tiles[3 * blockIdx.x + 1], row = tiles[3 * blockIdx.x + 2];
  const u32 head = blockIdx.y, shared_head = head / (heads.queries / heads.keys), stride = stride_of(heads);
  const u32 own = threadIdx.x / 32 * STRIP_ROWS, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4, i = row + own + g;
  const bf16 *keys = qkv + (heads.queries + shared_head) * HEAD, *values = keys + heads.keys * HEAD;
  const u32 behind = row + ROWS < end ? row + ROWS : end;
  const float factor = heads.scale * LOG2E;
  float most[STRIPS][2], sum[STRIPS][2] = {}, o[STRIPS][COLUMNS / 8][4] = {};
  each_row<STRIPS>([&](u32 m, u32 half) { most[m][half] = LEAST; });
  u32 j0 = first_seen(heads, first, row);
  load<ROWS>(q, qkv + head * HEAD, stride, row, end);
  load<KEYS>(k, keys, stride, j0, end);
  for (; j0 < behind; j0 += KEYS) {
    wait_for_copies(); // the keys; and nobody reads the values before these any more
    load<KEYS>(v, values, stride, j0, end);
    const bool any = sees_any(row + own, j0, end);
    float s[STRIPS][KEYS / 8][4];
    if (any) score(s, q + own * LONG, k);
    wait_for_copies(); // the values; and nobody reads these keys any more
    if (j0 + KEYS < behind) load<KEYS>(k, keys, stride, j0 + KEYS, end);
    if (!any) continue;
    soft_cap(heads, s);
    if (!all_seen(heads, row + own, row + own + STRIP_ROWS, j0, j0 + KEYS)) hide<false>(heads, s, i, j0 + 2 * t, -INFINITY);
    float now[STRIPS][2];
    each_row<STRIPS>([&](u32 m, u32 half) { now[m][half] = -INFINITY; });
    each<STRIPS, KEYS / 8>([&](u32 m, u32 n, u32 e) { now[m][e / 2] = fmaxf(now[m][e / 2], s[m][n][e]); });
    each_row<STRIPS>([&](u32 m, u32 half) {
      float before = most[m][half];
      most[m][half] = fmaxf(before, quad_max(now[m][half]) * factor);
      float rescale = power_of_two(before - most[m][half]);
      sum[m][half] *= rescale;
#pragma unroll
      for (u32 c = 0; c < COLUMNS / 8; c++) o[m][c][2 * half] *= rescale, o[m][c][2 * half + 1] *= rescale;
    });
    each<STRIPS, KEYS / 8>([&](u32 m, u32 n, u32 e) {
      s[m][n][e] = power_of_two(fmaf(s[m][n][e], factor, -most[m][e / 2]));
      sum[m][e / 2] += s[m][n][e];
    });
    add(o, s, v);
  }
  each_row<STRIPS>([&](u32 m, u32 half) {
    float whole = quad_sum(sum[m][half]);
    u32 at = i + 16 * m + 8 * half;
    if (at >= end) return;
    store(out + ((u64)at * heads.queries + head) * HEAD, o[m], half, 1.0f / whole, 0);
    if (t == 0) lse[(u64)at * heads.queries + head] = most[m][half] * LN2 + logf(whole);
  });
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

// Grid: tiles of ROWS queries x query heads. Shared: 2 ROWS + 2 KEYS_BACK rows. Overwrites the query columns of dqkv.
KERNEL(attention_backward_queries, const bf16* qkv, const bf16* dout, const float* lse, const float* delta,
       const u32* tiles, bf16* dqkv, Heads heads) {
  DYNAMIC_SHARED(bf16, q);
  bf16 *d = q + ROWS * LONG, *k = d + ROWS * LONG, *v = k + KEYS_BACK * LONG;
  const u32 first = tiles[3 * blockIdx.x], end = tiles[3 * blockIdx.x + 1], row = tiles[3 * blockIdx.x + 2];
  const u32 head = blockIdx.y, shared_head = head / (heads.queries / heads.keys), stride = stride_of(heads);
  const u32 own = threadIdx.x / 32 * STRIP_ROWS, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4, i = row + own + g;
  const bf16 *keys = qkv + (heads.queries + shared_head) * HEAD, *values = keys + heads.keys * HEAD;
  const u32 behind = row + ROWS < end ? row + ROWS : end;
  const float factor = heads.scale * LOG2E;
  u32 j0 = first_seen(heads, first, row);
  load<ROWS>(q, qkv + head * HEAD, stride, row, end);
  load<ROWS>(d, dout + head * HEAD, heads.queries * HEAD, row, end);
  load<KEYS_BACK>(v, values, stride, j0, end);
  float own_lse[STRIPS][2], own_delta[STRIPS][2], dq[STRIPS][COLUMNS / 8][4] = {};
  each_row<STRIPS>([&](u32 m, u32 half) {
    u32 of = i + 16 * m + 8 * half;
    u64 at = (u64)of * heads.queries + head;
    own_lse[m][half] = of < end ? lse[at] * LOG2E : 0.0f;
    own_delta[m][half] = of < end ? delta[at] : 0.0f;
  });
  for (; j0 < behind; j0 += KEYS_BACK) {
    wait_for_copies(); // the values; and nobody reads the keys before these any more
    load<KEYS_BACK>(k, keys, stride, j0, end);
    const bool any = sees_any(row + own, j0, end);
    float s[STRIPS][KEYS_BACK / 8][4], dp[STRIPS][KEYS_BACK / 8][4];
    if (any) score(dp, d + own * LONG, v);
    wait_for_copies(); // the keys; and nobody reads these values any more
    if (j0 + KEYS_BACK < behind) load<KEYS_BACK>(v, values, stride, j0 + KEYS_BACK, end);
    if (!any) continue;
    score(s, q + own * LONG, k);
    soft_cap(heads, s);
    each<STRIPS, KEYS_BACK / 8>([&](u32 m, u32 n, u32 e) {
      float p = power_of_two(fmaf(s[m][n][e], factor, -own_lse[m][e / 2]));
      dp[m][n][e] = p * (dp[m][n][e] - own_delta[m][e / 2]);
    });
    soft_cap_backward(heads, dp, s);
    if (!all_seen(heads, row + own, row + own + STRIP_ROWS, j0, j0 + KEYS_BACK)) hide<false>(heads, dp, i, j0 + 2 * t, 0.0f);
    add(dq, dp, k);
  }
  each_row<STRIPS>([&](u32 m, u32 half) {
    u32 at = i + 16 * m + 8 * half;
    if (at < end) store(dqkv + (u64)at * stride + head * HEAD, dq[m], half, heads.scale, 0);
  });
}

// Grid: tiles of KEY_ROWS keys x key heads. Shared: 2 KEY_ROWS + 2 QUERIES_BACK rows. Overwrites the key and value columns of dqkv.
KERNEL(attention_backward_keys, const bf16* qkv, const bf16* dout, const float* lse, const float* delta,
       const u32* tiles, bf16* dqkv, Heads heads) {
  DYNAMIC_SHARED(bf16, k);
  bf16 *v = k + KEY_ROWS * LONG, *q = v + KEY_ROWS * LONG, *d = q + QUERIES_BACK * LONG;
  __shared__ float of_lse[QUERIES_BACK], of_delta[QUERIES_BACK];
  const u32 end = tiles[3 * blockIdx.x + 1], row = tiles[3 * blockIdx.x + 2];
  const u32 shared_head = blockIdx.y, group = heads.queries / heads.keys, stride = stride_of(heads);
  const u32 own = threadIdx.x / 32 * 16, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4, j = row + own + g;
  const u32 key_column = (heads.queries + shared_head) * HEAD, value_column = key_column + heads.keys * HEAD;
  // the last key of the tile is seen by the queries up to window - 1 behind it
  const u32 last = heads.window != 0 && row + KEY_ROWS - 1 + heads.window < end ? row + KEY_ROWS - 1 + heads.window : end;
  const float factor = heads.scale * LOG2E;
  // one walk over the tiles of each head in turn
  const u32 tiles_a_head = (last - row + QUERIES_BACK - 1) / QUERIES_BACK, steps = group * tiles_a_head;
  auto head_of = [&](u32 step) { return shared_head * group + step / tiles_a_head; };
  auto row_of = [&](u32 step) { return row + step % tiles_a_head * QUERIES_BACK; };
  auto load_gradient = [&](u32 step) {
    load<QUERIES_BACK>(d, dout + head_of(step) * HEAD, heads.queries * HEAD, row_of(step), end);
  };
  load<KEY_ROWS>(k, qkv + key_column, stride, row, end);
  load<KEY_ROWS>(v, qkv + value_column, stride, row, end);
  for (u32 column = 0; column < COLUMNS; column += PART) {
    float dk[1][PART / 8][4] = {}, dv[1][PART / 8][4] = {};
    load_gradient(0);
    for (u32 step = 0; step < steps; step++) {
      const u32 head = head_of(step), i0 = row_of(step);
      wait_for_copies(); // what comes in for the queries; and nobody reads the queries before these any more
      load<QUERIES_BACK>(q, qkv + head * HEAD, stride, i0, end);
      if (threadIdx.x < QUERIES_BACK) {
        bool there = i0 + threadIdx.x < end;
        u64 at = there ? (u64)(i0 + threadIdx.x) * heads.queries + head : 0;
        copy<4>(of_lse + threadIdx.x, lse + at, there);
        copy<4>(of_delta + threadIdx.x, delta + at, there);
      }
      float p[1][QUERIES_BACK / 8][4], s[1][QUERIES_BACK / 8][4], dp[1][QUERIES_BACK / 8][4];
      score(dp, v + own * LONG, d);
      wait_for_copies(); // the queries
      score(s, k + own * LONG, q);
      soft_cap(heads, s);
      each<1, QUERIES_BACK / 8>([&](u32 m, u32 n, u32 e) {
        u32 at = 8 * n + 2 * t + e % 2;
        p[m][n][e] = power_of_two(fmaf(s[m][n][e], factor, -of_lse[at] * LOG2E));
        dp[m][n][e] -= of_delta[at];
      });
      if (!all_seen(heads, i0, i0 + QUERIES_BACK, row, row + KEY_ROWS)) hide<true>(heads, p, i0 + 2 * t, j, 0.0f);
      each<1, QUERIES_BACK / 8>([&](u32 m, u32 n, u32 e) { dp[m][n][e] *= p[m][n][e]; });
      soft_cap_backward(heads, dp, s);
      add(dv, p, d + column);
      __syncthreads(); // nobody reads what came in any more
      if (step + 1 < steps) load_gradient(step + 1);
      add(dk, dp, q + column);
    }
    each_row<1>([&](u32 m, u32 half) {
      if (j + 8 * half >= end) return;
      bf16* of_row = dqkv + (u64)(j + 8 * half) * stride;
      store(of_row + key_column, dk[m], half, heads.scale, column);
      store(of_row + value_column, dv[m], half, 1.0f, column);
    });
  }
}
