// The maths of `pseudo_labels` beside those of `match` and of the forward-backward check.
#pragma once

#include "match.h"
#include "mutual.h"

namespace semimatch {

// Of the part of a column that has been read so far: its best cell, and the sums of e and e t (see match.h). NaN is the
// best there is, and makes the sums NaN.
template <class V>
struct LabelStats {
  Best<V> best;
  V mass, t;
};

template <class V>
SEMIMATCH_FN LabelStats<V> no_label() {
  return {no_best<V>(), V{}, V{}};
}

// Refers the sums to another top.
template <class V>
SEMIMATCH_FN void raise_top(LabelStats<V>& s, V top, typename Number<V>::Scalar scale) {
  const V shift = exponent(s.best.top, top, scale);
  const V factor = Number<V>::exp2(shift);
  s.t = factor * (s.t + shift * s.mass);
  s.mass = factor * s.mass;
  s.best.top = top;
}

// Adds n entries, whose indices index(i) are higher than those before.
template <int n, class V, class Indices>
SEMIMATCH_FN void add(LabelStats<V>& s, const V* c, typename Number<V>::Scalar scale, const Indices& index) {
  Best<V> best = s.best;
#pragma unroll
  for (int i = 0; i < n; ++i) take(best, c[i], Number<V>::same(index(i)));
  raise_top(s, best.top, scale);
  s.best.index = best.index;
  V mass = {}, sum_t = {};
#pragma unroll
  for (int i = 0; i < n; ++i) {
    const V t = exponent(c[i], best.top, scale);
    const V e = Number<V>::exp2(t);
    mass += e;
    sum_t += e * t;
  }
  s.mass += mass;
  s.t += sum_t;
}

// Adds another part of the same column.
template <class A>
SEMIMATCH_FN void merge(LabelStats<A>& s, LabelStats<A> other, A scale) {
  const Best<A> best = better(s.best, other.best);
  raise_top(s, best.top, scale);
  raise_top(other, best.top, scale);
  s.best = best;
  s.mass += other.mass;
  s.t += other.t;
}

// What an entry adds to minus the entropy of its column where eps is added to each probability: (p + eps) ln(p + eps).
// `top` is the column's largest entry and `score` its probability, 0 where every entry is excluded.
template <class V>
SEMIMATCH_FN V entropy_term(V c, V top, V score, typename Number<V>::Scalar scale, typename Number<V>::Scalar eps) {
  const V p = Number<V>::exp2(exponent(c, top, scale)) * score + eps;
  return p * Number<V>::log(p);
}

// Cells (x1, y1) to (x2, y2), both included.
struct Box {
  double x1, y1, x2, y2;
  SEMIMATCH_FN bool holds(int64_t cell, Grid grid) const {
    const double x = double(cell % grid.width), y = double(cell / grid.width);
    return x >= x1 && x <= x2 && y >= y1 && y <= y2;
  }
};

}  // namespace semimatch
