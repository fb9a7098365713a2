// Choice of the instruction set at run time.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <cstring>

namespace semimatch {

enum class CpuSet { kBaseline, kAvx2, kAvx512 };

// The best that this machine has among those that were compiled (SEMIMATCH_CPU_X86: all three). Like PyTorch's own
// choice, it is held down by ATEN_CPU_CAPABILITY = default | avx2 | avx512.
inline CpuSet cpu_set() {
#ifdef SEMIMATCH_CPU_X86
  static const CpuSet set = [] {
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    const CpuSet best = avx512 ? CpuSet::kAvx512 : avx2 ? CpuSet::kAvx2 : CpuSet::kBaseline;
    const char* wish = std::getenv("ATEN_CPU_CAPABILITY");
    if (wish != nullptr && std::strcmp(wish, "default") == 0) return CpuSet::kBaseline;
    if (wish != nullptr && std::strcmp(wish, "avx2") == 0) return std::min(best, CpuSet::kAvx2);
    return best;
  }();
  return set;
#else
  return CpuSet::kBaseline;
#endif
}

inline const char* name_of(CpuSet set) {
  return set == CpuSet::kAvx512 ? "avx512" : set == CpuSet::kAvx2 ? "avx2" : "baseline";
}

}  // namespace semimatch

// Calls a function that exists once for each instruction set (SEMIMATCH_DECLARE_KERNELS): the best this machine has.
#ifdef SEMIMATCH_CPU_X86
#define SEMIMATCH_BEST(...)                                                 \
  (semimatch::cpu_set() == semimatch::CpuSet::kAvx512 ? avx512::__VA_ARGS__ \
   : semimatch::cpu_set() == semimatch::CpuSet::kAvx2 ? avx2::__VA_ARGS__   \
                                                      : baseline::__VA_ARGS__)
#else
#define SEMIMATCH_BEST(...) (baseline::__VA_ARGS__)
#endif
