// The loss of rows of logits, one block per row; the logits become their own gradient. src/ops/head.rs has the equations.
#include "prelude.cuh"

// The running maximum m and the sum of exp(x - m) of the part that a thread has seen.
struct Sum {
  float most, sum;
};

__device__ __forceinline__ float capped(float x, float cap) { return cap > 0.0f ? cap * tanhf(x / cap) : x; }

// losses[row] = ln sum exp(logits) - logits[target]. logits become weight (softmax - onehot), carried back through the cap.
// cap 0: none. Where no gradient is wanted the logits stay.
KERNEL(head_loss, bf16* logits, const u32* targets, const float* weights, float* losses, u32 vocabulary, float cap,
       u32 gradient) {
  bf16* row = logits + (u64)blockIdx.x * vocabulary;
  Sum own = {-INFINITY, 0.0f};
  for (u32 c = threadIdx.x; c < vocabulary; c += blockDim.x) {
    float x = capped(wide(row[c]), cap);
    if (x > own.most) {
      own.sum *= expf(own.most - x);
      own.most = x;
    }
    own.sum += expf(x - own.most);
  }
  float most = block_max(own.most);
  float sum = block_sum(own.most == -INFINITY ? 0.0f : own.sum * expf(own.most - most));
  u32 target = targets[blockIdx.x];
  float weight = weights[blockIdx.x];
  if (threadIdx.x == 0) losses[blockIdx.x] = logf(sum) + most - capped(wide(row[target]), cap);
  __syncthreads(); // the target's logit is read before it is overwritten
  if (!gradient) return;
  for (u32 c = threadIdx.x; c < vocabulary; c += blockDim.x) {
    float x = capped(wide(row[c]), cap);
    float d = weight * (expf(x - most) / sum - (c == target ? 1.0f : 0.0f));
    if (cap > 0.0f) d *= 1.0f - x / cap * (x / cap);
    row[c] = narrow(d);
  }
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
