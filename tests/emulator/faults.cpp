// Kernels with mistakes, for the test of the emulator itself; see tests/test_cuda_emulator.py.
#include "emulator.h"

#include "ptx.h"

namespace semimatch {
namespace {

constexpr int kThreads = 64;

// Each thread reads what its neighbour wrote; `kBarrier` false: without waiting for it.
template <bool kBarrier>
__global__ void neighbours(float* out) {
  SEMIMATCH_SHARED(shared, float[kThreads]);
  shared[threadIdx.x] = float(threadIdx.x);
  if (kBarrier) __syncthreads();
  out[threadIdx.x] = shared[(threadIdx.x + 1) % kThreads];
}

__global__ void one_leaves(float* out) {
  if (threadIdx.x == 5) return;
  __syncthreads();
  out[threadIdx.x] = 1;
}

__global__ void two_places(float* out) {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  out[threadIdx.x] = 1;
}

__global__ void half_a_warp(float* out) {
  float sum = 1;
  if (threadIdx.x % 32 < 16) sum += __shfl_xor_sync(0xffffffff, sum, 8);
  out[threadIdx.x] = sum;
}

__global__ void sum_of_warp(float* out) {
  float sum = float(threadIdx.x);
  for (int delta = 16; delta > 0; delta /= 2) sum += __shfl_xor_sync(0xffffffff, sum, delta);
  out[threadIdx.x] = sum;
}

// Blocks of a cluster read each other's shared memory; `kBarrier` false: without waiting.
template <bool kBarrier>
__global__ void cluster_neighbours(float* out) {
  SEMIMATCH_SHARED(shared, float[kThreads]);
  shared[threadIdx.x] = float(cluster_rank());
  if (kBarrier) cluster_barrier();
  const float seen = shared_of(&shared[threadIdx.x], (cluster_rank() + 1) % 4)[0];
  if (kBarrier) cluster_barrier();
  out[blockIdx.x * kThreads + threadIdx.x] = seen;
}

__global__ void beyond_cluster(float* out) {
  SEMIMATCH_SHARED(shared, float[1]);
  out[0] = *shared_of(&shared[0], 2);
}

__global__ void beyond_array(float* out) {
  SEMIMATCH_SHARED(shared, float[kThreads]);
  shared[threadIdx.x + 1] = 1;
  out[threadIdx.x] = shared[threadIdx.x];
}

}  // namespace
}  // namespace semimatch

// Runs a kernel by its name on out[256]; returns what the emulator says of it, empty if nothing.
extern "C" const char* emulator_fault(const char* name, float* out) {
  using namespace semimatch;
  static std::string said;
  const std::string which = name;
  const Geometry one = {1, kThreads}, cluster = {4, kThreads, 4};
  said.clear();
  try {
    if (which == "neighbours") launch(name, neighbours<true>, one, nullptr, out);
    if (which == "race") launch(name, neighbours<false>, one, nullptr, out);
    if (which == "one_leaves") launch(name, one_leaves, one, nullptr, out);
    if (which == "two_places") launch(name, two_places, one, nullptr, out);
    if (which == "half_a_warp") launch(name, half_a_warp, one, nullptr, out);
    if (which == "sum_of_warp") launch(name, sum_of_warp, one, nullptr, out);
    if (which == "cluster") launch(name, cluster_neighbours<true>, cluster, nullptr, out);
    if (which == "cluster_race") launch(name, cluster_neighbours<false>, cluster, nullptr, out);
    if (which == "beyond_cluster") launch(name, beyond_cluster, one, nullptr, out);
    if (which == "beyond_array") launch(name, beyond_array, one, nullptr, out);
    if (which == "too_many_threads") launch(name, sum_of_warp, {1, 2048}, nullptr, out);
  } catch (const std::exception& error) {
    said = error.what();
  }
  return said.c_str();
}
