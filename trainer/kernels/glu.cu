// Gated linear units: y = f(gate) up. A row of the input is gate and up side by side. src/ops/glu.rs has the equations.
#include "prelude.cuh"

struct Point {
  float value, slope;
};

// kind 0: SiLU, 1: the tanh form of GELU
__device__ __forceinline__ Point activation(u32 kind, float x) {
  Point at;
  if (kind == 0) {
    float s = 1.0f / (1.0f + expf(-x));
    at.value = x * s;
    at.slope = s + x * s * (1.0f - s);
  } else {
    const float root = 0.7978845608028654f, cubic = 0.044715f;
    float t = tanhf(root * (x + cubic * x * x * x));
    at.value = 0.5f * x * (1.0f + t);
    at.slope = 0.5f * (1.0f + t) + 0.5f * x * (1.0f - t * t) * root * (1.0f + 3.0f * cubic * x * x);
  }
  return at;
}

KERNEL(glu_forward, const bf16* gate_up, bf16* y, u32 width, u64 count, u32 kind) {
  for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += (u64)gridDim.x * blockDim.x) {
    u64 gate = i / width * 2 * width + i % width;
    y[i] = narrow(activation(kind, wide(gate_up[gate])).value * wide(gate_up[gate + width]));
  }
}

// Overwrites gate and up with their gradients.
KERNEL(glu_backward, bf16* gate_up, const bf16* dy, u32 width, u64 count, u32 kind) {
  for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += (u64)gridDim.x * blockDim.x) {
    u64 gate = i / width * 2 * width + i % width;
    Point at = activation(kind, wide(gate_up[gate]));
    float up = wide(gate_up[gate + width]), d = wide(dy[i]);
    gate_up[gate] = narrow(d * up * at.slope);
    gate_up[gate + width] = narrow(d * at.value);
  }
}
