// RMSNorm, one block per row: y = x g / sqrt(mean(x^2) + eps). src/ops/norm.rs has the equations. A row is read eight numbers at a time.
#include "prelude.cuh"

// Hands each eight of a row to `f`, by the number at which it begins.
template <class F>
__device__ __forceinline__ void each_eight(u32 width, const F& f) {
  for (u32 c = 8 * threadIdx.x; c < width; c += 8 * blockDim.x) f(c);
}

__device__ __forceinline__ float rho_of(const bf16* x, u32 width, float eps) {
  float square = 0.0f;
  each_eight(width, [&](u32 c) {
    Eight own = eight(x + c);
#pragma unroll
    for (u32 i = 0; i < 8; i++) square += own.x[i] * own.x[i];
  });
  return rsqrtf(block_sum(square) / (float)width + eps);
}

// y = norm(x), or y += norm(x) where `add` is not 0: a residual branch may end in a norm.
KERNEL(norm_forward, const bf16* x, const float* gain, bf16* y, u32 width, float eps, u32 add) {
  x += (u64)blockIdx.x * width;
  y += (u64)blockIdx.x * width;
  float rho = rho_of(x, width, eps);
  each_eight(width, [&](u32 c) {
    Eight normed = eight(x + c), by = eight(gain + c), sum = {};
    if (add) sum = eight(y + c);
#pragma unroll
    for (u32 i = 0; i < 8; i++) sum.x[i] += normed.x[i] * rho * by.x[i];
    put(y + c, sum);
  });
}

// dx += rho g dy - rho^3 x mean(x g dy)
KERNEL(norm_backward, const bf16* x, const float* gain, const bf16* dy, bf16* dx, u32 width, float eps) {
  u64 row = (u64)blockIdx.x * width;
  x += row, dy += row, dx += row;
  float rho = rho_of(x, width, eps), along = 0.0f;
  each_eight(width, [&](u32 c) {
    Eight own = eight(x + c), by = eight(gain + c), d = eight(dy + c);
#pragma unroll
    for (u32 i = 0; i < 8; i++) along += own.x[i] * d.x[i] * by.x[i];
  });
  float back = rho * rho * rho * block_sum(along) / (float)width;
  each_eight(width, [&](u32 c) {
    Eight own = eight(x + c), by = eight(gain + c), d = eight(dy + c), sum = eight(dx + c);
#pragma unroll
    for (u32 i = 0; i < 8; i++) sum.x[i] += rho * by.x[i] * d.x[i] - back * own.x[i];
    put(dx + c, sum);
  });
}

// rho of every row, for the gradient of the gain (sums.cu).
KERNEL(norm_rho, const bf16* x, float* rho, u32 width, float eps) {
  float own = rho_of(x + (u64)blockIdx.x * width, width, eps);
  if (threadIdx.x == 0) rho[blockIdx.x] = own;
}
