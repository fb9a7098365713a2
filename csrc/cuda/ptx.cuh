// What kernels say in PTX, as functions. tests/emulator/ptx.h has their twins.
#pragma once

#include <cstdint>

#ifdef SEMIMATCH_EMULATOR
#include <ptx.h>
#else

namespace semimatch {

// --- thread-block clusters, sm_90 and newer; host code launches no kernel with them elsewhere ---

__device__ __forceinline__ void cluster_barrier() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
#else
  __trap();
#endif
}

// The number of this block in its cluster.
__device__ __forceinline__ int cluster_rank() {
  uint32_t rank = 0;
#if __CUDA_ARCH__ >= 900
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
#endif
  return static_cast<int>(rank);
}

// The place in block `rank` of the cluster that corresponds to `address` in this block's shared memory.
template <class T>
__device__ __forceinline__ T* shared_of(T* address, int rank) {
  uint64_t result = reinterpret_cast<uint64_t>(address);
#if __CUDA_ARCH__ >= 900
  asm("mapa.u64 %0, %1, %2;" : "=l"(result) : "l"(address), "r"(rank));
#endif
  return reinterpret_cast<T*>(result);
}

}  // namespace semimatch
#endif
