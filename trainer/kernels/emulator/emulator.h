// What a kernel sees of CUDA when it is compiled as ordinary C++: one block after another, and inside a block every thread
// a fiber that runs until it waits for the others. Included by prelude.cuh; a library made of one kernel file holds all of it.
//
// One system thread does everything, so shared memory is a static variable, and a kernel that forgets a barrier sees what the
// order of its threads makes of it: fibers take turns backwards every other round, so that relying on an order shows.
#pragma once
#include <ucontext.h>

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
struct Fiber {
  ucontext_t context;
  Index thread;
  enum { Ready, AtBlock, AtWarp, Done } state;
};
inline Index grid, block, at_block, at_thread;
inline std::vector<Fiber> fibers;
inline std::vector<char> stacks, dynamic_shared;
inline ucontext_t scheduler;
inline Fiber* now;
inline void (*kernel)(void**);
inline void** arguments;
inline float lanes[32][32];

inline void wait(decltype(Fiber::state) state) {
  now->state = state;
  swapcontext(&now->context, &scheduler);
  at_thread = now->thread;
}

inline void body() {
  kernel(arguments);
  now->state = Fiber::Done;
}

// Whether all of these fibers that still run wait for `state`; if so they go on.
inline void release(size_t from, size_t to, decltype(Fiber::state) state) {
  for (size_t i = from; i < to; i++)
    if (fibers[i].state != state && fibers[i].state != Fiber::Done) return;
  for (size_t i = from; i < to; i++)
    if (fibers[i].state == state) fibers[i].state = Fiber::Ready;
}

inline void run_block() {
  const size_t stack = 64 << 10, count = fibers.size();
  for (size_t i = 0; i < count; i++) {
    Fiber& fiber = fibers[i];
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = stacks.data() + i * stack;
    fiber.context.uc_stack.ss_size = stack;
    fiber.context.uc_link = &scheduler;
    makecontext(&fiber.context, body, 0);
    fiber.thread = {unsigned(i % block.x), unsigned(i / block.x % block.y), unsigned(i / (block.x * block.y))};
    fiber.state = Fiber::Ready;
  }
  for (size_t round = 0;; round++) {
    bool any = false;
    for (size_t i = 0; i < count; i++) {
      Fiber& fiber = fibers[round % 2 ? count - 1 - i : i];
      if (fiber.state != Fiber::Ready) continue;
      any = true;
      now = &fiber;
      at_thread = fiber.thread;
      swapcontext(&scheduler, &fiber.context);
    }
    for (size_t warp = 0; warp < count; warp += 32) release(warp, std::min(warp + 32, count), Fiber::AtWarp);
    release(0, count, Fiber::AtBlock);
    if (any) continue;
    for (Fiber& fiber : fibers)
      if (fiber.state != Fiber::Done && fiber.state != Fiber::Ready) {
        fprintf(stderr, "emulator: threads of one block wait at different barriers\n");
        abort();
      }
    bool ready = false;
    for (Fiber& fiber : fibers) ready |= fiber.state == Fiber::Ready;
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
  size_t thread = size_t(now - fibers.data());
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
  fibers.resize(size_t(block.x) * block.y * block.z);
  stacks.resize(fibers.size() * (64 << 10));
  dynamic_shared.assign(shared, char(0xff));
  for (at_block.z = 0; at_block.z < grid.z; at_block.z++)
    for (at_block.y = 0; at_block.y < grid.y; at_block.y++)
      for (at_block.x = 0; at_block.x < grid.x; at_block.x++) run_block();
}
