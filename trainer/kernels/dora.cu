// DoRA's own part: with V = W + s B A, n the lengths of its rows and g = m / n, an adapted layer has y + (g - 1) z + g e, where z = (x k) Wᵀ
// and e = s u Bᵀ. src/ops/dora.rs has the equations; all products are cuBLASLt's, or lora.cu's where there is dropout.
//
// Rows of a module may begin anywhere in memory (a vocabulary is of any size): eight numbers are taken at a time where all of them begin at a
// multiple of eight, and one otherwise.
#include "prelude.cuh"

// n and g of every row, n first. W is bf16 and sums are f32; A and B are the ones that products take, for it is their V that has to get the
// length m. A block owns ROWS rows, so that A, which all rows need, is read once for as many; a thread takes eight columns at a time. B lies in
// shared memory turned: the numbers of all rows for one rank are read at once.
constexpr u32 ROWS = 8, RANKS = 256;
KERNEL(dora_lengths, const bf16* w, const bf16* a, const bf16* b, const float* m, float* lengths, u32 rows, u32 inputs, u32 rank,
       float scale) {
  alignas(16) __shared__ bf16 of_ranks[RANKS * ROWS];
  const u32 row = ROWS * blockIdx.x;
  float squares[ROWS] = {};
  for (u32 first = 0; first < inputs; first += 8 * blockDim.x) {
    const u32 c = first + 8 * threadIdx.x;
    float moved[ROWS][8] = {};
    for (u32 from = 0; from < rank; from += RANKS) {
      const u32 many = rank - from < RANKS ? rank - from : RANKS;
      if (first == 0 || rank > RANKS) {
        __syncthreads(); // the ranks before may still be read
        for (u32 i = threadIdx.x; i < many * ROWS; i += blockDim.x) {
          bf16 nothing = {0};
          of_ranks[i] = row + i % ROWS < rows ? b[(u64)(row + i % ROWS) * rank + from + i / ROWS] : nothing;
        }
        __syncthreads();
      }
      if (c >= inputs) continue;
      for (u32 r = 0; r < many; r++) {
        Eight along = eight(a + (u64)(from + r) * inputs + c), by = eight(of_ranks + ROWS * r);
#pragma unroll
        for (u32 k = 0; k < ROWS; k++)
#pragma unroll
          for (u32 i = 0; i < 8; i++) moved[k][i] += by.x[k] * along.x[i];
      }
    }
    if (c >= inputs) continue;
#pragma unroll
    for (u32 k = 0; k < ROWS; k++) {
      if (row + k >= rows) break;
      Eight own = eight(w + (u64)(row + k) * inputs + c);
#pragma unroll
      for (u32 i = 0; i < 8; i++) {
        float x = own.x[i] + scale * moved[k][i];
        squares[k] += x * x;
      }
    }
  }
#pragma unroll
  for (u32 k = 0; k < ROWS; k++) {
    float n = sqrtf(block_sum(squares[k]));
    if (threadIdx.x == 0 && row + k < rows) lengths[row + k] = n, lengths[rows + row + k] = m[row + k] / n;
  }
}

// Neighbours that a thread takes at once.
template <u32 MANY>
struct Some {
  float x[MANY];
};

template <u32 MANY, class T>
__device__ __forceinline__ Some<MANY> some(const T* at) {
  Some<MANY> numbers;
  if constexpr (MANY == 8) {
    Eight own = eight(at);
#pragma unroll
    for (u32 i = 0; i < 8; i++) numbers.x[i] = own.x[i];
  } else if constexpr (sizeof(T) == 2) {
    numbers.x[0] = wide(*at);
  } else {
    numbers.x[0] = *at;
  }
  return numbers;
}

template <u32 MANY>
__device__ __forceinline__ void put(bf16* at, const Some<MANY>& numbers) {
  if constexpr (MANY == 8) {
    Eight own;
#pragma unroll
    for (u32 i = 0; i < 8; i++) own.x[i] = numbers.x[i];
    put(at, own);
  } else {
    *at = narrow(numbers.x[0]);
  }
}

// Hands all numbers of rows to `f`, MANY at a time: where they lie in a matrix of the module's own, in a row that is `stride` long, and in the
// module's columns.
template <u32 MANY, class F>
__device__ __forceinline__ void each(u32 rows, u32 count, u32 stride, const F& f) {
  const u32 of_row = count / MANY;
  for (u32 i = blockIdx.x * blockDim.x + threadIdx.x; i < rows * of_row; i += gridDim.x * blockDim.x) {
    u32 row = i / of_row, c = i % of_row * MANY;
    f((u64)row * count + c, (u64)row * stride + c, c);
  }
}

// y += (g - 1) z + g e, and z becomes v = z + e. What z was rounded by counts only as far as g is from 1, and y is rounded once.
template <u32 MANY>
__device__ __forceinline__ void forward(bf16* z, const bf16* e, const float* g, bf16* y, u32 rows, u32 count, u32 stride) {
  each<MANY>(rows, count, stride, [&](u64 own, u64 place, u32 c) {
    Some<MANY> frozen = some<MANY>(z + own), moved = some<MANY>(e + own), by = some<MANY>(g + c), sum = some<MANY>(y + place);
#pragma unroll
    for (u32 i = 0; i < MANY; i++) {
      sum.x[i] += (by.x[i] - 1.0f) * frozen.x[i] + by.x[i] * moved.x[i];
      frozen.x[i] += moved.x[i];
    }
    put(y + place, sum);
    put(z + own, frozen);
  });
}

KERNEL(dora_forward, bf16* z, const bf16* e, const float* lengths, bf16* y, u32 rows, u32 count, u32 stride, u32 many) {
  if (many == 8)
    forward<8>(z, e, lengths + count, y, rows, count, stride);
  else
    forward<1>(z, e, lengths + count, y, rows, count, stride);
}

// dv = g dy, and for every part of the rows the sums of dy v / n, which `lora_add_parts` adds to the gradient of m. A warp takes 32 MANY columns of
// every WARPS-th row.
//
// Grid: groups of columns x parts.
constexpr u32 WARPS = 8;
template <u32 MANY>
__device__ __forceinline__ void backward(const bf16* dy, const bf16* v, const float* lengths, bf16* dv, float* parts, u32 rows, u32 count,
                                         u32 stride, u32 part_rows) {
  __shared__ float sums[WARPS][32 * MANY];
  const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32, first = 32 * MANY * blockIdx.x, c = first + MANY * lane;
  const u32 begin = part_rows * blockIdx.y, end = begin + part_rows < rows ? begin + part_rows : rows;
  Some<MANY> sum = {};
  if (c < count) {
    Some<MANY> by = some<MANY>(lengths + count + c);
    for (u32 row = begin + warp; row < end; row += WARPS) {
      Some<MANY> d = some<MANY>(dy + (u64)row * stride + c), along = some<MANY>(v + (u64)row * count + c);
#pragma unroll
      for (u32 i = 0; i < MANY; i++) {
        sum.x[i] += d.x[i] * along.x[i];
        d.x[i] *= by.x[i];
      }
      put(dv + (u64)row * count + c, d);
    }
  }
#pragma unroll
  for (u32 i = 0; i < MANY; i++) sums[warp][MANY * lane + i] = sum.x[i];
  __syncthreads();
  for (u32 i = threadIdx.x; i < 32 * MANY && first + i < count; i += blockDim.x) {
    float total = 0.0f;
    for (u32 w = 0; w < WARPS; w++) total += sums[w][i];
    parts[(u64)blockIdx.y * count + first + i] = total / lengths[first + i];
  }
}

KERNEL(dora_backward, const bf16* dy, const bf16* v, const float* lengths, bf16* dv, float* parts, u32 rows, u32 count, u32 stride,
       u32 many, u32 part_rows) {
  if (many == 8)
    backward<8>(dy, v, lengths, dv, parts, rows, count, stride, part_rows);
  else
    backward<1>(dy, v, lengths, dv, parts, rows, count, stride, part_rows);
}

// dz = (g - 1) dy: what goes back through the frozen weight a second time. Not dv - dy, of which the rounding of both would be left.
template <u32 MANY>
__device__ __forceinline__ void rest(const bf16* dy, const float* g, bf16* dz, u32 rows, u32 count, u32 stride) {
  each<MANY>(rows, count, stride, [&](u64 own, u64 place, u32 c) {
    Some<MANY> d = some<MANY>(dy + place), by = some<MANY>(g + c);
#pragma unroll
    for (u32 i = 0; i < MANY; i++) d.x[i] *= by.x[i] - 1.0f;
    put(dz + own, d);
  });
}

KERNEL(dora_rest, const bf16* dy, const float* lengths, bf16* dz, u32 rows, u32 count, u32 stride, u32 many) {
  if (many == 8)
    rest<8>(dy, lengths + count, dz, rows, count, stride);
  else
    rest<1>(dy, lengths + count, dz, rows, count, stride);
}
