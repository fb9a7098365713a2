// What the windowed soft-argmaxes share on CUDA: the window of a call, and sums over a line.
#pragma once

#include <string>
#include <vector>

#include "../soft_argmax.h"
#include "reduce.cuh"

namespace semimatch {

// What the entries of a line share for their gradient.
template <class A>
struct WindowSlope {
  A top;
  CoordsSlope<A> slope;
  int best;
};

// The window of a call, round the best cell of a line.
template <class A>
struct Windowing {
  Window window;
  A width, scale;
  Grid grid;
  SEMIMATCH_FN Position<A> from(int best, int cell) const {
    return {A(cell % grid.width - best % grid.width), A(cell / grid.width - best / grid.width)};
  }
  SEMIMATCH_FN A weight(Position<A> p) const {
    return window_weight<A>(window, width, p.x) * window_weight<A>(window, width, p.y);
  }
  // Writes the two coordinates of a line, given its sums from the middle of the grid.
  SEMIMATCH_FN void coordinates(const Moments<A>& s, A* to) const {
    to[0] = coordinate(s.x, s.mass, grid.width);
    to[1] = coordinate(s.y, s.mass, grid.height);
  }
  // The gradient by the entry c of a cell.
  SEMIMATCH_FN A entry_gradient(A c, int cell, const WindowSlope<A>& of) const {
    const Position<A> at = from(of.best, cell);
    const A weighs = weight(at);
    const A e = Number<A>::exp2(exponent(windowed(window, c, weighs), of.top, scale));
    return weighs * e * (of.slope.x * (at.x - of.slope.mean_x) + of.slope.y * (at.y - of.slope.mean_y));
  }
};

template <class A>
struct MomentsReducer {
  using State = Moments<A>;
  static constexpr A kPadding = -A(INFINITY);
  Windowing<A> w;
  const int64_t* index;  // the best cells [batch, lines], or null: `best` of this line
  int64_t lines;
  int best;
  // Positions are taken from the middle of the grid, where a sum over all of it comes out smallest, or from the best
  // cell: the gradient is made of differences, which are small near it.
  bool from_middle;
  SEMIMATCH_FN State none() const { return no_moments<A>(); }
  SEMIMATCH_FN int line(int64_t b, int64_t i) const { return index == nullptr ? best : int(index[b * lines + i]); }
  template <int n>
  SEMIMATCH_FN void add(State& s, const A* c, int64_t, Run run, int best_cell) const {
    A seen[n], top = s.top;
#pragma unroll
    for (int i = 0; i < n; ++i) {
      seen[i] = windowed(w.window, c[i], w.weight(w.from(best_cell, int(run.index(i)))));
      top = seen[i] > top ? seen[i] : top;
    }
    State part = {top, A(0), A(0), A(0)};
#pragma unroll
    for (int i = 0; i < n; ++i) {
      const int cell = int(run.index(i));
      const Position<A> at = from_middle ? position_of<A>(w.grid, cell) : w.from(best_cell, cell);
      const A e = Number<A>::exp2(exponent(seen[i], top, w.scale));
      part.mass += e;
      part.x += e * at.x;
      part.y += e * at.y;
    }
    merge(s, part);
  }
  // What the gradient of line i needs, given its sums and the gradient by its coordinates.
  SEMIMATCH_FN WindowSlope<A> slope(const State& s, int64_t b, int64_t i, const Strided<A>& grad,
                                    A inverse_temperature) const {
    const A grad_x = grad.at(b, i, 0), grad_y = grad.at(b, i, 1);
    return {s.top, coords_slope(s, grad_x, grad_y, w.grid, inverse_temperature), line(b, i)};
  }
  SEMIMATCH_FN void merge(State& s, State other) const {
    const A top = other.top > s.top ? other.top : s.top;
    const A ours = Number<A>::exp2(exponent(s.top, top, w.scale));
    const A theirs = Number<A>::exp2(exponent(other.top, top, w.scale));
    s = {top, s.mass * ours + other.mass * theirs, s.x * ours + other.x * theirs, s.y * ours + other.y * theirs};
  }
};

// --- host ---

struct WindowArguments {
  std::vector<int64_t> grid;
  double temperature;
  std::string window;
  double width;
};

template <class A>
Windowing<A> windowing_of(const WindowArguments& a, int64_t sources) {
  STD_TORCH_CHECK(a.grid.size() == 2 && a.grid[0] >= 1 && a.grid[1] >= 1 && a.grid[0] * a.grid[1] == sources,
                  "semimatch: grid must be (H, W) with H * W = ", sources, ", the cells that are reduced over");
  const Window window = a.window == "gaussian"  ? Window::kGaussian
                        : a.window == "zero"    ? Window::kZero
                        : a.window == "exclude" ? Window::kExclude
                                                : Window::kNone;
  STD_TORCH_CHECK(window != Window::kNone || a.window == "none",
                  "semimatch: window must be gaussian, zero, exclude or none");
  return {window, A(a.width), A(kLog2E / a.temperature), {int(a.grid[0]), int(a.grid[1])}};
}

// The gradient by the coordinates [batch, cells, 2], any strides.
template <class A>
Strided<A> coordinates_gradient(const Tensor& grad, ScalarType type, int64_t batch, int64_t cells) {
  STD_TORCH_CHECK(grad.scalar_type() == type && grad.dim() == 3 && grad.size(0) == batch && grad.size(1) == cells &&
                      grad.size(2) == 2,
                  "semimatch: the gradient differs from the result in dtype or shape");
  return {data_of<const A>(grad), grad.stride(0), grad.stride(1), grad.stride(2)};
}

}  // namespace semimatch
