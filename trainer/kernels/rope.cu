// Query and key heads of every row: normed head by head where the model does so, then turned. One warp per head.
//
// A lane owns the pairs (i, i + half) of its columns, so everything happens in place. src/ops/rope.rs and qk_norm.rs have the
// equations; both steps are one here, and between them nothing is rounded.
#include "prelude.cuh"

struct Head {
  bf16* x;          // its columns in the row
  bf16* raw;        // its columns before the norm, or null
  const float* gain; // of its kind, or null
  const float* cos;
  const float* sin;
};

__device__ __forceinline__ bool find(Head& head, bf16* qkv, bf16* raw, const float* gain_q, const float* gain_k,
                                     const float* cos, const float* sin, const u32* places, u32 rows, u32 queries,
                                     u32 keys, u32 width, u32 half, u32 stride) {
  u64 warp = ((u64)blockIdx.x * blockDim.x + threadIdx.x) / 32;
  u32 turned = queries + keys;
  u64 row = warp / turned;
  u32 place = (u32)(warp % turned);
  if (row >= rows) return false;
  head.x = qkv + row * stride + (u64)place * width;
  head.raw = raw ? raw + (row * turned + place) * width : raw;
  head.gain = place < queries ? gain_q : gain_k;
  head.cos = cos + (u64)places[row] * half;
  head.sin = sin + (u64)places[row] * half;
  return true;
}

// Columns behind the turned ones take part in the norm alone.
KERNEL(rope_forward, bf16* qkv, bf16* raw, const float* gain_q, const float* gain_k, const float* cos, const float* sin,
       const u32* places, u32 rows, u32 queries, u32 keys, u32 width, u32 half, u32 stride, float eps) {
  Head head;
  if (!find(head, qkv, raw, gain_q, gain_k, cos, sin, places, rows, queries, keys, width, half, stride)) return;
  u32 lane = threadIdx.x % 32;
  float rho = 1.0f;
  if (head.gain) {
    float square = 0.0f;
    for (u32 c = lane; c < width; c += 32) {
      head.raw[c] = head.x[c];
      square += wide(head.x[c]) * wide(head.x[c]);
    }
    rho = rsqrtf(warp_sum(square) / (float)width + eps);
  }
  for (u32 i = lane; i < half; i += 32) {
    float a = wide(head.x[i]), b = wide(head.x[i + half]);
    if (head.gain) a *= rho * head.gain[i], b *= rho * head.gain[i + half];
    head.x[i] = narrow(a * head.cos[i] - b * head.sin[i]);
    head.x[i + half] = narrow(b * head.cos[i] + a * head.sin[i]);
  }
  if (!head.gain) return;
  for (u32 c = 2 * half + lane; c < width; c += 32) head.x[c] = narrow(wide(head.x[c]) * rho * head.gain[c]);
}

// Turns the gradient back, then through the norm. `qkv` is the gradient here, in place.
KERNEL(rope_backward, bf16* qkv, bf16* raw, const float* gain_q, const float* gain_k, const float* cos,
       const float* sin, const u32* places, u32 rows, u32 queries, u32 keys, u32 width, u32 half, u32 stride,
       float eps) {
  Head head;
  if (!find(head, qkv, raw, gain_q, gain_k, cos, sin, places, rows, queries, keys, width, half, stride)) return;
  u32 lane = threadIdx.x % 32;
  float rho = 1.0f, back = 0.0f;
  if (head.gain) {
    float square = 0.0f, along = 0.0f;
    for (u32 i = lane; i < half; i += 32) {
      float c = head.cos[i], s = head.sin[i], a = wide(head.x[i]), b = wide(head.x[i + half]);
      float x = wide(head.raw[i]), y = wide(head.raw[i + half]);
      square += x * x + y * y;
      along += x * (a * c + b * s) * head.gain[i] + y * (b * c - a * s) * head.gain[i + half];
    }
    for (u32 c = 2 * half + lane; c < width; c += 32) {
      float x = wide(head.raw[c]);
      square += x * x;
      along += x * wide(head.x[c]) * head.gain[c];
    }
    rho = rsqrtf(warp_sum(square) / (float)width + eps);
    back = rho * rho * rho * warp_sum(along) / (float)width;
  }
  for (u32 i = lane; i < half; i += 32) {
    float c = head.cos[i], s = head.sin[i], a = wide(head.x[i]), b = wide(head.x[i + half]);
    float da = a * c + b * s, db = b * c - a * s;
    if (head.gain) {
      da = rho * head.gain[i] * da - back * wide(head.raw[i]);
      db = rho * head.gain[i + half] * db - back * wide(head.raw[i + half]);
    }
    head.x[i] = narrow(da);
    head.x[i + half] = narrow(db);
  }
  if (!head.gain) return;
  for (u32 c = 2 * half + lane; c < width; c += 32) {
    head.x[c] = narrow(rho * head.gain[c] * wide(head.x[c]) - back * wide(head.raw[c]));
  }
}

// Hands a lane's columns of a head to `f`, those that turn in pairs.
template <class F>
__device__ __forceinline__ void each_column(u32 width, u32 half, const F& f) {
  for (u32 i = threadIdx.x % 32; i < half; i += 32) f(i), f(i + half);
  for (u32 c = 2 * half + threadIdx.x % 32; c < width; c += 32) f(c);
}

// What the gains of both kinds of heads get, in parts: parts[p] = sum of rho raw d over query heads of the rows of part p, behind `many` of
// those the same of key heads. d is the gradient turned back, of `dqkv` as it comes from attention. One warp per part, whose lanes add their own columns.
KERNEL(rope_gains, bf16* dqkv, bf16* raw, const float* cos, const float* sin, const u32* places, float* parts, u32 rows, u32 queries,
       u32 keys, u32 width, u32 half, u32 stride, float eps, u32 of_part, u32 many) {
  __shared__ float sums[8][256]; // of each warp, and as wide as heads are
  u32 part = (blockIdx.x * blockDim.x + threadIdx.x) / 32, kind = part / many;
  if (kind > 1) return;
  float* sum = sums[threadIdx.x / 32];
  each_column(width, half, [&](u32 c) { sum[c] = 0.0f; });
  u32 first = part % many * of_part, last = first + of_part < rows ? first + of_part : rows;
  for (u32 row = first; row < last; row++) {
    const float *c = cos + (u64)places[row] * half, *s = sin + (u64)places[row] * half;
    for (u32 head = kind ? queries : 0; head < (kind ? queries + keys : queries); head++) {
      const bf16* x = raw + ((u64)row * (queries + keys) + head) * width;
      const bf16* d = dqkv + (u64)row * stride + (u64)head * width;
      float square = 0.0f;
      each_column(width, half, [&](u32 i) { square += wide(x[i]) * wide(x[i]); });
      float rho = rsqrtf(warp_sum(square) / (float)width + eps);
      for (u32 i = threadIdx.x % 32; i < half; i += 32) {
        float a = wide(d[i]), b = wide(d[i + half]);
        sum[i] += rho * wide(x[i]) * (a * c[i] + b * s[i]);
        sum[i + half] += rho * wide(x[i + half]) * (b * c[i] - a * s[i]);
      }
      for (u32 i = 2 * half + threadIdx.x % 32; i < width; i += 32) sum[i] += rho * wide(x[i]) * wide(d[i]);
    }
  }
  each_column(width, half, [&](u32 c) { parts[(u64)part * width + c] = sum[c]; });
}
