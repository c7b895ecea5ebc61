// Dropout from the counter-based generator of src/ops/random.rs: the same masks as on the CPU, bit for bit.
//
// Channel c takes word (c / 16) mod 4 of the Philox block with the counter (c / 64, c mod 16, token, domain). A thread makes one
// block: four channels, sixteen apart.
#include "prelude.cuh"

struct Words {
  u32 w[4];
};

__device__ __forceinline__ Words philox(u32 k0, u32 k1, u32 c0, u32 c1, u32 c2, u32 c3) {
  for (int round = 0; round < 10; round++) {
    u64 p0 = (u64)c0 * 0xD2511F53u, p1 = (u64)c2 * 0xCD9E8D57u;
    u32 n0 = (u32)(p1 >> 32) ^ c1 ^ k0, n2 = (u32)(p0 >> 32) ^ c3 ^ k1;
    c1 = (u32)p1, c3 = (u32)p0, c0 = n0, c2 = n2;
    k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
  }
  Words words = {{c0, c1, c2, c3}};
  return words;
}

// y = x m, or y += x m where `add` is not 0 (the backward). `keys` holds the key of every row's masks and its token:
// three words a row.
KERNEL(dropout, const bf16* x, bf16* y, const u32* keys, u32 rows, u32 width, u32 threshold, float keep, u32 add) {
  u32 groups = (width + 63) / 64;
  u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
  u64 row = i / (groups * 16);
  if (row >= rows) return;
  u32 group = (u32)(i / 16 % groups), lane = (u32)(i % 16);
  const u32* key = keys + 3 * row;
  Words words = philox(key[0], key[1], group, lane, key[2], 2u);
  for (u32 j = 0; j < 4; j++) {
    u32 c = 64 * group + 16 * j + lane;
    if (c >= width) break;
    u64 at = row * width + c;
    float kept = words.w[j] < threshold ? 0.0f : keep * wide(x[at]);
    y[at] = narrow(add ? wide(y[at]) + kept : kept);
  }
}
