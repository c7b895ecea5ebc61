// RMSNorm, one block per row: y = x g / sqrt(mean(x^2) + eps). src/ops/norm.rs has the equations.
#include "prelude.cuh"

__device__ __forceinline__ float rho_of(const bf16* x, u32 width, float eps) {
  float square = 0.0f;
  for (u32 c = threadIdx.x; c < width; c += blockDim.x) square += wide(x[c]) * wide(x[c]);
  return rsqrtf(block_sum(square) / (float)width + eps);
}

// y = norm(x), or y += norm(x) where `add` is not 0: a residual branch may end in a norm.
KERNEL(norm_forward, const bf16* x, const float* gain, bf16* y, u32 width, float eps, u32 add) {
  x += (u64)blockIdx.x * width;
  y += (u64)blockIdx.x * width;
  float rho = rho_of(x, width, eps);
  for (u32 c = threadIdx.x; c < width; c += blockDim.x) {
    float normed = wide(x[c]) * rho * gain[c];
    y[c] = narrow(add ? wide(y[c]) + normed : normed);
  }
}

// sum = x + branch, y = norm(sum): the residual stream is read and written once.
KERNEL(norm_residual_forward, const bf16* x, const bf16* branch, const float* gain, bf16* sum, bf16* y, u32 width,
       float eps) {
  u64 row = (u64)blockIdx.x * width;
  for (u32 c = threadIdx.x; c < width; c += blockDim.x) sum[row + c] = narrow(wide(x[row + c]) + wide(branch[row + c]));
  __syncthreads(); // each thread reads back only what it wrote; the sum over the block follows in any case
  float rho = rho_of(sum + row, width, eps);
  for (u32 c = threadIdx.x; c < width; c += blockDim.x) y[row + c] = narrow(wide(sum[row + c]) * rho * gain[c]);
}

// dx += rho g dy - rho^3 x mean(x g dy)
KERNEL(norm_backward, const bf16* x, const float* gain, const bf16* dy, bf16* dx, u32 width, float eps) {
  u64 row = (u64)blockIdx.x * width;
  float rho = rho_of(x + row, width, eps);
  float along = 0.0f;
  for (u32 c = threadIdx.x; c < width; c += blockDim.x) along += wide(x[row + c]) * wide(dy[row + c]) * gain[c];
  float back = rho * rho * rho * block_sum(along) / (float)width;
  for (u32 c = threadIdx.x; c < width; c += blockDim.x) {
    float step = rho * gain[c] * wide(dy[row + c]) - back * wide(x[row + c]);
    dx[row + c] = narrow(wide(dx[row + c]) + step);
  }
}
