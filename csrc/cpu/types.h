// The element types of the CPU kernels, and how their loops are named: those files are compiled once for each
// instruction set, with SEMIMATCH_CPU naming it.
#pragma once

#include <cstdint>

#ifndef SEMIMATCH_CPU
#define SEMIMATCH_CPU baseline
#endif

// Declares the function template `function<T>`, which returns the Kernels<T> of an op, once for each instruction set.
// SEMIMATCH_BEST (dispatch.h) calls the one for this machine.
#define SEMIMATCH_DECLARE_KERNELS(Kernels, function) \
  namespace baseline {                               \
  template <class T>                                 \
  Kernels<T> function();                             \
  }                                                  \
  namespace avx2 {                                   \
  template <class T>                                 \
  Kernels<T> function();                             \
  }                                                  \
  namespace avx512 {                                 \
  template <class T>                                 \
  Kernels<T> function();                             \
  }

namespace semimatch {

// The 16-bit floating types, as bits.
struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

// The accumulate type of an element type.
template <class T>
struct Accumulate {
  using Type = float;
};
template <>
struct Accumulate<double> {
  using Type = double;
};

}  // namespace semimatch
