// Reductions over the blocks of a cluster, through their shared memory; a block without one is a cluster of itself.
#pragma once

#include "launch.h"
#include "ptx.cuh"

namespace semimatch {

// All threads of the blocks meet, and see what the others have written to shared memory.
__device__ __forceinline__ void meet_in_cluster(int blocks) {
  if (blocks > 1) {
    cluster_barrier();
  } else {
    __syncthreads();
  }
}

// What blocks first, first + step, ... hold at this place of their shared memory, merged in that order.
template <class State, class Merge>
__device__ __forceinline__ State over_cluster(State* mine, int first, int step, int blocks, const Merge& merge) {
  State s = *shared_of(mine, first);
  for (int i = 1; i < blocks; ++i) merge(s, *shared_of(mine, first + i * step));
  return s;
}

}  // namespace semimatch
