// Causal attention inside each segment, forward and backward, streaming over tiles of keys. src/ops/attention.rs has the
// equations and the layout of a row: query heads, key heads, value heads, HEAD numbers each.
//
// Compiled once per width of a head (HEAD, a multiple of 8). A block has 128 threads: 32 rows of a tile, four threads each. The
// four share a row's scores and own every fourth pair of its columns. A tile lies in one segment; `tiles` names, three words
// a tile, the segment's first row, the row behind its last, and the tile's first row.
//
// The backward has two kernels: one block owns 32 queries and walks over keys, another owns 32 keys and walks over the queries
// (and heads) that see them. Each result is summed by one thread in one order.
#include "prelude.cuh"

constexpr u32 TILE = 32, PARTS = 4, THREADS = TILE * PARTS;
// A row of a tile in shared memory is a word longer than it must be, so that rows begin in different banks.
constexpr u32 ROW = HEAD + 2;
constexpr u32 PAIRS = HEAD / (2 * PARTS);

struct Heads {
  u32 queries, keys;
  float scale, cap; // cap 0: none
  u32 window;       // 0: none
};

__device__ __forceinline__ u32 stride_of(Heads heads) { return (heads.queries + 2 * heads.keys) * HEAD; }

// Rows from `row` on, until `end`; what is behind it is zero.
__device__ __forceinline__ void load(bf16* to, const bf16* from, u32 stride, u32 row, u32 end) {
  for (u32 i = threadIdx.x; i < TILE * HEAD / 2; i += THREADS) {
    u32 r = i / (HEAD / 2), c = 2 * (i % (HEAD / 2));
    u32 both = row + r < end ? *reinterpret_cast<const u32*>(from + (u64)(row + r) * stride + c) : 0u;
    *reinterpret_cast<u32*>(to + r * ROW + c) = both;
  }
}

__device__ __forceinline__ float dot(const bf16* a, const bf16* b) {
  float sum = 0.0f;
#pragma unroll 8
  for (u32 c = 0; c < HEAD; c += 2) {
    float2 x = wide2(a + c), y = wide2(b + c);
    sum += x.x * y.x + x.y * y.y;
  }
  return sum;
}

__device__ __forceinline__ float scored(Heads heads, const bf16* q, const bf16* k) {
  float s = heads.scale * dot(q, k);
  return heads.cap > 0.0f ? heads.cap * tanhf(s / heads.cap) : s;
}

// Whether the query in row i sees the key in row j; both lie in one segment.
__device__ __forceinline__ bool sees(Heads heads, u32 i, u32 j) {
  return j <= i && (heads.window == 0 || i - j < heads.window);
}

// The gradient of q . k from the probability and the gradient that arrives for it.
__device__ __forceinline__ float slope(Heads heads, float s, float p, float dp, float delta) {
  float ds = p * (dp - delta);
  if (heads.cap > 0.0f) ds *= 1.0f - s / heads.cap * (s / heads.cap);
  return ds * heads.scale;
}

// sum[c] += sum over n of weights[n] rows[n][c], for the columns of this thread.
__device__ __forceinline__ void add_rows(float2* sum, const float* weights, const bf16* rows, u32 part) {
  for (u32 n = 0; n < TILE; n++) {
    float w = weights[n];
#pragma unroll
    for (u32 c = 0; c < PAIRS; c++) {
      float2 x = wide2(rows + n * ROW + 2 * (PARTS * c + part));
      sum[c].x += w * x.x, sum[c].y += w * x.y;
    }
  }
}

__device__ __forceinline__ void store(bf16* row, const float2* sum, u32 part, float factor) {
#pragma unroll
  for (u32 c = 0; c < PAIRS; c++) {
    row[2 * (PARTS * c + part)] = narrow(sum[c].x * factor);
    row[2 * (PARTS * c + part) + 1] = narrow(sum[c].y * factor);
  }
}

// Grid: tiles x query heads. Shared: three tiles.
KERNEL(attention_forward, const bf16* qkv, const u32* tiles, bf16* out, float* lse, Heads heads) {
  DYNAMIC_SHARED(bf16, q);
  bf16 *k = q + TILE * ROW, *v = k + TILE * ROW;
  __shared__ float p[TILE][TILE + 1];
  const u32 first = tiles[3 * blockIdx.x], end = tiles[3 * blockIdx.x + 1], row = tiles[3 * blockIdx.x + 2];
  const u32 head = blockIdx.y, shared_head = head / (heads.queries / heads.keys), stride = stride_of(heads);
  const u32 r = threadIdx.x / PARTS, part = threadIdx.x % PARTS, i = row + r;
  load(q, qkv + head * HEAD, stride, row, end);
  float most = -INFINITY, sum = 0.0f;
  float2 o[PAIRS];
  for (u32 c = 0; c < PAIRS; c++) o[c] = make_float2(0.0f, 0.0f);
  u32 begin = heads.window != 0 && row + 1 > heads.window + first ? row + 1 - heads.window : first;
  for (u32 j0 = begin; j0 < row + TILE && j0 < end; j0 += TILE) {
    __syncthreads();
    load(k, qkv + (heads.queries + shared_head) * HEAD, stride, j0, end);
    load(v, qkv + (heads.queries + heads.keys + shared_head) * HEAD, stride, j0, end);
    __syncthreads();
    float best = -INFINITY;
    for (u32 n = part; n < TILE; n += PARTS) {
      bool seen = i < end && sees(heads, i, j0 + n);
      float s = seen ? scored(heads, q + r * ROW, k + n * ROW) : -INFINITY;
      p[r][n] = s;
      best = fmaxf(best, s);
    }
    for (u32 apart = 1; apart < PARTS; apart *= 2) best = fmaxf(best, __shfl_xor_sync(0xffffffffu, best, apart));
    float now = fmaxf(most, best);
    // before a query has seen any key there is nothing to rescale
    float rescale = now == -INFINITY ? 1.0f : expf(most - now);
    float added = 0.0f;
    for (u32 n = part; n < TILE; n += PARTS) {
      float e = p[r][n] == -INFINITY ? 0.0f : expf(p[r][n] - now);
      p[r][n] = e;
      added += e;
    }
    for (u32 apart = 1; apart < PARTS; apart *= 2) added += __shfl_xor_sync(0xffffffffu, added, apart);
    most = now;
    sum = sum * rescale + added;
    __syncwarp(); // the four threads of a row are neighbours in a warp
    for (u32 c = 0; c < PAIRS; c++) o[c].x *= rescale, o[c].y *= rescale;
    add_rows(o, p[r], v, part);
  }
  if (i >= end) return;
  store(out + ((u64)i * heads.queries + head) * HEAD, o, part, 1.0f / sum);
  if (part == 0) lse[(u64)i * heads.queries + head] = most + logf(sum);
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

// Grid: tiles of queries x query heads. Shared: four tiles. Overwrites the query columns of dqkv.
KERNEL(attention_backward_queries, const bf16* qkv, const bf16* dout, const float* lse, const float* delta,
       const u32* tiles, bf16* dqkv, Heads heads) {
  DYNAMIC_SHARED(bf16, q);
  bf16 *d = q + TILE * ROW, *k = d + TILE * ROW, *v = k + TILE * ROW;
  __shared__ float ds[TILE][TILE + 1];
  const u32 first = tiles[3 * blockIdx.x], end = tiles[3 * blockIdx.x + 1], row = tiles[3 * blockIdx.x + 2];
  const u32 head = blockIdx.y, shared_head = head / (heads.queries / heads.keys), stride = stride_of(heads);
  const u32 r = threadIdx.x / PARTS, part = threadIdx.x % PARTS, i = row + r;
  load(q, qkv + head * HEAD, stride, row, end);
  load(d, dout + head * HEAD, heads.queries * HEAD, row, end);
  const u64 at = (u64)i * heads.queries + head;
  const float own_lse = i < end ? lse[at] : 0.0f, own_delta = i < end ? delta[at] : 0.0f;
  float2 dq[PAIRS];
  for (u32 c = 0; c < PAIRS; c++) dq[c] = make_float2(0.0f, 0.0f);
  u32 begin = heads.window != 0 && row + 1 > heads.window + first ? row + 1 - heads.window : first;
  for (u32 j0 = begin; j0 < row + TILE && j0 < end; j0 += TILE) {
    __syncthreads();
    load(k, qkv + (heads.queries + shared_head) * HEAD, stride, j0, end);
    load(v, qkv + (heads.queries + heads.keys + shared_head) * HEAD, stride, j0, end);
    __syncthreads();
    for (u32 n = part; n < TILE; n += PARTS) {
      float gradient = 0.0f;
      if (i < end && sees(heads, i, j0 + n)) {
        float s = scored(heads, q + r * ROW, k + n * ROW);
        gradient = slope(heads, s, expf(s - own_lse), dot(d + r * ROW, v + n * ROW), own_delta);
      }
      ds[r][n] = gradient;
    }
    __syncwarp();
    add_rows(dq, ds[r], k, part);
  }
  if (i < end) store(dqkv + (u64)i * stride + head * HEAD, dq, part, 1.0f);
}

// Grid: tiles of keys x key heads. Shared: four tiles. Overwrites the key and value columns of dqkv.
KERNEL(attention_backward_keys, const bf16* qkv, const bf16* dout, const float* lse, const float* delta,
       const u32* tiles, bf16* dqkv, Heads heads) {
  DYNAMIC_SHARED(bf16, k);
  bf16 *v = k + TILE * ROW, *q = v + TILE * ROW, *d = q + TILE * ROW;
  __shared__ float p[TILE][TILE + 1], ds[TILE][TILE + 1];
  const u32 end = tiles[3 * blockIdx.x + 1], row = tiles[3 * blockIdx.x + 2];
  const u32 shared_head = blockIdx.y, group = heads.queries / heads.keys, stride = stride_of(heads);
  const u32 r = threadIdx.x / PARTS, part = threadIdx.x % PARTS, j = row + r;
  const u32 key_column = (heads.queries + shared_head) * HEAD, value_column = key_column + heads.keys * HEAD;
  load(k, qkv + key_column, stride, row, end);
  load(v, qkv + value_column, stride, row, end);
  float2 dk[PAIRS], dv[PAIRS];
  for (u32 c = 0; c < PAIRS; c++) dk[c] = dv[c] = make_float2(0.0f, 0.0f);
  // the last key of the tile is seen by the queries up to window - 1 behind it
  const u32 last = heads.window != 0 && row + TILE - 1 + heads.window < end ? row + TILE - 1 + heads.window : end;
  for (u32 head = shared_head * group; head < (shared_head + 1) * group; head++) {
    for (u32 i0 = row; i0 < last; i0 += TILE) {
      __syncthreads();
      load(q, qkv + head * HEAD, stride, i0, end);
      load(d, dout + head * HEAD, heads.queries * HEAD, i0, end);
      __syncthreads();
      for (u32 n = part; n < TILE; n += PARTS) {
        u32 i = i0 + n;
        float probability = 0.0f, gradient = 0.0f;
        if (i < end && j < end && sees(heads, i, j)) {
          u64 at = (u64)i * heads.queries + head;
          float s = scored(heads, q + n * ROW, k + r * ROW);
          probability = expf(s - lse[at]);
          gradient = slope(heads, s, probability, dot(d + n * ROW, v + r * ROW), delta[at]);
        }
        p[r][n] = probability;
        ds[r][n] = gradient;
      }
      __syncwarp();
      add_rows(dv, p[r], d, part);
      add_rows(dk, ds[r], q, part);
    }
  }
  if (j >= end) return;
  store(dqkv + (u64)j * stride + key_column, dk, part, 1.0f);
  store(dqkv + (u64)j * stride + value_column, dv, part, 1.0f);
}
