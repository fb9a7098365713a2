// What every kernel shares, on the host and on the device: the function attribute, and what a "number" is.
#pragma once

#include <cmath>
#include <cstdint>

// Small functions are always inlined: on the host they take part in vectorised loops and are compiled once for each
// instruction set, where an out-of-line copy of one set must never be called by another.
#ifdef __CUDACC__
#define SEMIMATCH_FN __host__ __device__ __forceinline__
#else
#define SEMIMATCH_FN inline __attribute__((always_inline))
#endif

namespace semimatch {

// The maths is written once for a number type V, which is float or double on the device, and a vector of them on the
// CPU. Number<V> says what goes with it:
//   Scalar      the element type
//   Index       an integer of the same width and shape, as comparisons of V select it
//   kExp2Floor  at this exponent and below, exp2 gives exactly zero
//   exp2(t)     2^t for t in [kExp2Floor, 0]; exactly 1 at 0, NaN for NaN
//   log(x)      the natural logarithm of a normal number above 0; NaN for all others
//   larger(a, b)  a where a > b, else b: b where either is NaN
//   same(i)     the Index that holds i everywhere
template <class V>
struct Number;

template <>
struct Number<float> {
  using Scalar = float;
  using Index = int32_t;
  static constexpr float kExp2Floor = -160;  // below the smallest subnormal number
  static SEMIMATCH_FN float exp2(float t) {
#ifdef __CUDA_ARCH__
    // One instruction. exp2f is the same one amid three that keep numbers below 2^-126, which are sums' and gradients'
    // rounding beside the 1 of the largest entry.
    float e;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(e) : "f"(t));
    return e;
#else
    return ::exp2f(t);
#endif
  }
  static SEMIMATCH_FN float larger(float a, float b) { return a > b ? a : b; }
  static SEMIMATCH_FN float log(float x) { return x > 0 ? ::logf(x) : NAN; }
  static SEMIMATCH_FN Index same(int64_t i) { return Index(i); }
};

template <>
struct Number<double> {
  using Scalar = double;
  using Index = int64_t;
  static constexpr double kExp2Floor = -1100;
  static SEMIMATCH_FN double exp2(double t) { return ::exp2(t); }
  static SEMIMATCH_FN double larger(double a, double b) { return a > b ? a : b; }
  static SEMIMATCH_FN double log(double x) { return x > 0 ? ::log(x) : NAN; }
  static SEMIMATCH_FN Index same(int64_t i) { return i; }
};

// a * b, rounded: never fused with a sum that it is part of. V is a number or a vector of them.
template <class V>
SEMIMATCH_FN V product(V a, V b) {
#ifdef __CUDA_ARCH__
  if constexpr (sizeof(V) == sizeof(float)) {
    return __fmul_rn(a, b);
  } else {
    return __dmul_rn(a, b);
  }
#else
  V p = a * b;
#if defined(__x86_64__)
  asm("" : "+v"(p));
#elif defined(__aarch64__)
  asm("" : "+w"(p));
#else
  asm("" : "+m"(p));
#endif
  return p;
#endif
}

// Cells of one side, row-major: cell i lies in column i % width, row i / width.
struct Grid {
  int height;
  int width;
};

// Position of a cell relative to the centre of its grid, in cells: half-integers, exact in any float type. The ends are
// symmetric, so that a match wholly on the last cell comes out as exactly +1.
template <class A>
struct Position {
  A x;
  A y;
};

template <class A>
SEMIMATCH_FN Position<A> position_of(Grid grid, int cell) {
  return {A(cell % grid.width) - A(0.5) * A(grid.width - 1), A(cell / grid.width) - A(0.5) * A(grid.height - 1)};
}

// Factor from cells to the coordinates in [-1, 1]; 0 for a grid one cell wide, whose only coordinate is 0.
template <class A>
SEMIMATCH_FN A per_cell(int extent) {
  return extent > 1 ? A(2) / A(extent - 1) : A(0);
}

}  // namespace semimatch
