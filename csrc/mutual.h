// The maths of `mutual_filter`: C (C / row) (C / column) with the largest entries of its row and column, and its
// gradient.
#pragma once

#include "common.h"

namespace semimatch {

// The largest of the entries seen so far and its index, the lowest among equals; NaN is larger than anything.
template <class V>
struct Best {
  V top;
  typename Number<V>::Index index;
};

template <class V>
SEMIMATCH_FN Best<V> no_best() {
  return {V{} - typename Number<V>::Scalar(INFINITY), Number<V>::same(0)};
}

// Takes entries with higher indices than those before.
template <class V>
SEMIMATCH_FN void take(Best<V>& s, V c, typename Number<V>::Index index) {
  const auto ours_stays = (c <= s.top) | (s.top != s.top);
  s.top = ours_stays ? s.top : c;
  s.index = ours_stays ? s.index : index;
}

// The better of two in any order.
template <class A>
SEMIMATCH_FN Best<A> better(Best<A> a, Best<A> b) {
  const bool a_nan = a.top != a.top, b_nan = b.top != b.top;
  const bool equal = a.top == b.top || (a_nan && b_nan);
  const bool b_wins = equal ? b.index < a.index : b_nan || b.top > a.top;
  return b_wins ? b : a;
}

// What entries are divided by: the largest, replaced by 1e-30 if it is 0; or plus eps where there is one.
template <class A>
struct Divisor {
  bool has_eps;
  A eps;
  SEMIMATCH_FN A of(A largest) const {
    if (has_eps) return largest + eps;
    return largest == A(0) ? A(1e-30) : largest;
  }
};

// Whether multiplying by 1 / d may stand for dividing by d: not near the ends of the range, where that overflows or
// loses digits.
template <class A>
SEMIMATCH_FN bool has_inverse(A d) {
  constexpr A kLeast = sizeof(A) == sizeof(float) ? A(0x1p-120) : A(0x1p-1000);
  const A size = d < A(0) ? -d : d;
  const bool ends = (size > A(0) && size < kLeast) || (size > A(1) / kLeast && size < A(INFINITY));
  return !ends;
}

// Divides by what `by` was made of by `divider_of`.
template <bool kDivide, class V>
SEMIMATCH_FN V divided(V c, V by) {
  if constexpr (kDivide) {
    return c / by;
  } else {
    return c * by;
  }
}

template <class A>
SEMIMATCH_FN A divider_of(bool divide, A divisor) {
  return divide ? divisor : A(1) / divisor;
}

// The filter and its slope share (C / row) (C / column).
template <bool kDivide, class V>
SEMIMATCH_FN V ratio_of(V c, V row, V column) {
  return divided<kDivide>(c, row) * divided<kDivide>(c, column);
}

}  // namespace semimatch
