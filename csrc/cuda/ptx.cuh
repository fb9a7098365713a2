// What kernels say in PTX, as functions. tests/emulator/ptx.h has their twins.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

#ifdef SEMIMATCH_EMULATOR
#include <ptx.h>
#else

namespace semimatch {

// --- 16 bytes of global memory at once, X a struct of that size: nvcc makes several stores of some assignments ---

template <class X>
__device__ __forceinline__ void store_16_bytes(void* to, const X& value) {
  static_assert(sizeof(X) == 16);
  uint32_t w[4];
  memcpy(w, &value, 16);
  asm volatile("st.global.v4.b32 [%0], {%1,%2,%3,%4};"
               :
               : "l"(__cvta_generic_to_global(to)), "r"(w[0]), "r"(w[1]), "r"(w[2]), "r"(w[3])
               : "memory");
}

template <class X>
__device__ __forceinline__ X load_16_bytes(const void* from) {
  static_assert(sizeof(X) == 16);
  const uint4 words = *static_cast<const uint4*>(from);
  X value;
  memcpy(&value, &words, 16);
  return value;
}

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

// --- products in tensor cores, sm_80 and newer: a warp adds a product of small matrices to sums in float ---
//
// Where the numbers lie, with g = lane / 4 and t = lane % 4:
//   d, 16 x 8:        d[0], d[1] at (g, 2 t), (g, 2 t + 1); d[2], d[3] at row g + 8
//   halves, k = 16:   a[0] at (g, 2 t .. 2 t + 1), a[1] at row g + 8, a[2], a[3] the same 8 columns on;
//                     b[0] at (2 t .. 2 t + 1, g), b[1] 8 rows on
//   tf32, k = 8:      a[0] at (g, t), a[1] at row g + 8, a[2], a[3] the same 4 columns on;
//                     b[0] at (t, g), b[1] 4 rows on

// T: __half or __nv_bfloat16, two to a word.
template <class T>
__device__ __forceinline__ void add_product_of_halves(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  if constexpr (std::is_same_v<T, __half>) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  } else {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
}

// The words are floats of which tensor cores take the first 19 bits: what tf32() returns, or any half.
__device__ __forceinline__ void add_product_of_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ __forceinline__ uint32_t bits_of(float value) { return __float_as_uint(value); }

// Rounded to 10 bits after the point, of the exponent and range of float.
__device__ __forceinline__ float tf32(float value) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(value));
  return __uint_as_float(bits);
}

}  // namespace semimatch
#endif
