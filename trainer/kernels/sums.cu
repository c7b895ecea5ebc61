// Gradients of a model's own weights that are sums over rows: gains and biases. src/ops/norm.rs and linear.rs have the equations. A sum
// is made in parts of so many rows, by shape alone, which are added in order.
#include "prelude.cuh"

// parts[p] = sum of rho dy x over the rows of part p, one blockIdx.y for each; of dy alone where there is no x. A thread has eight columns
// of `columns`; rows of x and dy begin `stride` apart.
KERNEL(row_parts, const bf16* dy, const bf16* x, const float* rho, float* parts, u32 rows, u32 columns, u32 stride, u32 of_part) {
  u32 c = 8 * (blockIdx.x * blockDim.x + threadIdx.x);
  if (c >= columns) return;
  u32 first = blockIdx.y * of_part, last = first + of_part < rows ? first + of_part : rows;
  Eight sum = {};
#pragma unroll 4
  for (u32 row = first; row < last; row++) {
    Eight d = eight(dy + (u64)row * stride + c);
    if (x) {
      Eight own = eight(x + (u64)row * stride + c);
      float by = rho[row];
#pragma unroll
      for (u32 i = 0; i < 8; i++) d.x[i] *= by * own.x[i];
    }
#pragma unroll
    for (u32 i = 0; i < 8; i++) sum.x[i] += d.x[i];
  }
  put(parts + (u64)blockIdx.y * columns + c, sum);
}

// sums += all parts, a lane for each column: every eighth of them by one of eight warps, and what these have in their order.
KERNEL(add_row_parts, const float* parts, float* sums, u32 many, u32 columns) {
  __shared__ float of_warp[8][32];
  u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, c = 32 * blockIdx.x + lane;
  float sum = 0.0f;
  if (c < columns) {
#pragma unroll 4
    for (u32 part = warp; part < many; part += 8) sum += parts[(u64)part * columns + c];
  }
  of_warp[warp][lane] = sum;
  __syncthreads();
  if (warp > 0 || c >= columns) return;
  for (u32 other = 1; other < 8; other++) sum += of_warp[other][lane];
  sums[c] += sum;
}
