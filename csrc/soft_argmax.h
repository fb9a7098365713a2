// The maths of the windowed `soft_argmax`: the soft-argmax of scores that are damped, or excluded, with their distance
// from the best cell, and its gradient. Edge rules are those of match.h.
#pragma once

#include <cmath>

#include "match.h"

namespace semimatch {

// Scores are multiplied by a Gaussian of sigma `width` cells, or by 1 in the square of that radius and 0 outside; or
// those outside are excluded; or nothing is done to them.
enum class Window { kGaussian, kZero, kExclude, kNone };

// The window's weight is a product of one along each axis: this is the one `distance` cells away.
template <class V>
SEMIMATCH_FN V window_weight(Window window, typename Number<V>::Scalar width, V distance) {
  using Scalar = typename Number<V>::Scalar;
  if (window == Window::kNone) return V{} + Scalar(1);
  if (window == Window::kGaussian) {
    const V t = distance * distance * (Scalar(-0.5 * kLog2E) / (width * width));
    return Number<V>::exp2(Number<V>::larger(V{} + Number<V>::kExp2Floor, t));
  }
  const auto inside = (distance <= width) & (-distance <= width);
  return inside ? V{} + Scalar(1) : V{};
}

// The score as the window leaves it. -inf stays, and NaN too but where it is excluded.
template <class V>
SEMIMATCH_FN V windowed(Window window, V c, V weight) {
  if (window == Window::kExclude) return weight == V{} ? lowest<V>() : c;
  const V damped = c * weight;
  return c == lowest<V>() ? c : damped;
}

// Sums over the part of a column that has been read so far: e = 2^((c - top) scale), and e by the cell's position.
template <class V>
struct Moments {
  V top, mass, x, y;
};

template <class V>
SEMIMATCH_FN Moments<V> no_moments() {
  return {lowest<V>(), V{}, V{}, V{}};
}

// Adds n cells of one row of the grid, at x, x + 1, ... and y; their scores are as the window leaves them.
template <class V>
SEMIMATCH_FN void add(Moments<V>& s, const V* c, int n, V x, V y, typename Number<V>::Scalar scale) {
  V top = s.top;
  for (int i = 0; i < n; ++i) top = c[i] > top ? c[i] : top;
  const V factor = Number<V>::exp2(exponent(s.top, top, scale));
  V mass = {}, sum_x = {};
  for (int i = 0; i < n; ++i) {
    const V e = Number<V>::exp2(exponent(c[i], top, scale));
    mass += e;
    sum_x += e * (x + typename Number<V>::Scalar(i));
  }
  s = {top, s.mass * factor + mass, s.x * factor + sum_x, s.y * factor + mass * y};
}

// Adds the moments of another part of the column.
template <class V>
SEMIMATCH_FN void merge(Moments<V>& s, const Moments<V>& part, typename Number<V>::Scalar scale) {
  const V top = part.top > s.top ? part.top : s.top;
  const V a = Number<V>::exp2(exponent(s.top, top, scale)), b = Number<V>::exp2(exponent(part.top, top, scale));
  s = {top, s.mass * a + part.mass * b, s.x * a + part.x * b, s.y * a + part.y * b};
}

// The coordinate of a column along an axis of `extent` cells; `sum` is that of e by the position, counted from the cell
// that is `origin` cells from the middle.
template <class A>
SEMIMATCH_FN A coordinate(A sum, A mass, int extent, A origin = A(0)) {
  if (extent <= 1) return A(0) * mass;
  // Divided by half the extent rather than multiplied by its inverse: exactly +-1 at the ends.
  return mass == A(0) ? A(0) : (sum / mass + origin) / (A(0.5) * A(extent - 1));
}

// The gradient of a column by its entries is weight e (x (X - mean_x) + y (Y - mean_y)), the position (X, Y) in cells.
// The differences are taken first: near the mean, where the mass is, they are small.
template <class V>
struct CoordsSlope {
  V mean_x, mean_y, x, y;
};

template <class A>
SEMIMATCH_FN CoordsSlope<A> coords_slope(const Moments<A>& s, A grad_x, A grad_y, Grid grid, A inverse_temperature) {
  if (s.mass == A(0)) return {};  // everything is excluded
  const A p = inverse_temperature / s.mass;
  return {s.x / s.mass, s.y / s.mass, p * grad_x * per_cell<A>(grid.width), p * grad_y * per_cell<A>(grid.height)};
}

}  // namespace semimatch
