// The maths of `match`: softmax statistics over one side of a correlation, and their gradient.
//
// Exponentials are taken to base 2, of differences from the largest entry: with scale = log2(e) / temperature,
//   t = (c - top) * scale,  e = 2^t,  sums of e, e x, e y and e t.
// Differences are exact where it matters (entries near the largest), whatever the common offset of the column.
//
// Edge rules. Entries of -inf are excluded: t is clamped to a finite floor at which e is exactly zero, so that 0 * inf
// is never formed. NaN fails every comparison, is never the largest entry, and makes the sums NaN; so does +inf, as inf
// - inf. A cell with only -inf has sums of zero, which an ordinary one never has: its largest entry adds 1.
#pragma once

#include <cmath>

#include "common.h"

namespace semimatch {

constexpr double kLog2E = 1.4426950408889634;
constexpr double kLn2 = 0.6931471805599453;

template <class V>
SEMIMATCH_FN V lowest() {
  return V{} - typename Number<V>::Scalar(INFINITY);
}

// Statistics of the part of a column that has been read so far.
template <class V>
struct Stats {
  typename Number<V>::Index index;  // position of the largest entry, the lowest among equals
  V top;                            // the largest entry
  V mass, x, y, t;                  // sums of e, e * x, e * y, e * t
};

template <class V>
SEMIMATCH_FN Stats<V> no_stats() {
  return {Number<V>::same(0), lowest<V>(), V{}, V{}, V{}, V{}};
}

// t of an entry, clamped; `top` may be -inf (nothing admissible so far), the entry may be anything.
template <class V>
SEMIMATCH_FN V exponent(V c, V top, typename Number<V>::Scalar scale) {
  const V reference = top == lowest<V>() ? V{} : top;
  const V t = (c - reference) * scale;
  const V floor = V{} + Number<V>::kExp2Floor;
  return t < floor ? floor : t;  // keeps NaN
}

// Refers the sums to a larger top.
template <class V>
SEMIMATCH_FN void raise_top(Stats<V>& s, V top, typename Number<V>::Scalar scale) {
  const V shift = exponent(s.top, top, scale);
  const V factor = Number<V>::exp2(shift);
  s.t = factor * (s.t + shift * s.mass);
  s.mass = factor * s.mass;
  s.x = factor * s.x;
  s.y = factor * s.y;
  s.top = top;
}

// Adds n <= kMost entries: one sweep that loads them and finds the largest, one for its index, one for the sums, which
// are taken by themselves before they join the rest: two short chains of additions round less than a long one. load(i)
// is entry i. `at` walks along: index(i) is the cell of entry i, ascending; x() and y() the position of the current
// one.
template <int kMost, class V, class Load, class At>
SEMIMATCH_FN void add(Stats<V>& s, const Load& load, int n, typename Number<V>::Scalar scale, At& at) {
  V c[kMost];
  V top = s.top;
#pragma unroll
  for (int i = 0; i < n; ++i) {
    c[i] = load(i);
    top = c[i] > top ? c[i] : top;
  }
  auto index = s.index;
#pragma unroll
  for (int i = n - 1; i >= 0; --i) index = c[i] == top ? Number<V>::same(at.index(i)) : index;
  s.index = top > s.top ? index : s.index;
  raise_top(s, top, scale);
  V mass = {}, x = {}, y = {}, sum_t = {};
#pragma unroll
  for (int i = 0; i < n; ++i) {
    const V t = exponent(c[i], top, scale);
    const V e = Number<V>::exp2(t);
    mass += e;
    x += e * at.x();
    y += e * at.y();
    sum_t += e * t;
    at.next();
  }
  s.mass += mass;
  s.x += x;
  s.y += y;
  s.t += sum_t;
}

// Adds the statistics of another part of the same column. Independent of which part comes first but for rounding.
template <class V>
SEMIMATCH_FN void merge(Stats<V>& s, Stats<V> other, typename Number<V>::Scalar scale) {
  const auto larger = other.top > s.top;
  const auto equal = other.top == s.top;
  const auto lower = other.index < s.index;
  const V top = larger ? other.top : s.top;
  const auto lowest = lower ? other.index : s.index;
  const auto ours_or_lowest = equal ? lowest : s.index;
  s.index = larger ? other.index : ours_or_lowest;
  raise_top(s, top, scale);
  raise_top(other, top, scale);
  s.mass += other.mass;
  s.x += other.x;
  s.y += other.y;
  s.t += other.t;
}

// Results of one side: arrays over [batch, cells], coords [batch, cells, 2].
template <class A>
struct Results {
  A* coords;
  A* score;
  A* entropy;
  A* logsumexp;
  int64_t* index;
};

// Writes the results of cell number i.
template <class A>
SEMIMATCH_FN void finish(const Stats<A>& s, int64_t i, Grid grid, A inverse_temperature, const Results<A>& out) {
  const bool excluded = s.mass == A(0);
  const A score = excluded ? A(0) : A(1) / s.mass;
  const A log_mass = excluded ? A(0) : std::log(s.mass);
  // Divided by half the extent rather than multiplied by its inverse: exactly +-1 at the ends.
  out.coords[2 * i] = grid.width > 1 ? s.x * score / (A(0.5) * A(grid.width - 1)) : A(0) * s.mass;
  out.coords[2 * i + 1] = grid.height > 1 ? s.y * score / (A(0.5) * A(grid.height - 1)) : A(0) * s.mass;
  out.score[i] = score;
  out.entropy[i] = log_mass - A(kLn2) * (s.t * score);
  out.logsumexp[i] = excluded ? A(-INFINITY) : s.top * inverse_temperature + log_mass;
  out.index[i] = s.index;
}

// Gradients of one side's results, any strides (in elements); a null pointer stands for zeros.
template <class A>
struct Strided {
  const A* data;
  int64_t batch, cell, xy;
  SEMIMATCH_FN A at(int64_t b, int64_t i, int j = 0) const { return data ? data[b * batch + i * cell + j * xy] : A(0); }
};

template <class A>
struct Gradients {
  Strided<A> coords, score, entropy, logsumexp;
};

// The gradient of a column with respect to its entries is, with p = e * score,
//   p / temperature * (constant + x X + y Y + t T)
// for an entry at position (X, Y) with exponent T; the largest entry has another constant, since the score is its
// probability. These are the numbers that are the same for the whole column.
template <class V>
struct Slope {
  typename Number<V>::Index index;
  V top, weight, constant, constant_at_index, x, y, t;
};

// Slope of cell i of batch element b. `saved` are the results of forward, `top` the correlation at saved.index.
template <class A>
SEMIMATCH_FN Slope<A> slope_of(const Results<A>& saved, const Gradients<A>& grad, int64_t b, int64_t i, int64_t cells,
                               A top, Grid grid, A inverse_temperature) {
  Slope<A> slope = {};
  const int64_t at = b * cells + i;
  const A score = saved.score[at];
  if (score == A(0)) return slope;  // everything is excluded
  slope.index = typename Number<A>::Index(saved.index[at]);
  slope.top = top;
  slope.weight = score * inverse_temperature;
  // ln p = ln(2) T + ln(score), and the gradient of the entropy is -p (ln p + entropy).
  const A grad_entropy = grad.entropy.at(b, i);
  slope.t = -A(kLn2) * grad_entropy;
  const A grad_x = grad.coords.at(b, i, 0), grad_y = grad.coords.at(b, i, 1);
  slope.x = grad_x * per_cell<A>(grid.width);
  slope.y = grad_y * per_cell<A>(grid.height);
  const A constant = grad.logsumexp.at(b, i) - grad_entropy * (saved.entropy[at] + std::log(score)) -
                     grad_x * saved.coords[2 * at] - grad_y * saved.coords[2 * at + 1];
  const A grad_score = grad.score.at(b, i);
  slope.constant = constant - grad_score * score;
  slope.constant_at_index = constant + grad_score * (A(1) - score);
  return slope;
}

// The gradient of one entry. x and y may be scalars where V is a vector.
template <class V, class X>
SEMIMATCH_FN V entry_gradient(V c, const Slope<V>& s, int64_t index, X x, X y, typename Number<V>::Scalar scale) {
  const V t = exponent(c, s.top, scale);
  const V e = Number<V>::exp2(t);
  const V constant = s.index == Number<V>::same(index) ? s.constant_at_index : s.constant;
  return e * s.weight * (constant + s.x * x + s.y * y + s.t * t);
}

}  // namespace semimatch
