// What every kernel begins with: bf16 numbers as they lie in memory, sums over a warp and over a block, Philox.
//
// The files here are compiled by NVRTC on the machine that trains (src/ops/cuda/compile.rs), by nvcc in the checks, and as
// ordinary C++ by the emulator (kernels/emulator), which runs the same text on a machine without a GPU. So: no standard
// header, no library, names of kernels without mangling.
//
// Same bits every time: a block's work is given by shape alone, sums have one order, nothing is added with atomics.
#pragma once

#ifdef LORIKEET_EMULATOR
#include "emulator.h"
#else
#define KERNEL(name, ...) extern "C" __global__ void name(__VA_ARGS__)
#define DYNAMIC_SHARED(type, name)                                                                                     \
  extern __shared__ __align__(16) unsigned char dynamic_shared_bytes[];                                                \
  type* name = reinterpret_cast<type*>(dynamic_shared_bytes)
#endif

#ifndef INFINITY // NVRTC has no header that would
#define INFINITY __int_as_float(0x7f800000)
#endif

typedef unsigned int u32;
typedef unsigned long long u64;

// Neighbours that are read or written at once, as one T: they lie at a multiple of its size.
#ifdef LORIKEET_EMULATOR
// emulator.h has it, and looks
#else
template <class T>
__device__ __forceinline__ const T* at_once(const void* at) { return reinterpret_cast<const T*>(at); }
template <class T>
__device__ __forceinline__ T* at_once(void* at) { return reinterpret_cast<T*>(at); }
#endif

// A bf16 number as stored: the upper half of a float.
struct bf16 {
  unsigned short bits;
};

__device__ __forceinline__ float wide(bf16 x) { return __uint_as_float((u32)x.bits << 16); }

// To the nearest, ties to even; NaN stays one.
__device__ __forceinline__ bf16 narrow(float x) {
  bf16 y;
#ifdef __CUDA_ARCH__
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
#else
  u32 bits = __float_as_uint(x);
  bits = (bits & 0x7fffffffu) > 0x7f800000u ? 0x7fff0000u : bits + 0x7fffu + ((bits >> 16) & 1u);
  y.bits = (unsigned short)(bits >> 16);
#endif
  return y;
}

// Two neighbours with one load; `pair` must lie at an even place.
__device__ __forceinline__ float2 wide2(const bf16* pair) {
  u32 both = *at_once<u32>(pair);
  return make_float2(__uint_as_float(both << 16), __uint_as_float(both & 0xffff0000u));
}

// Eight neighbours, which lie at a multiple of eight: memory is read and written 16 bytes a thread at a time.
struct Eight {
  float x[8];
};

__device__ __forceinline__ Eight eight(const bf16* at) {
  uint4 pairs = *at_once<uint4>(at);
  const u32 of[4] = {pairs.x, pairs.y, pairs.z, pairs.w};
  Eight numbers;
#pragma unroll
  for (u32 i = 0; i < 4; i++) {
    numbers.x[2 * i] = __uint_as_float(of[i] << 16);
    numbers.x[2 * i + 1] = __uint_as_float(of[i] & 0xffff0000u);
  }
  return numbers;
}

__device__ __forceinline__ Eight eight(const float* at) {
  float4 lower = *at_once<float4>(at), upper = *at_once<float4>(at + 4);
  return {{lower.x, lower.y, lower.z, lower.w, upper.x, upper.y, upper.z, upper.w}};
}

// Two numbers as they lie beside each other, the first at the lower address.
__device__ __forceinline__ u32 both(float x, float y) {
#ifdef __CUDA_ARCH__
  u32 pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(y), "f"(x));
  return pair;
#else
  return (u32)narrow(x).bits | (u32)narrow(y).bits << 16;
#endif
}

__device__ __forceinline__ void put(bf16* at, const Eight& numbers) {
  const float* x = numbers.x;
  *at_once<uint4>(at) = make_uint4(both(x[0], x[1]), both(x[2], x[3]), both(x[4], x[5]), both(x[6], x[7]));
}

__device__ __forceinline__ void put(float* at, const Eight& numbers) {
  const float* x = numbers.x;
  *at_once<float4>(at) = make_float4(x[0], x[1], x[2], x[3]);
  *at_once<float4>(at + 4) = make_float4(x[4], x[5], x[6], x[7]);
}

// 2^x by the processor's own table, to 2^-22 of itself; what is too small for a normal number is zero.
__device__ __forceinline__ float power_of_two(float x) {
#ifdef __CUDA_ARCH__
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return exp2f(x);
#endif
}

constexpr float LOG2E = 1.4426950408889634f;

// How heads lie in a row and score (src/ops/attention.rs).
struct Heads {
  u32 queries, keys;
  float scale, cap; // cap 0: none
  u32 window;       // 0: none
};

// ---- copies and tensor cores (PTX ISA, "cp.async", "Matrix fragments for mma.m16n8k16") ----------------------------------------
#ifdef LORIKEET_EMULATOR
// emulator.h has them
#else
__device__ __forceinline__ u32 shared_address(const void* at) { return (u32)__cvta_generic_to_shared(at); }

// Begins to copy 4 or 16 bytes to shared memory, zeros unless `there`; both places are aligned to as many. Nobody touches `to` before
// `wait_for_copies`.
template <u32 BYTES>
__device__ __forceinline__ void copy(void* to, const void* from, bool there) {
  u32 bytes = there ? BYTES : 0;
  if constexpr (BYTES == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(bytes) : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared_address(to)), "l"(from), "r"(bytes) : "memory");
}

// Waits until whatever the threads of this block copied is there, and until all of them have come so far.
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_all;" ::: "memory");
  __syncthreads();
}

// c += a b: 16 x 8 from 16 x 16 and 16 x 8, bf16 with f32 sums.
__device__ __forceinline__ void mma(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Four matrices of 8 x 8 from shared memory: lane 8 m + r names where row r of matrix m begins; a thread gets, of each matrix, the two
// numbers at row lane / 4, columns 2 (lane % 4) and the next.
__device__ __forceinline__ void load_matrices(u32 (&to)[4], const bf16* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(shared_address(row))
               : "memory");
}

// The same, of each matrix's transpose.
__device__ __forceinline__ void load_matrices_turned(u32 (&to)[4], const bf16* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(shared_address(row))
               : "memory");
}
#endif

// Factors of `mma` from shared memory, whose rows begin LONG numbers apart. LONG is an odd number of eights, so that no two of the eight rows
// that `ldmatrix` reads at once share a bank.

// A left factor: 16 rows by 16 columns.
template <u32 LONG>
__device__ __forceinline__ void left(u32 (&a)[4], const bf16* at) {
  u32 lane = threadIdx.x % 32;
  load_matrices(a, at + (lane / 8 % 2 * 8 + lane % 8) * LONG + lane / 16 * 8);
}

// The same, of the transpose: the 16 rows at hand are summed over.
template <u32 LONG>
__device__ __forceinline__ void left_turned(u32 (&a)[4], const bf16* at) {
  u32 lane = threadIdx.x % 32;
  load_matrices_turned(a, at + (lane / 16 * 8 + lane % 8) * LONG + lane / 8 % 2 * 8);
}

// Two right factors whose columns are the 16 rows at hand; 16 columns of them are summed over.
template <u32 LONG>
__device__ __forceinline__ void right(u32 (&b)[4], const bf16* at) {
  u32 lane = threadIdx.x % 32;
  load_matrices(b, at + (lane / 16 * 8 + lane % 8) * LONG + lane / 8 % 2 * 8);
}

// Two right factors of 8 columns each; the 16 rows at hand are summed over.
template <u32 LONG>
__device__ __forceinline__ void right_turned(u32 (&b)[4], const bf16* at) {
  u32 lane = threadIdx.x % 32;
  load_matrices_turned(b, at + (lane / 8 % 2 * 8 + lane % 8) * LONG + lane / 16 * 8);
}

// Over the four lanes that hold one row of a product; each gets the result.
__device__ __forceinline__ float quad_sum(float x) {
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

__device__ __forceinline__ float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
  return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}

// Over the 32 lanes of a warp; every lane gets the sum.
__device__ __forceinline__ float warp_sum(float x) {
  for (int apart = 16; apart > 0; apart >>= 1) x += __shfl_xor_sync(0xffffffffu, x, apart);
  return x;
}

__device__ __forceinline__ float warp_max(float x) {
  for (int apart = 16; apart > 0; apart >>= 1) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, apart));
  return x;
}

// Over a block of whole warps, 1024 threads at most; every thread gets the result.
__device__ __forceinline__ float block_sum(float x) {
  __shared__ float of_warp[32];
  x = warp_sum(x);
  __syncthreads(); // of_warp may still be read from the sum before
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = x;
  __syncthreads();
  float sum = 0.0f;
  for (u32 warp = 0; warp < blockDim.x / 32; warp++) sum += of_warp[warp];
  return sum;
}

__device__ __forceinline__ float block_max(float x) {
  __shared__ float of_warp[32];
  x = warp_max(x);
  __syncthreads();
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = x;
  __syncthreads();
  float most = of_warp[0];
  for (u32 warp = 1; warp < blockDim.x / 32; warp++) most = fmaxf(most, of_warp[warp]);
  return most;
}

__device__ __forceinline__ double block_sum(double x) {
  __shared__ double of_thread[1024];
  __syncthreads();
  of_thread[threadIdx.x] = x;
  for (u32 half = blockDim.x / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) of_thread[threadIdx.x] += of_thread[threadIdx.x + half];
  }
  __syncthreads();
  return of_thread[0];
}
