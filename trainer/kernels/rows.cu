// Rows looked up, gathered and put back, eight numbers at a time; and numbers from one format to the other.
#include "prelude.cuh"

// y[i] = table[rows[i]] * scale, one block per row: the embedding, and the gathering of supervised rows.
KERNEL(rows_gather, const bf16* table, const u32* rows, bf16* y, u32 width, float scale) {
  u64 from = (u64)rows[blockIdx.x] * width, to = (u64)blockIdx.x * width;
  for (u32 c = 8 * threadIdx.x; c < width; c += 8 * blockDim.x) {
    Eight own = eight(table + from + c);
#pragma unroll
    for (u32 i = 0; i < 8; i++) own.x[i] *= scale;
    put(y + to + c, own);
  }
}

// y[rows[i]] = x[i]; no row comes twice.
KERNEL(rows_scatter, const bf16* x, const u32* rows, bf16* y, u32 width) {
  u64 from = (u64)blockIdx.x * width, to = (u64)rows[blockIdx.x] * width;
  for (u32 c = 8 * threadIdx.x; c < width; c += 8 * blockDim.x) put(y + to + c, eight(x + from + c));
}

// y += bias, row by row; a row has so many eights.
KERNEL(rows_add_bias, bf16* y, const float* bias, u32 of_row, u32 eights) {
  for (u32 i = blockIdx.x * blockDim.x + threadIdx.x; i < eights; i += gridDim.x * blockDim.x) {
    Eight sum = eight(y + 8 * (u64)i), by = eight(bias + 8 * (i % of_row));
#pragma unroll
    for (u32 n = 0; n < 8; n++) sum.x[n] += by.x[n];
    put(y + 8 * (u64)i, sum);
  }
}

KERNEL(cast_narrow, const float* x, bf16* y, u64 count) {
  u64 first = (u64)blockIdx.x * blockDim.x + threadIdx.x, eights = count / 8;
  for (u64 i = first; i < eights; i += (u64)gridDim.x * blockDim.x) put(y + 8 * i, eight(x + 8 * i));
  if (8 * eights + first < count) y[8 * eights + first] = narrow(x[8 * eights + first]);
}

// y = x + by: gains as they multiply, of those that files store less one.
KERNEL(shift, const float* x, float* y, float by, u64 count) {
  for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += (u64)gridDim.x * blockDim.x) y[i] = x[i] + by;
}
