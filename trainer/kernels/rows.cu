// Rows looked up, gathered and put back; and numbers from one format to the other.
#include "prelude.cuh"

// y[i] = table[rows[i]] * scale, one block per row: the embedding, and the gathering of supervised rows.
KERNEL(rows_gather, const bf16* table, const u32* rows, bf16* y, u32 width, float scale) {
  u64 from = (u64)rows[blockIdx.x] * width, to = (u64)blockIdx.x * width;
  for (u32 c = threadIdx.x; c < width; c += blockDim.x) {
    bf16 x = table[from + c];
    y[to + c] = scale == 1.0f ? x : narrow(wide(x) * scale);
  }
}

// y[rows[i]] = x[i]; no row comes twice.
KERNEL(rows_scatter, const bf16* x, const u32* rows, bf16* y, u32 width) {
  u64 from = (u64)blockIdx.x * width, to = (u64)rows[blockIdx.x] * width;
  for (u32 c = threadIdx.x; c < width; c += blockDim.x) y[to + c] = x[from + c];
}

// y += bias, row by row
KERNEL(rows_add_bias, bf16* y, const float* bias, u32 width, u64 count) {
  for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += (u64)gridDim.x * blockDim.x) {
    y[i] = narrow(wide(y[i]) + bias[i % width]);
  }
}

// y += x
KERNEL(rows_add, bf16* y, const bf16* x, u64 count) {
  for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += (u64)gridDim.x * blockDim.x) {
    y[i] = narrow(wide(y[i]) + wide(x[i]));
  }
}

KERNEL(cast_narrow, const float* x, bf16* y, u64 count) {
  for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += (u64)gridDim.x * blockDim.x) {
    y[i] = narrow(x[i]);
  }
}

KERNEL(cast_widen, const bf16* x, float* y, u64 count) {
  for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += (u64)gridDim.x * blockDim.x) {
    y[i] = wide(x[i]);
  }
}
