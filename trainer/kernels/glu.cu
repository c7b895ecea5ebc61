// Gated linear units: y = f(gate) up. A row of the input is gate and up side by side. src/ops/glu.rs has the equations.
#include "prelude.cuh"

struct Point {
  float value, slope;
};

// kind 0: SiLU, 1: the tanh form of GELU
__device__ __forceinline__ Point activation(u32 kind, float x) {
  Point at;
  if (kind == 0) {
    float s = 1.0f / (1.0f + power_of_two(-LOG2E * x));
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

// Hands each eight of y to `f`, with the place of its gate; `eights` are those of a row.
template <class F>
__device__ __forceinline__ void each_eight(u32 eights, u32 count, const F& f) {
  for (u32 i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += gridDim.x * blockDim.x)
    f(8 * (u64)i, 8 * (u64)(i / eights * 2 * eights + i % eights));
}

// `count` eights of y, `eights` of them a row.
KERNEL(glu_forward, const bf16* gate_up, bf16* y, u32 eights, u32 count, u32 kind) {
  each_eight(eights, count, [&](u64 at, u64 place) {
    Eight gate = eight(gate_up + place), up = eight(gate_up + place + 8 * eights);
#pragma unroll
    for (u32 i = 0; i < 8; i++) up.x[i] *= activation(kind, gate.x[i]).value;
    put(y + at, up);
  });
}

// Overwrites gate and up with their gradients.
KERNEL(glu_backward, bf16* gate_up, const bf16* dy, u32 eights, u32 count, u32 kind) {
  each_eight(eights, count, [&](u64 at, u64 place) {
    Eight gate = eight(gate_up + place), up = eight(gate_up + place + 8 * eights), d = eight(dy + at);
#pragma unroll
    for (u32 i = 0; i < 8; i++) {
      Point point = activation(kind, gate.x[i]);
      gate.x[i] = d.x[i] * up.x[i] * point.slope;
      up.x[i] = d.x[i] * point.value;
    }
    put(gate_up + place, gate);
    put(gate_up + place + 8 * eights, up);
  });
}
