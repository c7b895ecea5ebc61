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
inline std::vector<char> dynamic_shared;
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
} // namespace emulator

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
  dynamic_shared.assign(shared, char(0xff));
  for (at_block.z = 0; at_block.z < grid.z; at_block.z++)
    for (at_block.y = 0; at_block.y < grid.y; at_block.y++)
      for (at_block.x = 0; at_block.x < grid.x; at_block.x++) run_block();
}
