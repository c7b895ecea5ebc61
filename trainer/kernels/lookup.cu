// The embedding: of an adapter on it columns of A, [rank, vocabulary], as tokens name them, and their gradients; and those of its own rows.
// src/ops/lookup.rs has the equations; the products with B are cuBLASLt's.
#include "prelude.cuh"

// u[i] = the column of A that is tokens[i]'s, as a row.
KERNEL(lookup_columns, const bf16* a, const u32* tokens, bf16* u, u32 count, u32 rank, u32 vocabulary) {
  for (u32 i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += gridDim.x * blockDim.x)
    u[i] = a[(u64)(i % rank) * vocabulary + tokens[i / rank]];
}

// The column of every distinct token += the rows of t where it stands, the first one first; one warp per token, whose rows are places[starts[i]] to before
// places[starts[i + 1]].
KERNEL(lookup_add, const float* t, const u32* tokens, const u32* starts, const u32* places, float* da, u32 distinct, u32 rank,
       u32 vocabulary) {
  u32 warp = (blockIdx.x * blockDim.x + threadIdx.x) / 32;
  if (warp >= distinct) return;
  u32 begin = starts[warp], end = starts[warp + 1];
  for (u32 r = threadIdx.x % 32; r < rank; r += 32) {
    float sum = 0.0f;
    for (u32 i = begin; i < end; i++) sum += t[(u64)places[i] * rank + r];
    da[(u64)r * vocabulary + tokens[warp]] += sum;
  }
}

// table[tokens[t]] += scale times the sum of dy's rows `places[starts[t] .. starts[t + 1]]`, in that order. One block per token, none of which
// comes twice.
KERNEL(table_add, const bf16* dy, const u32* tokens, const u32* starts, const u32* places, float* table, u32 width, float scale) {
  float* row = table + (u64)tokens[blockIdx.x] * width;
  u32 first = starts[blockIdx.x], last = starts[blockIdx.x + 1];
  for (u32 c = 8 * threadIdx.x; c < width; c += 8 * blockDim.x) {
    Eight sum = {}, all = eight(row + c);
#pragma unroll 4
    for (u32 i = first; i < last; i++) {
      Eight d = eight(dy + (u64)places[i] * width + c);
#pragma unroll
      for (u32 n = 0; n < 8; n++) sum.x[n] += d.x[n];
    }
#pragma unroll
    for (u32 n = 0; n < 8; n++) all.x[n] += scale * sum.x[n];
    put(row + c, all);
  }
}
