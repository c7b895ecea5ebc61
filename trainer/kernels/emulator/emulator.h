// What a kernel sees of CUDA when it is compiled as ordinary C++: one block after another, and inside a block every thread
// a fiber that runs until it waits for the others. Included by prelude.cuh; a library made of one kernel file holds all of it.
//
// One system thread does everything, so shared memory is a static variable, and a kernel that forgets a barrier sees what the
// order of its threads makes of it: fibers take turns backwards every other round, so that relying on an order shows.
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
#define __align__(n) alignas(n)

struct float2 {
  float x, y;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
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
// Made once and used for thread after thread. What begins one is a context of the system's, which costs calls into it; from then on it
// is entered and left by jumps, which cost none.
struct Fiber {
  jmp_buf left;
  ucontext_t context;
  bool made;
  Index thread;
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
inline float lanes[32][32];

inline void wait(decltype(Fiber::state) state) {
  now->state = state;
  if (!_setjmp(now->left)) _longjmp(scheduler, 1);
  at_thread = now->thread;
}

inline void body() {
  for (;; wait(Fiber::Done)) kernel(arguments);
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

inline void run_block() {
  for (size_t i = 0; i < count; i++) {
    fibers[i].thread = {unsigned(i % block.x), unsigned(i / block.x % block.y), unsigned(i / (block.x * block.y))};
    fibers[i].state = Fiber::Ready;
  }
  for (size_t round = 0;; round++) {
    bool any = false;
    for (size_t i = 0; i < count; i++) {
      Fiber& fiber = fibers[round % 2 ? count - 1 - i : i];
      if (fiber.state != Fiber::Ready) continue;
      any = true;
      enter(fiber);
    }
    for (size_t warp = 0; warp < count; warp += 32) release(warp, std::min(warp + 32, count), Fiber::AtWarp);
    release(0, count, Fiber::AtBlock);
    if (any) continue;
    for (size_t i = 0; i < count; i++)
      if (fibers[i].state != Fiber::Done && fibers[i].state != Fiber::Ready) {
        fprintf(stderr, "emulator: threads of one block wait at different barriers\n");
        abort();
      }
    bool ready = false;
    for (size_t i = 0; i < count; i++) ready |= fibers[i].state == Fiber::Ready;
    if (!ready) return;
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

inline float shuffle_xor(float x, int apart) {
  size_t thread = size_t(now - fibers);
  float* warp = lanes[thread / 32];
  warp[thread % 32] = x;
  wait(Fiber::AtWarp);
  float got = warp[(thread % 32) ^ apart];
  wait(Fiber::AtWarp); // nobody writes before everybody has read
  return got;
}

// What the lanes of a warp lay out for each other before one of its common operations.
struct Laid {
  unsigned a[4], b[2];
  const unsigned short* row;
};
inline Laid laid[32][32];

inline float wide_half(unsigned pair, unsigned upper) { return __uint_as_float(upper ? pair & 0xffff0000u : pair << 16); }
} // namespace emulator

// prelude.cuh says what these do.
inline void mma(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  using namespace emulator;
  size_t thread = size_t(now - fibers), lane = thread % 32;
  Laid* warp = laid[thread / 32];
  for (int i = 0; i < 4; i++) warp[lane].a[i] = a[i];
  warp[lane].b[0] = b0, warp[lane].b[1] = b1;
  wait(Fiber::AtWarp);
  for (size_t e = 0; e < 4; e++) {
    size_t row = lane / 4 + e / 2 * 8, column = lane % 4 * 2 + e % 2;
    for (size_t k = 0; k < 16; k++) {
      unsigned of_a = warp[row % 8 * 4 + k % 8 / 2].a[row / 8 + k / 8 * 2], of_b = warp[column * 4 + k % 8 / 2].b[k / 8];
      c[e] += wide_half(of_a, k % 2) * wide_half(of_b, k % 2);
    }
  }
  wait(Fiber::AtWarp);
}

template <class B>
void emulated_load(unsigned (&to)[4], const B* row, bool turned) {
  using namespace emulator;
  size_t thread = size_t(now - fibers), lane = thread % 32;
  Laid* warp = laid[thread / 32];
  if ((size_t)row % 16) fprintf(stderr, "emulator: a row of a matrix is not aligned\n"), abort();
  warp[lane].row = reinterpret_cast<const unsigned short*>(row);
  wait(Fiber::AtWarp);
  for (size_t m = 0; m < 4; m++) {
    size_t g = lane / 4, t = lane % 4 * 2;
    unsigned first = turned ? warp[8 * m + t].row[g] : warp[8 * m + g].row[t];
    unsigned second = turned ? warp[8 * m + t + 1].row[g] : warp[8 * m + g].row[t + 1];
    to[m] = first | second << 16;
  }
  wait(Fiber::AtWarp);
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
  dynamic_shared.assign((shared + 15) / 16, make_uint4(~0u, ~0u, ~0u, ~0u));
  for (at_block.z = 0; at_block.z < grid.z; at_block.z++)
    for (at_block.y = 0; at_block.y < grid.y; at_block.y++)
      for (at_block.x = 0; at_block.x < grid.x; at_block.x++) run_block();
}
