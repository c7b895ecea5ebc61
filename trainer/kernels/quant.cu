// Frozen weights that lie in memory with fewer bits, made bf16 for one product. src/quant has the formats; factors of blocks that are
// quantised themselves are made `f32` by the host once.
#include "prelude.cuh"

// The sixteen numbers of NF4 (Dettmers et al., "QLoRA", 2023, appendix E): quantiles of the normal distribution in +-1.
__device__ __constant__ const float NF4[16] = {
    -1.0f, -0.6961928009986877f, -0.5250730514526367f, -0.39491748809814453f, -0.28444138169288635f,
    -0.18477343022823334f, -0.09105003625154495f, 0.0f, 0.07958029955625534f, 0.16093020141124725f,
    0.24611230194568634f, 0.33791524171829224f, 0.44070982933044434f, 0.5626170039176941f, 0.7229568362236023f, 1.0f};

// Two numbers a byte, the upper half first; one factor per `block` numbers. `count` is even.
KERNEL(nf4_widen, const unsigned char* codes, const float* factors, bf16* y, u64 count, u32 block) {
  for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < count / 2; i += (u64)gridDim.x * blockDim.x) {
    unsigned char both = codes[i];
    y[2 * i] = narrow(NF4[both >> 4] * factors[2 * i / block]);
    y[2 * i + 1] = narrow(NF4[both & 15] * factors[(2 * i + 1) / block]);
  }
}

// One factor per row of `width` numbers.
KERNEL(int8_widen, const signed char* codes, const float* factors, bf16* y, u64 count, u32 width) {
  for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += (u64)gridDim.x * blockDim.x) {
    y[i] = narrow((float)codes[i] * factors[i / width]);
  }
}
