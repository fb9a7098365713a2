// The maths of `masked_contrastive_loss`: cross-entropy of each cell of one side over the entries of its column, and
// its gradient.
//
// Exponentials are taken to base 2, of differences from the largest entry, with the edge rules of match.h: the mass of
// a column of only -inf is 0, with a NaN it is NaN. With +inf it is NaN too; `settle` tells the two apart.
#pragma once

#include <cmath>

#include "match.h"

namespace semimatch {

// The log-sum-exp of the part of a column that has been read so far: `mass` is the sum of 2^((c - top) scale).
template <class V>
struct Mass {
  V top, mass;
};

template <class V>
SEMIMATCH_FN Mass<V> no_mass() {
  return {lowest<V>(), V{}};
}

template <class V>
SEMIMATCH_FN void raise_top(Mass<V>& s, V top, typename Number<V>::Scalar scale) {
  s.mass *= Number<V>::exp2(exponent(s.top, top, scale));
  s.top = top;
}

// Adds the entries c[0..n); kCount > 0 promises n == kCount. One sweep for the largest, one for the sum.
template <int kCount, class V>
SEMIMATCH_FN void add(Mass<V>& s, const V* c, int n, typename Number<V>::Scalar scale) {
  V top = s.top;
#pragma unroll
  for (int i = 0; i < (kCount > 0 ? kCount : n); ++i) top = Number<V>::larger(c[i], top);
  raise_top(s, top, scale);
  V mass = {};
#pragma unroll
  for (int i = 0; i < (kCount > 0 ? kCount : n); ++i) mass += Number<V>::exp2(exponent(c[i], top, scale));
  s.mass += mass;
}

// Adds the mass of another part of the same column.
template <class V>
SEMIMATCH_FN void merge(Mass<V>& s, Mass<V> other, typename Number<V>::Scalar scale) {
  const V top = Number<V>::larger(other.top, s.top);
  raise_top(s, top, scale);
  raise_top(other, top, scale);
  s.mass += other.mass;
}

// A column with +inf has a log-sum-exp of +inf, but with a NaN too it has NaN; the entries must be looked at again.
// entry_at(i) is entry i of n.
template <class A, class EntryAt>
SEMIMATCH_FN void settle(Mass<A>& s, int64_t n, const EntryAt& entry_at) {
  if (s.top != A(INFINITY)) return;
  s.mass = A(1);
  for (int64_t i = 0; i < n; ++i) s.mass = entry_at(i) == entry_at(i) ? s.mass : A(NAN);
}

// What a label asks for where it is smoothed: a Gaussian over the square of `radius` cells round it, inside the grid
// and normalised. It is a product of two Gaussians along the axes, of which tables are kept, by distance in cells.
struct Smoothing {
  Grid grid = {1, 1};
  int radius = 0;
  const double* weights = nullptr;  // exp(-d^2 / (2 sigma^2)); null: all on the label

  SEMIMATCH_FN bool on() const { return weights != nullptr; }
};

// The cells of one axis of the square round cell `at`.
struct Span {
  int first, last;  // both included
};

SEMIMATCH_FN Span span_of(const Smoothing& s, int at, int extent) {
  const int first = at > s.radius ? at - s.radius : 0;
  const int last = extent - 1 - at > s.radius ? at + s.radius : extent - 1;
  return {first, last};
}

// The part that the entry `cell`, of score c, has in the goal of `label`, whose weights sum to `total`.
template <class A>
SEMIMATCH_FN A goal_of(const Smoothing& s, int64_t label, int64_t cell, A c, A total) {
  const int width = s.grid.width;
  const int dx = int(cell) % width - int(label) % width, dy = int(cell) / width - int(label) / width;
  const int x = dx < 0 ? -dx : dx, y = dy < 0 ? -dy : dy;
  if (x > s.radius || y > s.radius || c == A(-INFINITY)) return A(0);
  return A(s.weights[x] * s.weights[y]) / total;
}

// The sum of the weights of the goal of `label`. Entries that are excluded have none: entry_at(cell) is -inf there.
template <class A, class EntryAt>
SEMIMATCH_FN A goal_total(const Smoothing& s, int64_t label, const EntryAt& entry_at) {
  const int width = s.grid.width;
  const int label_x = int(label) % width, label_y = int(label) / width;
  const Span xs = span_of(s, label_x, width), ys = span_of(s, label_y, s.grid.height);
  double sum = 0;
  for (int y = ys.first; y <= ys.last; ++y)
    for (int x = xs.first; x <= xs.last; ++x)
      if (entry_at(int64_t(y) * width + x) != A(-INFINITY))
        sum += s.weights[x < label_x ? label_x - x : x - label_x] * s.weights[y < label_y ? label_y - y : y - label_y];
  return A(sum);
}

// Calls f(cell, q) for the cells from `first` to before `last` that have a part q in the goal of `label`. Entries that
// are excluded have none: entry_at(cell) is -inf there. `label` is one of the cells, of which there are less than 2^31.
template <class A, class EntryAt, class F>
SEMIMATCH_FN void for_goal(const Smoothing& s, int64_t label, int64_t first, int64_t last, const EntryAt& entry_at,
                           const F& f) {
  const int width = s.grid.width;
  const int label_x = int(label) % width, label_y = int(label) / width;
  const Span xs = span_of(s, label_x, width), ys = span_of(s, label_y, s.grid.height);
  const auto weight_at = [&](int x, int y) {
    return s.weights[x < label_x ? label_x - x : x - label_x] * s.weights[y < label_y ? label_y - y : y - label_y];
  };
  const A total = goal_total<A>(s, label, entry_at);
  const int y_first = int(first) / width, y_last = int(last - 1) / width;
  const int y0 = ys.first > y_first ? ys.first : y_first, y1 = ys.last < y_last ? ys.last : y_last;
  for (int y = y0; y <= y1; ++y) {
    for (int x = xs.first; x <= xs.last; ++x) {
      const int64_t cell = int64_t(y) * width + x;
      if (cell < first || cell >= last || entry_at(cell) == A(-INFINITY)) continue;
      const A q = A(weight_at(x, y)) / total;
      if (q != A(0)) f(cell, q);
    }
  }
}

// The loss of a cell from its column's mass, its logarithm, and the goal's mean score: `positive` is sum q c,
// `below_top` sum q (c - top). A label on an excluded entry, of probability 0, costs infinitely much; a NaN in the
// column stays one.
template <class A>
SEMIMATCH_FN A loss_of(const Mass<A>& s, A log_mass, A positive, A below_top, A inverse_temperature) {
  if (positive == A(-INFINITY)) return s.mass == s.mass ? A(INFINITY) : s.mass;
  return log_mass - below_top * inverse_temperature;
}

template <class A>
SEMIMATCH_FN A logsumexp_of(const Mass<A>& s, A log_mass, A inverse_temperature) {
  return product(s.top, inverse_temperature) + log_mass;
}

// The log-sum-exp as `probability` takes it: where every entry is excluded, their probabilities are 0.
template <class A>
SEMIMATCH_FN A finite_logsumexp(A logsumexp) {
  return logsumexp == A(-INFINITY) ? A(0) : logsumexp;
}

// The gradient of a column by its entries is factor (p - q). The score is rounded before the log-sum-exp is taken off,
// as it was when that was formed: a score that is all there is has probability 1, exactly.
template <class V>
SEMIMATCH_FN V probability(V c, V logsumexp, typename Number<V>::Scalar inverse_temperature) {
  const V t = (product(c, V{} + inverse_temperature) - logsumexp) * typename Number<V>::Scalar(kLog2E);
  return Number<V>::exp2(Number<V>::larger(V{} + Number<V>::kExp2Floor, t));
}

}  // namespace semimatch
