// Vectors of float or double for the CPU kernels (GCC and Clang vector extension), as wide as the registers of the
// instruction set that this file is compiled for, with conversion from and to the element types of tensors.
#pragma once

#ifdef __x86_64__
#include <immintrin.h>
#endif

#include <cstring>
#include <type_traits>

#include "../common.h"
#include "types.h"

namespace semimatch {
namespace SEMIMATCH_CPU {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

constexpr int kFloats = kVectorBytes / 4;
constexpr int kDoubles = kVectorBytes / 8;

template <class T, int kCount>
using Vec __attribute__((vector_size(kCount * sizeof(T)))) = T;

using FloatVec = Vec<float, kFloats>;
using DoubleVec = Vec<double, kDoubles>;

// a > b ? a : b. On x86 one instruction, which compilers make of the vectors' ?: in some places only. (The unmasked
// form of AVX-512 has an operand that GCC 12 warns is not initialised.)
template <class V>
SEMIMATCH_FN V larger_lanes(V a, V b) {
#if defined(__AVX512F__)
  if constexpr (sizeof(a[0]) == 4) {
    return (V)_mm512_maskz_max_ps(__mmask16(-1), (__m512)a, (__m512)b);
  } else {
    return (V)_mm512_maskz_max_pd(__mmask8(-1), (__m512d)a, (__m512d)b);
  }
#elif defined(__AVX2__)
  if constexpr (sizeof(a[0]) == 4) {
    return (V)_mm256_max_ps((__m256)a, (__m256)b);
  } else {
    return (V)_mm256_max_pd((__m256d)a, (__m256d)b);
  }
#elif defined(__x86_64__)
  if constexpr (sizeof(a[0]) == 4) {
    return (V)_mm_max_ps((__m128)a, (__m128)b);
  } else {
    return (V)_mm_max_pd((__m128d)a, (__m128d)b);
  }
#else
  return a > b ? a : b;
#endif
}

// 2^t by 2^n * 2^f, n the nearest integer. The largest relative errors of the polynomials on [-1/2, 1/2] are 2.0e-9 and
// 3.4e-18 (least maximum, found by a weighted least squares fit in 50 digits); the constant term is 1, so that 2^0
// is 1.
template <class V, class Bits, int kTerms>
SEMIMATCH_FN V exp2_polynomial(V t, const typename Number<V>::Scalar (&terms)[kTerms], int mantissa_bits, int bias) {
  using Scalar = typename Number<V>::Scalar;
  // Adding 1.5 * 2^mantissa_bits rounds to an integer, which the low bits of the sum then hold, here plus the bias.
  const Scalar round = Scalar(1.5) * Scalar(int64_t(1) << mantissa_bits) + Scalar(bias);
  const V rounded = t + round;
  const V f = t - (rounded - round);
  V p = V{} + terms[kTerms - 1];
#pragma GCC unroll 16
  for (int k = kTerms - 2; k >= 0; --k) p = p * f + terms[k];
  // At n = -bias the exponent field is 0, and so is the number. A product, not a sum of bits, so that NaN stays NaN.
  const Bits power = (Bits)rounded << mantissa_bits;
  return (p * f + Scalar(1)) * (V)power;
}

// ln x = n ln 2 + ln m with m in [sqrt(1/2), sqrt(2)), whose logarithm is 2 artanh((m - 1) / (m + 1)), by kTerms terms
// of its series. `half_root` is sqrt(1/2), as bits.
template <class V, int kTerms>
SEMIMATCH_FN V log_series(V x, int mantissa_bits, int64_t half_root) {
  using Scalar = typename Number<V>::Scalar;
  using Bits = typename Number<V>::Index;
  const Bits bits = (Bits)x;
  const Bits n = (bits - Number<V>::same(half_root)) >> mantissa_bits;
  const V m = (V)(bits - (n << mantissa_bits));
  const V s = (m - Scalar(1)) / (m + Scalar(1));
  const V square = s * s;
  V series = V{} + Scalar(1) / Scalar(2 * kTerms - 1);
#pragma GCC unroll 16
  for (int k = kTerms - 2; k >= 0; --k) series = series * square + Scalar(1) / Scalar(2 * k + 1);
  const V result = __builtin_convertvector(n, V) * Scalar(0.6931471805599453) + Scalar(2) * (s * series);
  return x > Scalar(0) ? result : V{} + Scalar(NAN);
}

}  // namespace SEMIMATCH_CPU

template <>
struct Number<SEMIMATCH_CPU::FloatVec> {
  using V = SEMIMATCH_CPU::FloatVec;
  using Scalar = float;
  using Index = SEMIMATCH_CPU::Vec<int32_t, SEMIMATCH_CPU::kFloats>;
  static constexpr float kExp2Floor = -127;
  static SEMIMATCH_FN Index same(int64_t i) { return Index{} + int32_t(i); }
  static SEMIMATCH_FN V larger(V a, V b) { return SEMIMATCH_CPU::larger_lanes(a, b); }
  static SEMIMATCH_FN V log(V x) { return SEMIMATCH_CPU::log_series<V, 6>(x, 23, 0x3f3504f3); }
  static SEMIMATCH_FN V exp2(V t) {
    constexpr float kTerms[] = {0.69314720286038231536f,   0.24022647912924153568f,   0.055503324627446584477f,
                                0.0096184374028959815889f, 0.0013398877057415997859f, 0.0001535335595242582943f};
    return SEMIMATCH_CPU::exp2_polynomial<V, SEMIMATCH_CPU::Vec<uint32_t, SEMIMATCH_CPU::kFloats>>(t, kTerms, 23, 127);
  }
};

template <>
struct Number<SEMIMATCH_CPU::DoubleVec> {
  using V = SEMIMATCH_CPU::DoubleVec;
  using Scalar = double;
  using Index = SEMIMATCH_CPU::Vec<int64_t, SEMIMATCH_CPU::kDoubles>;
  static constexpr double kExp2Floor = -1023;
  static SEMIMATCH_FN Index same(int64_t i) { return Index{} + i; }
  static SEMIMATCH_FN V larger(V a, V b) { return SEMIMATCH_CPU::larger_lanes(a, b); }
  static SEMIMATCH_FN V log(V x) { return SEMIMATCH_CPU::log_series<V, 12>(x, 52, 0x3fe6a09e667f3bcd); }
  static SEMIMATCH_FN V exp2(V t) {
    constexpr double kTerms[] = {0.69314718055994532581,     0.24022650695910131268,   0.055504108664820082969,
                                 0.0096181291075941173987,   0.0013333558146774671942, 0.00015403530457114978613,
                                 0.000015252733493084638254, 1.3215435281044025879e-6, 1.0178199587774830819e-7,
                                 7.073783443419066792e-9,    4.4347691132207912283e-10};
    return SEMIMATCH_CPU::exp2_polynomial<V, SEMIMATCH_CPU::Vec<uint64_t, SEMIMATCH_CPU::kDoubles>>(t, kTerms, 52,
                                                                                                    1023);
  }
};

namespace SEMIMATCH_CPU {

// For an element type: the vector that the maths is done in, -inf, and conversion of whole vectors.
template <class T>
struct Element;

template <>
struct Element<float> {
  using V = FloatVec;
  static constexpr float kLowest = -__builtin_inff();
  static SEMIMATCH_FN V widen(FloatVec v) { return v; }
  static SEMIMATCH_FN FloatVec narrow(V v) { return v; }
};

template <>
struct Element<double> {
  using V = DoubleVec;
  static constexpr double kLowest = -__builtin_inf();
  static SEMIMATCH_FN V widen(DoubleVec v) { return v; }
  static SEMIMATCH_FN DoubleVec narrow(V v) { return v; }
};

using Halves = Vec<uint16_t, kFloats>;
using Words = Vec<uint32_t, kFloats>;

template <>
struct Element<BFloat16> {
  using V = FloatVec;
  static constexpr BFloat16 kLowest = {0xff80};
  static SEMIMATCH_FN V widen(Halves v) { return (V)(__builtin_convertvector(v, Words) << 16); }
  static SEMIMATCH_FN Halves narrow(V v) {
    const Words bits = (Words)v;
    const Words nearest = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;  // ties to even
    const Words nan = (bits >> 16) | 0x40;
    return __builtin_convertvector(v == v ? nearest : nan, Halves);
  }
};

template <>
struct Element<Float16> {
  using V = FloatVec;
  static constexpr Float16 kLowest = {0xfc00};
  static SEMIMATCH_FN V widen(Halves v) {
    const Words h = __builtin_convertvector(v, Words);
    const Words magnitude = (h & 0x7fff) << 13;
    const Words normal = magnitude + (112u << 23);            // the exponent's bias goes from 15 to 127
    const V tiny = (V)(magnitude + (113u << 23)) - 0x1p-14f;  // below 2^-14 there is no implicit one
    const Words special = magnitude + (224u << 23);           // infinities and NaN
    const Words finite = magnitude < (1u << 23) ? (Words)tiny : normal;
    return (V)((magnitude < (31u << 23) ? finite : special) | ((h & 0x8000) << 16));
  }
  static SEMIMATCH_FN Halves narrow(V v) {
    const Words bits = (Words)v;
    const Words magnitude = bits & 0x7fffffff;
    const Words normal = (magnitude - (112u << 23) + 0xfff + ((magnitude >> 13) & 1)) >> 13;  // ties to even
    const Words tiny = (Words)((V)magnitude + 0.5f) - (126u << 23);  // the sum rounds to a multiple of 2^-24
    const Words finite = magnitude < (113u << 23) ? tiny : normal;
    const Words nan = (Words{} + 0x7e00);
    const Words infinite = magnitude > (255u << 23) ? nan : (Words{} + 0x7c00);
    const Words large = magnitude < 0x477ff000 ? finite : infinite;  // from 65520 on there is only infinity
    return __builtin_convertvector(large | ((bits >> 16) & 0x8000), Halves);
  }
};

template <class T>
constexpr int kLanes = sizeof(typename Element<T>::V) / sizeof(typename Number<typename Element<T>::V>::Scalar);

// Loads n of the lanes, `stride` elements apart; the others hold -inf. kDense promises all lanes at stride 1.
template <bool kDense, class T>
SEMIMATCH_FN typename Element<T>::V load(const T* from, int64_t stride, int n) {
  using Raw = decltype(Element<T>::narrow(typename Element<T>::V{}));
  Raw raw;
  if constexpr (kDense) {
    std::memcpy(&raw, from, sizeof(raw));
  } else {
    T lanes[kLanes<T>];
    for (int i = 0; i < kLanes<T>; ++i) lanes[i] = i < n ? from[i * stride] : Element<T>::kLowest;
    std::memcpy(&raw, lanes, sizeof(raw));
  }
  return Element<T>::widen(raw);
}

// 0, 1, 2, ...
template <class V>
SEMIMATCH_FN typename Number<V>::Index lane_numbers() {
  typename Number<V>::Index lane;
  for (int i = 0; i < int(sizeof(lane) / sizeof(lane[0])); ++i) lane[i] = i;
  return lane;
}

// v with lane i + kBy in place of lane i, around the end.
template <int kBy, class Lanes>
SEMIMATCH_FN Lanes rotated(const Lanes& v) {
  constexpr int kCount = sizeof(Lanes) / sizeof(v[0]);
  Vec<std::conditional_t<sizeof(v[0]) == 8, int64_t, int32_t>, kCount> from;
#pragma GCC unroll 16
  for (int i = 0; i < kCount; ++i) from[i] = (i + kBy) % kCount;
  return __builtin_shuffle(v, from);
}

// Combines the lanes of a vector by halves.
template <int kHalf, class Lanes, class F>
SEMIMATCH_FN auto reduce(const Lanes& v, const F& combine) {
  if constexpr (kHalf == 0) {
    return v[0];
  } else {
    return reduce<kHalf / 2>(combine(v, rotated<kHalf>(v)), combine);
  }
}
template <class Lanes, class F>
SEMIMATCH_FN auto reduce(const Lanes& v, const F& combine) {
  return reduce<int(sizeof(Lanes) / sizeof(v[0]) / 2)>(v, combine);
}
template <class V>
SEMIMATCH_FN auto sum_of_lanes(const V& v) {
  return reduce(v, [](auto a, auto b) __attribute__((always_inline)) { return a + b; });
}
template <class V>
SEMIMATCH_FN auto largest_lane(const V& v) {
  return reduce(v, [](auto a, auto b) __attribute__((always_inline)) { return b > a ? b : a; });
}
template <class V>
SEMIMATCH_FN auto lowest_lane(const V& v) {
  return reduce(v, [](auto a, auto b) __attribute__((always_inline)) { return b < a ? b : a; });
}

// Stores the first n lanes next to each other.
template <bool kDense, class T>
SEMIMATCH_FN void store(T* to, typename Element<T>::V v, int n) {
  const auto raw = Element<T>::narrow(v);
  if constexpr (kDense) {
    std::memcpy(to, &raw, sizeof(raw));
  } else {
    std::memcpy(to, &raw, n * sizeof(T));
  }
}

}  // namespace SEMIMATCH_CPU
}  // namespace semimatch
