// A stand-in for CUDA's header of this name: kernels of csrc/cuda compile with a C++ compiler and run on the CPU.
//
// What it does. Every thread of a block, and all blocks of a cluster, are fibers of one thread of the machine. One runs
// until it meets the others of its warp, block or cluster; then the next in line does. The order is that of their
// numbers, or one drawn from a seed: results that depend on it betray a race. Shared memory starts as NaN. It is an
// error, with the kernel and the place in its source, when a thread never comes to a meeting that others wait at, when
// threads meet at different places, and when a launch asks for more than a GPU has. Built with -fsanitize=address,
// accesses beyond a tensor or a shared array are errors too.
//
// What a kernel that passes has shown: its values, indices, masks and barriers, for any order of threads and blocks
// between barriers, on the very source that nvcc compiles, host code and launch geometry included.
// What it has not: that code between barriers may interleave instruction by instruction; the memory model (a missing
// fence is invisible); banks, coalescing, occupancy, speed; that PTX is spelled right (ptx.h has twins of the wrappers,
// written from the PTX manual); rounding of the GPU's own exp2, log and products in tensor cores.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <source_location>
#include <stdexcept>
#include <string>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)

struct uint3 {
  unsigned x, y, z;
};
struct dim3 : uint3 {
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : uint3{x, y, z} {}
};
using cudaStream_t = void*;

namespace emulator {

using Place = std::source_location;
constexpr int kWarp = 32;

// Where threads meet.
struct Barrier {
  int arrived = 0;
  unsigned generation = 0;
  Place place;
};

struct Warp {
  Barrier barrier;
  alignas(16) unsigned char slots[2][kWarp][16];  // what lanes exchange, by the parity of the generation
};

struct Block;

// One thread of a kernel: what it can ask about itself.
struct Thread {
  uint3 index;
  int lane;
  size_t shared_used;  // every thread makes the same arrays in the same order: they get the same places
  Warp* warp;
  Block* block;
};

extern Thread* self;  // the one that runs
extern dim3 block_size, grid_size;
uint3 block_index();
int cluster_size();
int cluster_rank();

// Waits for all `expected` threads.
void meet(Barrier& barrier, int expected, const char* what, const Place& place);
void meet_block(const Place& place);
void meet_cluster(const Place& place);
// The next `bytes` of the block's shared memory.
void* shared_array(size_t bytes, const Place& place);
// The place in block `rank` of the cluster that corresponds to `address` in this block's shared memory.
void* shared_of_rank(void* address, int rank);
[[noreturn]] void fail(const std::string& why);

// The values that the lanes of the warp hold, after all have come.
template <class T>
inline const unsigned char (*exchange(unsigned mask, const T& value, const Place& place))[16] {
  static_assert(sizeof(T) <= 16 && std::is_trivially_copyable_v<T>);
  if (mask != 0xffffffffu) fail("only whole warps are supported");
  Warp& warp = *self->warp;
  auto* slots = warp.slots[warp.barrier.generation % 2];  // before the others overwrite them, all must come once more
  std::memcpy(slots[self->lane], &value, sizeof(T));
  meet(warp.barrier, kWarp, "warp", place);
  return slots;
}

template <class T>
inline T value_of(const unsigned char (*slots)[16], int lane) {
  T value;
  std::memcpy(&value, slots[lane], sizeof(T));
  return value;
}

}  // namespace emulator

#define threadIdx (::emulator::self->index)
#define blockIdx (::emulator::block_index())
#define blockDim (::emulator::block_size)
#define gridDim (::emulator::grid_size)

inline void __syncthreads(emulator::Place at = emulator::Place::current()) { emulator::meet_block(at); }
inline void __syncwarp(unsigned mask = 0xffffffffu, emulator::Place at = emulator::Place::current()) {
  emulator::exchange(mask, 0, at);
}
template <class T>
inline T __shfl_sync(unsigned mask, T v, int lane, emulator::Place at = emulator::Place::current()) {
  return emulator::value_of<T>(emulator::exchange(mask, v, at), lane % emulator::kWarp);
}
template <class T>
inline T __shfl_xor_sync(unsigned mask, T v, int delta, emulator::Place at = emulator::Place::current()) {
  return emulator::value_of<T>(emulator::exchange(mask, v, at), emulator::self->lane ^ delta);
}
inline unsigned __ballot_sync(unsigned mask, bool yes, emulator::Place at = emulator::Place::current()) {
  const auto slots = emulator::exchange(mask, yes, at);
  unsigned result = 0;
  for (int i = 0; i < emulator::kWarp; ++i) result |= unsigned(emulator::value_of<bool>(slots, i)) << i;
  return result;
}
inline bool __any_sync(unsigned mask, bool yes, emulator::Place at = emulator::Place::current()) {
  return __ballot_sync(mask, yes, at) != 0;
}
inline bool __all_sync(unsigned mask, bool yes, emulator::Place at = emulator::Place::current()) {
  return __ballot_sync(mask, yes, at) == 0xffffffffu;
}
