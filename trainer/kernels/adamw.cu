// One AdamW step over the flat buffer, the gradient's norm and what follows from it, without a word to the host.
//
// square_sums -> clip_from_squares -> adamw. Where the norm or the loss is not finite the last of them changes nothing. Sums are made
// in double over fixed pieces in index order, as in src/ops/adamw.rs.
#include "prelude.cuh"

// What one step needs to know about its loss and its gradient; the host reads it a step later.
struct Clip {
  double norm;
  double loss;  // mean over the targets
  float factor; // min(1, max_norm / (norm + 1e-6))
  u32 finite;
};

// Settings of one update, all derived on the host in double.
struct Factors {
  float keep, beta1, rest1, beta2, rest2, root, eps, rate;
};

// parts[b] = sum of squares of block b's piece
KERNEL(square_sums, const float* g, double* parts, u64 count, u64 piece) {
  u64 begin = blockIdx.x * piece, end = begin + piece < count ? begin + piece : count;
  double sum = 0.0;
  for (u64 i = begin + threadIdx.x; i < end; i += blockDim.x) sum += (double)g[i] * (double)g[i];
  sum = block_sum(sum);
  if (threadIdx.x == 0) parts[blockIdx.x] = sum;
}

// One block. max_norm 0: nothing is clipped. loss: a sum over so many targets; none: there is no loss.
KERNEL(clip_from_squares, const double* parts, u32 count, double max_norm, const double* loss, double targets, Clip* clip) {
  double sum = 0.0;
  for (u32 i = threadIdx.x; i < count; i += blockDim.x) sum += parts[i];
  sum = block_sum(sum);
  if (threadIdx.x != 0) return;
  double norm = sqrt(sum);
  double mean = loss ? *loss / targets : 0.0;
  clip->norm = norm;
  clip->loss = mean;
  clip->finite = isfinite(norm) && isfinite(mean) ? 1u : 0u;
  clip->factor = max_norm > 0.0 && norm + 1e-6 > max_norm ? (float)(max_norm / (norm + 1e-6)) : 1.0f;
}

KERNEL(adamw, float* p, float* m, float* v, const float* g, const Clip* clip, Factors f, u64 count) {
  if (!clip->finite) return;
  float factor = clip->factor;
  for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += (u64)gridDim.x * blockDim.x) {
    float d = g[i] * factor;
    float first = f.beta1 * m[i] + f.rest1 * d;
    float second = f.beta2 * v[i] + f.rest2 * d * d;
    m[i] = first;
    v[i] = second;
    p[i] = p[i] * f.keep - f.rate * first / (sqrtf(second) / f.root + f.eps);
  }
}
