// What a kernel sees of CUDA when it is compiled as ordinary C++: one block after another, and inside a block every thread
// a fiber that runs until it waits for the others. Included by prelude.cuh; a library made of one kernel file holds all of it.
//
// One system thread does everything, so shared memory is a static variable. A warp runs until it waits for the others before they run at
// all, the first warp first and at the next barrier the last one; in a warp, threads take turns forwards and backwards. So what relies on an
// order shows, and a kernel that forgets a barrier has one warp read what another has already replaced.
#pragma once
#undef _FORTIFY_SOURCE // it forbids a jump from one stack to another
#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>
#include <vector>

#define __device__
#define __constant__
#define __forceinline__ inline
#define __shared__ static

struct float2 {
  float x, y;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
struct alignas(8) uint2 {
  unsigned x, y;
};
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
struct alignas(16) float4 {
  float x, y, z, w;
};
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float __uint_as_float(unsigned x) {
  float y;
  memcpy(&y, &x, 4);
  return y;
}
inline unsigned __float_as_uint(float x) {
  unsigned y;
  memcpy(&y, &x, 4);
  return y;
}
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
using std::isfinite;

namespace emulator {
struct Index {
  unsigned x, y, z;
};
// One that has begun and may arrive at any moment.
struct Copy {
  void* to;
  const void* from;
  size_t bytes;
  bool there;
};
// Made once and used for thread after thread. What begins one is a context of the system's, which costs calls into it; from then on it
// is entered and left by jumps, which cost none.
struct Fiber {
  std::vector<Copy> copies;
  jmp_buf left;
  ucontext_t context;
  bool made;
  Index thread;
  unsigned met; // how often with its warp
  enum { Ready, AtBlock, AtWarp, Done } state;
};
inline Index grid, block, at_block, at_thread;
inline Fiber fibers[1024];
inline size_t count;
inline std::vector<uint4> dynamic_shared;
inline jmp_buf scheduler;
inline Fiber* now;
inline void (*kernel)(void**);
inline void** arguments;

inline void wait(decltype(Fiber::state) state) {
  now->state = state;
  if (!_setjmp(now->left)) _longjmp(scheduler, 1);
  at_thread = now->thread;
}

inline void body() {
  for (;; wait(Fiber::Done)) {
    kernel(arguments);
    if (!now->copies.empty()) fprintf(stderr, "emulator: a kernel ends with copies on their way\n"), abort();
  }
}

inline void enter(Fiber& fiber) {
  const size_t stack = 64 << 10;
  now = &fiber;
  at_thread = fiber.thread;
  if (_setjmp(scheduler)) return;
  if (fiber.made) _longjmp(fiber.left, 1);
  fiber.made = true;
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = malloc(stack);
  fiber.context.uc_stack.ss_size = stack;
  makecontext(&fiber.context, body, 0);
  setcontext(&fiber.context);
}

// Whether all of these fibers that still run wait for `state`; if so they go on.
inline void release(size_t from, size_t to, decltype(Fiber::state) state) {
  for (size_t i = from; i < to; i++)
    if (fibers[i].state != state && fibers[i].state != Fiber::Done) return;
  for (size_t i = from; i < to; i++)
    if (fibers[i].state == state) fibers[i].state = Fiber::Ready;
}

// As far as it gets without the other warps.
inline void run_warp(size_t from, size_t to, size_t turn) {
  for (bool any = true; any; turn++) {
    any = false;
    for (size_t i = 0; i < to - from; i++) {
      Fiber& fiber = fibers[turn % 2 ? to - 1 - i : from + i];
      if (fiber.state != Fiber::Ready) continue;
      any = true;
      enter(fiber);
    }
    release(from, to, Fiber::AtWarp);
  }
}

inline void run_block() {
  for (size_t i = 0; i < count; i++) {
    fibers[i].thread = {unsigned(i % block.x), unsigned(i / block.x % block.y), unsigned(i / (block.x * block.y))};
    fibers[i].state = Fiber::Ready;
    fibers[i].met = 0;
  }
  for (size_t round = 0;; round++) {
    for (size_t i = 0; i < count; i += 32) {
      size_t from = round % 2 ? (count - 1) / 32 * 32 - i : i;
      run_warp(from, std::min(from + 32, count), round);
    }
    release(0, count, Fiber::AtBlock);
    size_t ready = 0, done = 0;
    for (size_t i = 0; i < count; i++) ready += fibers[i].state == Fiber::Ready, done += fibers[i].state == Fiber::Done;
    if (done == count) return;
    if (!ready) fprintf(stderr, "emulator: threads of one block wait at different barriers\n"), abort();
  }
}

template <class... A, size_t... I>
void spread(void (*f)(A...), void** p, std::index_sequence<I...>) {
  f(*reinterpret_cast<std::remove_reference_t<A>*>(p[I])...);
}
template <class... A>
void call(void (*f)(A...), void** p) {
  spread(f, p, std::index_sequence_for<A...>());
}

// What the lanes of a warp lay out for each other before one of its common operations. There are two tables, taken in turns: a lane that lays
// out for the next operation does so beside what others may still read of this one.
struct Laid {
  float x;
  unsigned a[4], b[2];
  const unsigned short* row;
};
inline Laid tables[2][32][32];

// The table of the thread's warp for this operation.
inline Laid* table() { return tables[now->met++ % 2][size_t(now - fibers) / 32]; }

inline float shuffle_xor(float x, int apart) {
  size_t lane = size_t(now - fibers) % 32;
  Laid* warp = table();
  warp[lane].x = x;
  wait(Fiber::AtWarp);
  return warp[lane ^ apart].x;
}

inline unsigned ballot(bool vote) {
  size_t lane = size_t(now - fibers) % 32;
  Laid* warp = table();
  warp[lane].a[0] = vote;
  wait(Fiber::AtWarp);
  unsigned votes = 0;
  for (size_t i = 0; i < 32; i++) votes |= (warp[i].a[0] & 1) << i;
  return votes;
}

inline float wide_half(unsigned pair, unsigned upper) { return __uint_as_float(upper ? pair & 0xffff0000u : pair << 16); }
} // namespace emulator

// Hardware reads and writes several bytes at once only where they are aligned.
template <class T>
const T* at_once(const void* at) {
  if ((size_t)at % sizeof(T)) fprintf(stderr, "emulator: %zu bytes at once are not aligned\n", sizeof(T)), abort();
  return reinterpret_cast<const T*>(at);
}
template <class T>
T* at_once(void* at) { return const_cast<T*>(at_once<T>((const void*)at)); }

// prelude.cuh says what these do. A copy arrives as late as it may; until then its place is no number, from the moment that it may arrive.
template <unsigned BYTES>
void copy(void* to, const void* from, bool there) {
  if ((size_t)to % BYTES || (size_t)from % BYTES) fprintf(stderr, "emulator: a copy is not aligned\n"), abort();
  memset(to, 0xff, BYTES);
  emulator::now->copies.push_back({to, from, BYTES, there});
}
inline void wait_for_copies() {
  using namespace emulator;
  for (const Copy& copy : now->copies)
    copy.there ? memcpy(copy.to, copy.from, copy.bytes) : memset(copy.to, 0, copy.bytes);
  now->copies.clear();
  wait(Fiber::AtBlock);
}
inline void mma(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  using namespace emulator;
  size_t lane = size_t(now - fibers) % 32;
  Laid* warp = table();
  for (int i = 0; i < 4; i++) warp[lane].a[i] = a[i];
  warp[lane].b[0] = b0, warp[lane].b[1] = b1;
  wait(Fiber::AtWarp);
  // rows g and g + 8 of the left factor, columns 2t and 2t + 1 of the right one
  float rows[2][16], columns[2][16];
  for (size_t k = 0; k < 16; k++)
    for (size_t i = 0; i < 2; i++) {
      rows[i][k] = wide_half(warp[lane / 4 * 4 + k % 8 / 2].a[i + k / 8 * 2], k % 2);
      columns[i][k] = wide_half(warp[(lane % 4 * 2 + i) * 4 + k % 8 / 2].b[k / 8], k % 2);
    }
  for (size_t k = 0; k < 16; k++)
    for (size_t e = 0; e < 4; e++) c[e] += rows[e / 2][k] * columns[e % 2][k];
}

template <class B>
void emulated_load(unsigned (&to)[4], const B* row, bool turned) {
  using namespace emulator;
  size_t lane = size_t(now - fibers) % 32;
  Laid* warp = table();
  if ((size_t)row % 16) fprintf(stderr, "emulator: a row of a matrix is not aligned\n"), abort();
  warp[lane].row = reinterpret_cast<const unsigned short*>(row);
  wait(Fiber::AtWarp);
  for (size_t m = 0; m < 4; m++) {
    size_t g = lane / 4, t = lane % 4 * 2;
    unsigned first = turned ? warp[8 * m + t].row[g] : warp[8 * m + g].row[t];
    unsigned second = turned ? warp[8 * m + t + 1].row[g] : warp[8 * m + g].row[t + 1];
    to[m] = first | second << 16;
  }
  wait(Fiber::AtWarp); // the hardware reads for all lanes at once: none goes on to write before the others have read
}
template <class B>
void load_matrices(unsigned (&to)[4], const B* row) { emulated_load(to, row, false); }
template <class B>
void load_matrices_turned(unsigned (&to)[4], const B* row) { emulated_load(to, row, true); }

#define gridDim emulator::grid
#define blockDim emulator::block
#define blockIdx emulator::at_block
#define threadIdx emulator::at_thread
inline void __syncthreads() { emulator::wait(emulator::Fiber::AtBlock); }
inline void __syncwarp() { emulator::wait(emulator::Fiber::AtWarp); }
inline unsigned __ballot_sync(unsigned, bool vote) { return emulator::ballot(vote); }
inline float __shfl_xor_sync(unsigned, float x, int apart) { return emulator::shuffle_xor(x, apart); }

#define KERNEL(name, ...)                                                                                              \
  static void name##_body(__VA_ARGS__);                                                                                \
  extern "C" void name(void** arguments) { emulator::call(name##_body, arguments); }                                   \
  static void name##_body(__VA_ARGS__)
#define DYNAMIC_SHARED(type, name) type* name = reinterpret_cast<type*>(emulator::dynamic_shared.data())

// How the emulated driver starts a kernel of this library.
extern "C" inline __attribute__((used)) void emulator_run(void (*kernel)(void**), const unsigned* shape, unsigned shared,
                                                          void** arguments) {
  using namespace emulator;
  grid = {shape[0], shape[1], shape[2]};
  block = {shape[3], shape[4], shape[5]};
  emulator::kernel = kernel;
  emulator::arguments = arguments;
  count = size_t(block.x) * block.y * block.z;
  const size_t fence = 16;
  dynamic_shared.assign((shared + 15) / 16 + fence, make_uint4(~0u, ~0u, ~0u, ~0u));
  for (at_block.z = 0; at_block.z < grid.z; at_block.z++)
    for (at_block.y = 0; at_block.y < grid.y; at_block.y++)
      for (at_block.x = 0; at_block.x < grid.x; at_block.x++) run_block();
  for (size_t i = dynamic_shared.size() - fence; i < dynamic_shared.size(); i++)
    if (~dynamic_shared[i].x | ~dynamic_shared[i].y | ~dynamic_shared[i].z | ~dynamic_shared[i].w)
      fprintf(stderr, "emulator: a block shares more than the %u bytes it was given\n", shared), abort();
}
