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
  return Number<V>::larger(V{} + Number<V>::kExp2Floor, (c - reference) * scale);  // keeps NaN
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

// The results that follow from the statistics of a whole column; coords are x, y.
template <class V>
struct Finished {
  V x, y, score, entropy, logsumexp;
};

template <class V>
SEMIMATCH_FN Finished<V> finished(const Stats<V>& s, Grid grid, typename Number<V>::Scalar inverse_temperature) {
  using A = typename Number<V>::Scalar;
  const auto excluded = s.mass == V{};
  const V score = excluded ? V{} : A(1) / s.mass;
  const V log_mass = excluded ? V{} : Number<V>::log(s.mass);
  const V logsumexp = s.top * inverse_temperature + log_mass;
  // Divided by half the extent rather than multiplied by its inverse: exactly +-1 at the ends.
  return {grid.width > 1 ? s.x * score / (A(0.5) * A(grid.width - 1)) : A(0) * s.mass,
          grid.height > 1 ? s.y * score / (A(0.5) * A(grid.height - 1)) : A(0) * s.mass, score,
          log_mass - A(kLn2) * (s.t * score), excluded ? lowest<V>() : logsumexp};
}

// Writes the results of cell number i.
template <class A>
SEMIMATCH_FN void finish(const Stats<A>& s, int64_t i, Grid grid, A inverse_temperature, const Results<A>& out) {
  const Finished<A> f = finished(s, grid, inverse_temperature);
  out.coords[2 * i] = f.x;
  out.coords[2 * i + 1] = f.y;
  out.score[i] = f.score;
  out.entropy[i] = f.entropy;
  out.logsumexp[i] = f.logsumexp;
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
// probability. These are the numbers that are the same for the whole column; weight is score / temperature, by which
// the rest is multiplied last: what cancels in the sum does so exactly.
template <class V>
struct Slope {
  typename Number<V>::Index index;
  V top, weight, constant, constant_at_index, x, y, t;
};

// What the slope of a cell follows from: the results of forward, with the correlation at the index, and their
// gradients.
template <class V>
struct Saved {
  typename Number<V>::Index index;
  V top, x, y, score, entropy;
  V grad_x, grad_y, grad_score, grad_entropy, grad_logsumexp;
};

// That of cell i of batch element b; `top` is the correlation at results.index.
template <class A>
SEMIMATCH_FN Saved<A> saved_of(const Results<A>& results, const Gradients<A>& grad, int64_t b, int64_t i, int64_t cells,
                               A top) {
  const int64_t at = b * cells + i;
  return {typename Number<A>::Index(results.index[at]),
          top,
          results.coords[2 * at],
          results.coords[2 * at + 1],
          results.score[at],
          results.entropy[at],
          grad.coords.at(b, i, 0),
          grad.coords.at(b, i, 1),
          grad.score.at(b, i),
          grad.entropy.at(b, i),
          grad.logsumexp.at(b, i)};
}

template <class V>
SEMIMATCH_FN Slope<V> slope_of(const Saved<V>& s, Grid grid, typename Number<V>::Scalar inverse_temperature) {
  using A = typename Number<V>::Scalar;
  const auto excluded = s.score == V{};
  const V weight = s.score * inverse_temperature;
  const auto admissible = [&](V v) { return excluded ? V{} : v; };
  // ln p = ln(2) T + ln(score), and the gradient of the entropy is -p (ln p + entropy).
  const V constant =
      s.grad_logsumexp - s.grad_entropy * (s.entropy + Number<V>::log(s.score)) - s.grad_x * s.x - s.grad_y * s.y;
  return {s.index,
          s.top,
          weight,
          admissible(constant - s.grad_score * s.score),
          admissible(constant + s.grad_score * (A(1) - s.score)),
          admissible(s.grad_x * per_cell<A>(grid.width)),
          admissible(s.grad_y * per_cell<A>(grid.height)),
          admissible(-A(kLn2) * s.grad_entropy)};
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
