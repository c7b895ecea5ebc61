// The loss of rows of logits, one block per row; the logits become their own gradient. src/ops/head.rs has the equations.
#include "prelude.cuh"

// The running maximum m and the sum of exp(x - m) of the part that a thread has seen.
struct Sum {
  float most, sum;
};

__device__ __forceinline__ float capped(float x, float cap) { return cap > 0.0f ? cap * tanhf(x / cap) : x; }

__device__ __forceinline__ float exponential(float x) { return power_of_two(LOG2E * x); }

// Hands a thread's logits to `f`, with the place of the first and how many they are, and puts back what it makes of them where `changes`: eight at a time, unless rows
// of that length begin anywhere.
template <class F>
__device__ __forceinline__ void each(bf16* row, u32 vocabulary, bool changes, const F& f) {
  if (vocabulary % 8 == 0) {
    for (u32 c = 8 * threadIdx.x; c < vocabulary; c += 8 * blockDim.x) {
      Eight logits = eight(row + c);
      f(c, logits.x, 8);
      if (changes) put(row + c, logits);
    }
    return;
  }
  for (u32 c = threadIdx.x; c < vocabulary; c += blockDim.x) {
    float logit[1] = {wide(row[c])};
    f(c, logit, 1);
    if (changes) row[c] = narrow(logit[0]);
  }
}

// losses[row] = ln sum exp(logits) - logits[target]. logits become weight (softmax - onehot), carried back through the cap.
// cap 0: none. Where no gradient is wanted the logits stay.
KERNEL(head_loss, bf16* logits, const u32* targets, const float* weights, float* losses, u32 vocabulary, float cap,
       u32 gradient) {
  bf16* row = logits + (u64)blockIdx.x * vocabulary;
  Sum own = {-INFINITY, 0.0f};
  each(row, vocabulary, false, [&](u32, float* x, u32 many) {
    float most = own.most;
#pragma unroll
    for (u32 i = 0; i < many; i++) most = fmaxf(most, x[i] = capped(x[i], cap));
    own.sum *= most > own.most ? exponential(own.most - most) : 1.0f;
    own.most = most;
#pragma unroll
    for (u32 i = 0; i < many; i++) own.sum += exponential(x[i] - most);
  });
  float most = block_max(own.most);
  float sum = block_sum(own.most == -INFINITY ? 0.0f : own.sum * exponential(own.most - most));
  u32 target = targets[blockIdx.x];
  float weight = weights[blockIdx.x];
  if (threadIdx.x == 0) losses[blockIdx.x] = logf(sum) + most - capped(wide(row[target]), cap);
  __syncthreads(); // the target's logit is read before it is overwritten
  if (!gradient) return;
  each(row, vocabulary, true, [&](u32 first, float* x, u32 many) {
#pragma unroll
    for (u32 i = 0; i < many; i++) {
      float y = capped(x[i], cap);
      x[i] = weight * (exponential(y - most) / sum - (first + i == target ? 1.0f : 0.0f));
      if (cap > 0.0f) x[i] *= 1.0f - y / cap * (y / cap);
    }
  });
}

// sums[a] += the losses of adapter a's rows, one block per adapter. No list of adapters: every row is the first one's.
KERNEL(add_losses, const float* losses, const u32* adapters, u32 rows, double* sums) {
  double sum = 0.0;
  for (u32 row = threadIdx.x; row < rows; row += blockDim.x) {
    if (!adapters || adapters[row] == blockIdx.x) sum += (double)losses[row];
  }
  sum = block_sum(sum);
  if (threadIdx.x == 0) sums[blockIdx.x] += sum;
}
