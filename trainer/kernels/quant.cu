// Frozen weights that lie in memory with fewer bits, made bf16 for one product. src/quant has the formats; factors of blocks that are
// quantised themselves are made `f32` by the host once.
#include "prelude.cuh"

// The sixteen numbers of NF4 (Dettmers et al., "QLoRA", 2023, appendix E): quantiles of the normal distribution in +-1.
__device__ __constant__ const float NF4[16] = {
    -1.0f, -0.6961928009986877f, -0.5250730514526367f, -0.39491748809814453f, -0.28444138169288635f,
    -0.18477343022823334f, -0.09105003625154495f, 0.0f, 0.07958029955625534f, 0.16093020141124725f,
    0.24611230194568634f, 0.33791524171829224f, 0.44070982933044434f, 0.5626170039176941f, 0.7229568362236023f, 1.0f};

// Two numbers a byte, the upper half first; one factor per `block` numbers, which is a multiple of eight. A thread makes eight, of four bytes.
KERNEL(nf4_widen, const u32* codes, const float* factors, bf16* y, u32 eights, u32 block) {
  // lanes want different ones, which a constant's cache gives one after the other, and shared memory at once
  __shared__ float levels[16];
  if (threadIdx.x < 16) levels[threadIdx.x] = NF4[threadIdx.x];
  __syncthreads();
  for (u32 i = blockIdx.x * blockDim.x + threadIdx.x; i < eights; i += gridDim.x * blockDim.x) {
    u32 four = codes[i];
    float factor = factors[i / (block / 8)];
    Eight numbers;
#pragma unroll
    for (u32 b = 0; b < 4; b++) {
      numbers.x[2 * b] = levels[four >> (8 * b + 4) & 15] * factor;
      numbers.x[2 * b + 1] = levels[four >> 8 * b & 15] * factor;
    }
    put(y + 8 * (u64)i, numbers);
  }
}

// One factor per row of so many eights.
KERNEL(int8_widen, const uint2* codes, const float* factors, bf16* y, u32 eights, u32 of_row) {
  for (u32 i = blockIdx.x * blockDim.x + threadIdx.x; i < eights; i += gridDim.x * blockDim.x) {
    uint2 both_halves = codes[i];
    float factor = factors[i / of_row];
    Eight numbers;
#pragma unroll
    for (u32 b = 0; b < 4; b++) {
      numbers.x[b] = (float)(signed char)(both_halves.x >> 8 * b) * factor;
      numbers.x[b + 4] = (float)(signed char)(both_halves.y >> 8 * b) * factor;
    }
    put(y + 8 * (u64)i, numbers);
  }
}
