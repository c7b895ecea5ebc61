// An adapter's products where its input has dropout, without a masked copy of that input: u = (x m) Aᵀ, dA += tᵀ (x m), dx += (t A) m, where
// t = s dy B and m is 0 or `keep`. What is kept is a bit a number (dropout.cu). src/ops/lora.rs has the equations; products without dropout,
// and with B, are cuBLASLt's.
//
// All of them read x or dx once, for more than 32 ranks once for every 32 of them but dx: that is what they take their time for. Channels come 64 at a time, for which a row has one word of bits: the
// last ones of a row may be fewer, by eights. Ranks come 32 at a time; those behind the last are zeros.
#include "prelude.cuh"

constexpr u32 CHANNELS = 64, RANKS = 32, RANK_TILES = RANKS / 8;
// Rows of shared memory: of channels, and of ranks.
constexpr u32 LONG = CHANNELS + 8, SHORT = RANKS + 8;

// Of two neighbouring numbers those whose bit is set.
__device__ __forceinline__ u32 only(u32 pair, u32 bits) {
  return pair & ((0u - (bits & 1u)) & 0xffffu | (0u - (bits >> 1 & 1u)) & 0xffff0000u);
}

__device__ __forceinline__ uint2 four(const bf16* at) { return *at_once<uint2>(at); }

// u = (x m) Aᵀ. A block owns 16 rows of x, its warps take turns with their channels. The order in which a product sums over
// channels is anybody's: each thread takes four neighbours with one load, channels 16 j + 4 q to 16 j + 4 q + 3 of the 64, q = lane % 4.
//
// Grid: strips of 16 rows x groups of RANKS.
constexpr u32 DOWN_WARPS = 8;
KERNEL(lora_down, const bf16* x, const bf16* a, const u64* kept, bf16* u, u32 rows, u32 inputs, u32 rank, float keep) {
  __shared__ float sums[DOWN_WARPS][RANK_TILES * 32 * 4];
  const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
  const u32 row = 16 * blockIdx.x, first = RANKS * blockIdx.y, words = (inputs + CHANNELS - 1) / CHANNELS;
  float c[RANK_TILES][4] = {};
  for (u32 word = warp; word < words; word += DOWN_WARPS) {
    u64 bits[2];
#pragma unroll
    for (u32 half = 0; half < 2; half++)
      bits[half] = row + g + 8 * half < rows ? kept[(u64)(row + g + 8 * half) * words + word] : 0;
#pragma unroll
    for (u32 j = 0; j < CHANNELS / 16; j++) {
      u32 within = 16 * j + 4 * q, channel = CHANNELS * word + within, strip[4];
      bool there = channel < inputs;
#pragma unroll
      for (u32 half = 0; half < 2; half++) {
        u32 four_bits = (u32)(bits[half] >> within) & 15u;
        uint2 some = there && four_bits ? four(x + (u64)(row + g + 8 * half) * inputs + channel) : make_uint2(0, 0);
        strip[half] = only(some.x, four_bits), strip[half + 2] = only(some.y, four_bits >> 2);
      }
#pragma unroll
      for (u32 n = 0; n < RANK_TILES; n++) {
        u32 r = first + 8 * n + g;
        uint2 of_a = there && r < rank ? four(a + (u64)r * inputs + channel) : make_uint2(0, 0);
        if (first + 8 * n < rank) mma(c[n], strip, of_a.x, of_a.y);
      }
    }
  }
#pragma unroll
  for (u32 n = 0; n < RANK_TILES; n++)
#pragma unroll
    for (u32 e = 0; e < 4; e++) sums[warp][(32 * n + lane) * 4 + e] = c[n][e];
  __syncthreads();
  for (u32 i = threadIdx.x; i < RANK_TILES * 32 * 4; i += blockDim.x) {
    u32 e = i % 4, of = i / 4 % 32, down = row + of / 4 + e / 2 * 8, r = first + i / 128 * 8 + of % 4 * 2 + e % 2;
    float sum = 0.0f;
    for (u32 w = 0; w < DOWN_WARPS; w++) sum += sums[w][i];
    if (down < rows && r < rank) u[(u64)down * rank + r] = narrow(keep * sum);
  }
}

// Begins to copy COUNT rows of RANKS numbers from row `row` and rank `first` on; what is behind `end` and `rank` is zero.
template <u32 COUNT>
__device__ __forceinline__ void load_ranks(bf16* to, const bf16* from, u32 row, u32 end, u32 first, u32 rank) {
  if (rank % 8 == 0) {
    for (u32 i = threadIdx.x; i < COUNT * RANKS / 8; i += blockDim.x) {
      u32 r = i / (RANKS / 8), c = i % (RANKS / 8) * 8;
      bool there = row + r < end && first + c < rank;
      copy<16>(to + r * SHORT + c, there ? from + (u64)(row + r) * rank + first + c : from, there);
    }
    return;
  }
  for (u32 i = threadIdx.x; i < COUNT * RANKS; i += blockDim.x) {
    u32 r = i / RANKS, c = i % RANKS;
    bf16 nothing = {0};
    to[r * SHORT + c] = row + r < end && first + c < rank ? from[(u64)(row + r) * rank + first + c] : nothing;
  }
}

// A part of dA = tᵀ (x m), over the rows of one part; `lora_add_parts` sums them. A block owns 64 channels, a warp 16 of them.
//
// Grid: groups of CHANNELS x parts x groups of RANKS.
constexpr u32 WARPS = 4, TURN = 64, EIGHTHS = TURN * CHANNELS / 8 / (32 * WARPS);
KERNEL(lora_parts, const bf16* t, const bf16* x, const u64* kept, float* parts, u32 rows, u32 inputs, u32 rank, u32 part_rows,
       float keep) {
  alignas(16) __shared__ bf16 xs[TURN * LONG];
  alignas(16) __shared__ bf16 ts[TURN * SHORT];
  const u32 own = threadIdx.x / 32 * 16, lane = threadIdx.x % 32, words = (inputs + CHANNELS - 1) / CHANNELS;
  const u32 channel = CHANNELS * blockIdx.x, first = RANKS * blockIdx.z, begin = part_rows * blockIdx.y;
  const u32 end = begin + part_rows < rows ? begin + part_rows : rows;
  float c[RANK_TILES][4] = {};
  // what a thread brings to `xs`: eight channels of some rows, asked for while the rows before are used
  uint4 ahead[EIGHTHS];
  auto ask = [&](u32 from) {
#pragma unroll
    for (u32 i = 0; i < EIGHTHS; i++) {
      u32 at = threadIdx.x + 32 * WARPS * i, row = from + at / 8, within = at % 8 * 8;
      u32 bits = row < end ? (u32)(kept[(u64)row * words + blockIdx.x] >> within) & 255u : 0;
      uint4 eight = make_uint4(0, 0, 0, 0);
      if (bits && channel + within < inputs)
        eight = *at_once<uint4>(x + (u64)row * inputs + channel + within);
      ahead[i] = make_uint4(only(eight.x, bits), only(eight.y, bits >> 2), only(eight.z, bits >> 4), only(eight.w, bits >> 6));
    }
  };
  ask(begin);
  for (u32 from = begin; from < end; from += TURN) {
    __syncthreads(); // the rows before may still be read
    load_ranks<TURN>(ts, t, from, end, first, rank);
#pragma unroll
    for (u32 i = 0; i < EIGHTHS; i++) {
      u32 at = threadIdx.x + 32 * WARPS * i;
      *at_once<uint4>(xs + at / 8 * LONG + at % 8 * 8) = ahead[i];
    }
    wait_for_copies();
    if (from + TURN < end) ask(from + TURN);
#pragma unroll
    for (u32 k = 0; k < TURN; k += 16) {
      u32 strip[4];
      left_turned<LONG>(strip, xs + k * LONG + own);
#pragma unroll
      for (u32 n = 0; n < RANK_TILES; n += 2) {
        if (first + 8 * n >= rank) break;
        u32 b[4];
        right_turned<SHORT>(b, ts + k * SHORT + 8 * n);
        mma(c[n], strip, b[0], b[1]);
        mma(c[n + 1], strip, b[2], b[3]);
      }
    }
  }
#pragma unroll
  for (u32 n = 0; n < RANK_TILES; n++)
#pragma unroll
    for (u32 e = 0; e < 4; e++) {
      u32 r = first + 8 * n + lane % 4 * 2 + e % 2, at = channel + own + lane / 4 + e / 2 * 8;
      if (r < rank && at < inputs) parts[((u64)blockIdx.y * rank + r) * inputs + at] = keep * c[n][e];
    }
}

// da += the sum of all parts, the first one first.
KERNEL(lora_add_parts, const float* parts, float* da, u32 count, u32 many) {
  for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += (u64)gridDim.x * blockDim.x) {
    float sum = 0.0f;
    for (u32 part = 0; part < many; part++) sum += parts[(u64)part * count + i];
    da[i] += sum;
  }
}

// dx += (t A) m. A warp owns 32 rows of dx and 64 channels. So that a thread holds four neighbours, `as` has the channels of each 16 in
// the order 0 1 4 5 8 9 12 13, 2 3 6 7 10 11 14 15.
//
// Grid: groups of CHANNELS x tiles of UP_ROWS.
constexpr u32 UP_ROWS = 32 * WARPS;
KERNEL(lora_up, const bf16* t, const bf16* a, const u64* kept, bf16* dx, u32 rows, u32 inputs, u32 rank, float keep) {
  alignas(16) __shared__ bf16 ts[UP_ROWS * SHORT];
  alignas(16) __shared__ bf16 as[RANKS * LONG];
  const u32 own = threadIdx.x / 32 * 32, g = threadIdx.x % 32 / 4, q = threadIdx.x % 4;
  const u32 channel = CHANNELS * blockIdx.x, row = UP_ROWS * blockIdx.y, words = (inputs + CHANNELS - 1) / CHANNELS;
  float c[2][CHANNELS / 8][4] = {};
  for (u32 first = 0; first < rank; first += RANKS) {
    if (first) __syncthreads(); // the ranks before may still be read
    load_ranks<UP_ROWS>(ts, t, row, rows, first, rank);
    for (u32 i = threadIdx.x; i < RANKS * CHANNELS / 2; i += blockDim.x) {
      u32 r = i / (CHANNELS / 2), pair = i % (CHANNELS / 2), to = pair / 8 * 16 + pair % 2 * 8 + pair % 8 / 2 * 2;
      bool there = first + r < rank && channel + 2 * pair < inputs;
      copy<4>(as + r * LONG + to, there ? a + (u64)(first + r) * inputs + channel + 2 * pair : a, there);
    }
    wait_for_copies();
#pragma unroll
    for (u32 k = 0; k < RANKS; k += 16) {
      if (first + k >= rank) break;
      u32 strips[2][4];
#pragma unroll
      for (u32 m = 0; m < 2; m++) left<SHORT>(strips[m], ts + (own + 16 * m) * SHORT + k);
#pragma unroll
      for (u32 n = 0; n < CHANNELS / 8; n += 2) {
        u32 b[4];
        right_turned<LONG>(b, as + k * LONG + 8 * n);
#pragma unroll
        for (u32 m = 0; m < 2; m++) {
          mma(c[m][n], strips[m], b[0], b[1]);
          mma(c[m][n + 1], strips[m], b[2], b[3]);
        }
      }
    }
  }
#pragma unroll
  for (u32 m = 0; m < 2; m++)
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
      u32 down = row + own + 16 * m + 8 * half + g;
      if (down >= rows) continue;
      u64 bits = kept[(u64)down * words + blockIdx.x];
#pragma unroll
      for (u32 n = 0; n < CHANNELS / 8; n += 2) {
        u32 within = 8 * n + 4 * q, four_bits = (u32)(bits >> within) & 15u;
        if (!four_bits || channel + within >= inputs) continue;
        uint2* at = at_once<uint2>(dx + (u64)down * inputs + channel + within);
        uint2 sum = *at;
        auto added = [&](u32 pair, u32 two_bits, const float* by) {
          float lower = __uint_as_float(pair << 16) + (two_bits & 1u ? keep * by[0] : 0.0f);
          float upper = __uint_as_float(pair & 0xffff0000u) + (two_bits & 2u ? keep * by[1] : 0.0f);
          return both(lower, upper);
        };
        sum.x = added(sum.x, four_bits, c[m][n] + 2 * half);
        sum.y = added(sum.y, four_bits >> 2, c[m][n + 1] + 2 * half);
        *at = sum;
      }
    }
}
