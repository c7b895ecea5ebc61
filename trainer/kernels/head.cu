// The loss of rows of logits, one block per row; the logits become their own gradient. src/ops/head.rs has the equations.
#include "prelude.cuh"

// The running maximum m and the sum of exp(x - m) of the part that a thread has seen.
struct Sum {
  float most, sum;
};

__device__ __forceinline__ float capped(float x, float cap) { return cap > 0.0f ? cap * tanhf(x / cap) : x; }

__device__ __forceinline__ float exponential(float x) { return power_of_two(LOG2E * x); }

// Hands a thread's logits to `f` with the place of the first, and puts back what it makes of them where `changes`: eight at a time, unless rows
// of that length begin anywhere.
template <class F>
__device__ __forceinline__ void each(bf16* row, u32 vocabulary, bool changes, const F& f) {
  if (vocabulary % 8 == 0) {
    for (u32 c = 8 * threadIdx.x; c < vocabulary; c += 8 * blockDim.x) {
      Eight logits = eight(row + c);
      f(c, logits.x);
      if (changes) put(row + c, logits);
    }
    return;
  }
  for (u32 c = threadIdx.x; c < vocabulary; c += blockDim.x) {
    float logit[1] = {wide(row[c])};
    f(c, logit);
    if (changes) row[c] = narrow(logit[0]);
  }
}

// losses[row] = ln sum exp(logits) - logits[target]. logits become weight (softmax - onehot), carried back through the cap.
// cap 0: none. Where no gradient is wanted the logits stay.
KERNEL(head_loss, bf16* logits, const u32* targets, const float* weights, float* losses, u32 vocabulary, float cap,
       u32 gradient) {
  bf16* row = logits + (u64)blockIdx.x * vocabulary;
  Sum own = {-INFINITY, 0.0f};
  each(row, vocabulary, false, [&](u32, auto& x) {
    float most = own.most;
    for (float& logit : x) most = fmaxf(most, logit = capped(logit, cap));
    own.sum *= most > own.most ? exponential(own.most - most) : 1.0f;
    own.most = most;
    for (float logit : x) own.sum += exponential(logit - most);
  });
  float most = block_max(own.most);
  float sum = block_sum(own.most == -INFINITY ? 0.0f : own.sum * exponential(own.most - most));
  u32 target = targets[blockIdx.x];
  float weight = weights[blockIdx.x];
  if (threadIdx.x == 0) losses[blockIdx.x] = logf(sum) + most - capped(wide(row[target]), cap);
  __syncthreads(); // the target's logit is read before it is overwritten
  if (!gradient) return;
  each(row, vocabulary, true, [&](u32 first, auto& x) {
    u32 c = first;
    for (float& logit : x) {
      float y = capped(logit, cap);
      logit = weight * (exponential(y - most) / sum - (c++ == target ? 1.0f : 0.0f));
      if (cap > 0.0f) logit *= 1.0f - y / cap * (y / cap);
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
