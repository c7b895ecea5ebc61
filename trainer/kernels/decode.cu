// Attention of new rows over keys and values that were kept (src/ops/decode.rs): one block for a part of what a row sees, and up to TOGETHER query
// heads that share a key head. What was kept is what it takes its time for, and is read once for all of them.
//
// A key's columns are as many lanes', eight each, as the next power of two above them says: such a reader takes TURN keys at a time, asked for
// together, and has its own maximum and sums (Milakov and Gimelshein, 1805.02867). Readers are merged in their order, and so are the parts.
#include "prelude.cuh"

constexpr u32 THREADS = 128, TOGETHER = 4, TURN = 4;
// Below every score, and a number: who has seen no key yet measures from it.
constexpr float LEAST = -1e30f;

// Several records of one head begin `apart` numbers apart. Each has the maximum m of the scores that somebody saw, as powers of two, then the sum of
// 2^(s - m), then for every column that of v 2^(s - m).
__device__ __forceinline__ float largest(const float* records, u32 apart, u32 count) {
  float most = LEAST;
  for (u32 i = 0; i < count; i++) most = fmaxf(most, records[(u64)i * apart]);
  return most;
}

// The sum at `place` of a record, as if one had seen all of it; `most` is the largest maximum.
__device__ __forceinline__ float merged(const float* records, u32 apart, u32 count, float most, u32 place) {
  float sum = 0.0f;
  for (u32 i = 0; i < count; i++) {
    const float* record = records + (u64)i * apart;
    sum += power_of_two(record[0] - most) * record[place];
  }
  return sum;
}

// Over lanes beside each other, a power of two of them; each gets the sum.
__device__ __forceinline__ float sum_over(u32 lanes, float x) {
  for (u32 apart = lanes / 2; apart > 0; apart /= 2) x += __shfl_xor_sync(0xffffffffu, x, (int)apart);
  return x;
}

// What a row sees of one part, a record for each head: [rows, query heads, parts, width + 2]. Rows of `kept` are all key heads and all value heads of a
// position; those of `qkv` are the last positions.
//
// Grid: rows x groups of TOGETHER heads x parts of `part_keys` keys.
KERNEL(decode_parts, const bf16* qkv, const bf16* kept, float* parts, u32 positions, u32 width, u32 part_keys, Heads heads) {
  // a reader has lanes for all of its columns, and the narrowest heads have the most readers
  __shared__ float seen[THREADS * (8 + 2) * TOGETHER];
  u32 lanes = 1;
  while (8 * lanes < width) lanes *= 2;
  const u32 readers = THREADS / lanes, reader = threadIdx.x / lanes, column = threadIdx.x % lanes * 8, record = width + 2;
  const u32 group = heads.queries / heads.keys, packs = (group + TOGETHER - 1) / TOGETHER, pack = blockIdx.y % packs * TOGETHER;
  const u32 shared_head = blockIdx.y / packs, head = shared_head * group + pack, many = group - pack < TOGETHER ? group - pack : TOGETHER;
  const u32 position = positions - gridDim.x + blockIdx.x;
  const u32 first = heads.window != 0 && position + 1 > heads.window ? position + 1 - heads.window : 0;
  const u32 begin = first + blockIdx.z * part_keys, end = begin + part_keys < position + 1 ? begin + part_keys : position + 1;
  const u32 stride = 2 * heads.keys * width;
  const bool holds = column < width;
  const bf16* own = kept + shared_head * width + column;
  Eight q[TOGETHER] = {}, mean[TOGETHER] = {};
  float most[TOGETHER], sum[TOGETHER] = {};
#pragma unroll
  for (u32 h = 0; h < TOGETHER; h++) {
    most[h] = LEAST;
    if (h < many && holds) q[h] = eight(qkv + (u64)blockIdx.x * (heads.queries * width + stride) + (head + h) * width + column);
  }
  for (u32 turn = begin; turn < end; turn += TURN * readers) {
    Eight k[TURN] = {}, v[TURN] = {};
#pragma unroll
    for (u32 t = 0; t < TURN; t++) {
      u32 key = turn + t * readers + reader;
      if (!holds || key >= end) continue;
      k[t] = eight(own + (u64)key * stride);
      v[t] = eight(own + (u64)key * stride + heads.keys * width);
    }
#pragma unroll
    for (u32 h = 0; h < TOGETHER; h++) {
      if (h >= many) break;
      float score[TURN], now = most[h];
#pragma unroll
      for (u32 t = 0; t < TURN; t++) {
        float product = 0.0f;
#pragma unroll
        for (u32 i = 0; i < 8; i++) product += q[h].x[i] * k[t].x[i];
        product = heads.scale * sum_over(lanes, product);
        if (heads.cap > 0.0f) product = heads.cap * tanhf(product / heads.cap);
        score[t] = turn + t * readers + reader < end ? LOG2E * product : -INFINITY;
        now = fmaxf(now, score[t]);
      }
      float before = power_of_two(most[h] - now);
      most[h] = now;
      sum[h] *= before;
#pragma unroll
      for (u32 i = 0; i < 8; i++) mean[h].x[i] *= before;
#pragma unroll
      for (u32 t = 0; t < TURN; t++) {
        float p = power_of_two(score[t] - now);
        sum[h] += p;
#pragma unroll
        for (u32 i = 0; i < 8; i++) mean[h].x[i] += p * v[t].x[i];
      }
    }
  }
#pragma unroll
  for (u32 h = 0; h < TOGETHER; h++) {
    float* to = seen + (reader * TOGETHER + h) * record;
    if (column == 0) to[0] = most[h], to[1] = sum[h];
#pragma unroll
    for (u32 i = 0; i < 8; i++)
      if (holds) to[2 + column + i] = mean[h].x[i];
  }
  __syncthreads();
  for (u32 i = threadIdx.x; i < many * (width + 1); i += THREADS) {
    u32 h = i / (width + 1), place = 1 + i % (width + 1);
    const float* records = seen + h * record;
    float whole = largest(records, TOGETHER * record, readers);
    float* to = parts + (((u64)blockIdx.x * heads.queries + head + h) * gridDim.z + blockIdx.z) * record;
    if (place == 1) to[0] = whole;
    to[place] = merged(records, TOGETHER * record, readers, whole, place);
  }
}

// out of every row and head, from its parts.
KERNEL(decode_merge, const float* parts, bf16* out, u32 count, u32 width, u32 many) {
  for (u32 i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += gridDim.x * blockDim.x) {
    const u32 record = width + 2;
    const float* records = parts + (u64)(i / width) * many * record;
    float most = largest(records, record, many);
    out[i] = narrow(merged(records, record, many, most, 2 + i % width) / merged(records, record, many, most, 1));
  }
}

// The last `many` numbers of every row of `qkv`, its keys and values, one row below the other; one block per row.
KERNEL(decode_keep, const bf16* qkv, bf16* kept, u32 stride, u32 many) {
  const bf16* from = qkv + (u64)(blockIdx.x + 1) * stride - many;
  bf16* to = kept + (u64)blockIdx.x * many;
  for (u32 c = 8 * threadIdx.x; c < many; c += 8 * blockDim.x) put(to + c, eight(from + c));
}
