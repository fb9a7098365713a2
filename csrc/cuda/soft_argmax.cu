// The windowed `soft_argmax` on CUDA (forward 1 launch, backward 2), as jobs for the kernels of reduce.cuh: the best
// cell of a line, then its windowed scores, in one kernel. The cells that have a result are the columns of the
// matrices, or with kPerRow their rows.
#include <string>
#include <tuple>
#include <vector>

#include "../soft_argmax.h"
#include "reduce.cuh"

namespace semimatch {
namespace {

using Grid2 = std::vector<int64_t>;

// The window of a call. Positions are taken from the best cell, in cells: near it, where the mass is, they are small,
// and so are the errors of their sums.
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
};

template <class A>
struct MomentsReducer {
  using State = Moments<A>;
  static constexpr A kPadding = -A(INFINITY);
  Windowing<A> w;
  const int64_t* index;  // the best cells [batch, lines], or null: `best` of this line
  int64_t lines;
  int best;
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
      const Position<A> at = w.from(best_cell, int(run.index(i)));
      const A e = Number<A>::exp2(exponent(seen[i], top, w.scale));
      part.mass += e;
      part.x += e * at.x;
      part.y += e * at.y;
    }
    merge(s, part);
  }
  SEMIMATCH_FN void merge(State& s, State other) const {
    const A top = other.top > s.top ? other.top : s.top;
    const A ours = Number<A>::exp2(exponent(s.top, top, w.scale));
    const A theirs = Number<A>::exp2(exponent(other.top, top, w.scale));
    s = {top, s.mass * ours + other.mass * theirs, s.x * ours + other.x * theirs, s.y * ours + other.y * theirs};
  }
};

template <class T>
struct SoftArgmax {
  using A = Wide<T>;
  static constexpr bool kTwice = true;
  Entries<T, A> source;
  int64_t batch, rows, cols, cells;
  Tops<A> first;
  Windowing<A> w;
  A* coords;
  int64_t* index;

  struct Second {
    Plane<T, A> plane;
    MomentsReducer<A> reducer;
  };
  SEMIMATCH_FN bool wanted(int64_t, int64_t) const { return true; }
  SEMIMATCH_FN Second second(int64_t b, int64_t, Best<A> s) const {
    return {source.plane(b), {w, nullptr, 0, int(s.index)}};
  }
  SEMIMATCH_FN void finish(int64_t b, int64_t cell, bool, Best<A> best, const Moments<A>& s) const {
    const int64_t i = b * cells + cell;
    const Position<A> at = position_of<A>(w.grid, int(best.index));
    coords[2 * i] = coordinate(s.x, s.mass, w.grid.width, at.x);
    coords[2 * i + 1] = coordinate(s.y, s.mass, w.grid.height, at.y);
    index[i] = best.index;
  }
};

// --- gradient ---

template <class A>
struct WindowSlope {
  A top;
  CoordsSlope<A> slope;
  int best;
};

template <class T>
struct SoftArgmaxSlopes {
  using A = Wide<T>;
  static constexpr bool kTwice = false;
  Entries<T, A> source;
  int64_t batch, rows, cols, cells;
  MomentsReducer<A> first;
  A inverse_temperature;
  const A* grad;  // [batch, cells, 2] with these strides
  int64_t grad_batch, grad_cell, grad_xy;
  WindowSlope<A>* slopes;

  SEMIMATCH_FN bool wanted(int64_t, int64_t) const { return true; }
  SEMIMATCH_FN void finish(int64_t b, int64_t cell, bool, const Moments<A>& s) const {
    const A* const g = grad + b * grad_batch + cell * grad_cell;
    slopes[b * cells + cell] = {s.top, coords_slope(s, g[0], g[grad_xy], first.w.grid, inverse_temperature),
                                first.line(b, cell)};
  }
};

template <class T, bool kPerRow>
struct SoftArgmaxGradient {
  using A = Wide<T>;
  Entries<T, A> corr;
  int64_t batch, rows, cols;
  Windowing<A> w;
  const WindowSlope<A>* slopes;
  T* out;

  struct Nothing {};
  SEMIMATCH_FN Plane<T, A> plane(int64_t b) const { return corr.plane(b); }
  SEMIMATCH_FN auto col_of(int64_t b, int64_t col) const {
    if constexpr (kPerRow) {
      return Nothing{};
    } else {
      return slopes[b * cols + col];
    }
  }
  SEMIMATCH_FN auto row_of(int64_t b, int64_t row) const {
    if constexpr (kPerRow) {
      return slopes[b * rows + row];
    } else {
      return Nothing{};
    }
  }
  SEMIMATCH_FN T gradient(A c, int cell, const WindowSlope<A>& of) const {
    const Position<A> at = w.from(of.best, cell);
    const A weight = w.weight(at);
    const A e = Number<A>::exp2(exponent(windowed(w.window, c, weight), of.top, w.scale));
    const CoordsSlope<A>& s = of.slope;
    return narrow<T>(weight * e * (s.x * (at.x - s.mean_x) + s.y * (at.y - s.mean_y)));
  }
  template <class Col, class Row>
  SEMIMATCH_FN T value(A c, int64_t row, int64_t col, const Col& of_col, const Row& of_row) const {
    if constexpr (kPerRow) {
      return gradient(c, int(col), of_row);
    } else {
      return gradient(c, int(row), of_col);
    }
  }
};

// --- host ---

struct Arguments {
  Grid2 grid;
  double temperature;
  std::string window;
  double width;
};

template <class A>
Windowing<A> windowing_of(const Arguments& a, const Tensor& corr) {
  STD_TORCH_CHECK(corr.dim() == 3 && corr.size(1) > 0 && corr.size(2) > 0,
                  "semimatch: corr must be [B,S,T], not empty");
  STD_TORCH_CHECK(a.grid.size() == 2 && a.grid[0] >= 1 && a.grid[1] >= 1 && a.grid[0] * a.grid[1] == corr.size(1),
                  "semimatch: grid must be (H, W) with H * W = ", corr.size(1), ", the cells that are reduced over");
  const Window window = a.window == "gaussian"  ? Window::kGaussian
                        : a.window == "zero"    ? Window::kZero
                        : a.window == "exclude" ? Window::kExclude
                                                : Window::kNone;
  STD_TORCH_CHECK(window != Window::kNone || a.window == "none",
                  "semimatch: window must be gaussian, zero, exclude or none");
  return {window, A(a.width), A(kLog2E / a.temperature), {int(a.grid[0]), int(a.grid[1])}};
}

template <class Job>
void reduce_lines(const char* name, const Job& job, bool per_row, const OnDevice& device) {
  if (per_row) {
    launch(name, reduce_rows<Job>, rows_geometry(job.batch, job.rows), device.stream(), job);
  } else {
    launch(name, reduce_columns<Job>, columns_geometry(job.batch, job.cols), device.stream(), job);
  }
}

std::tuple<Tensor, Tensor> soft_argmax(Tensor corr, Grid2 grid, double temperature, std::string window, double width) {
  const int64_t batch = corr.size(0), cells = corr.size(2);
  const Tensor coords = torch::stable::new_empty(corr, {batch, cells, 2}, accumulate_type(corr));
  const Tensor index = torch::stable::new_empty(corr, {batch, cells}, ScalarType::Long);
  with_cuda_type(corr, [&](auto type) {
    using T = decltype(type);
    using A = Wide<T>;
    const Windowing<A> w = windowing_of<A>({grid, temperature, window, width}, corr);
    if (batch == 0) return;
    const OnDevice device(corr);
    const auto m = matrices_of<T>(corr);
    const SoftArgmax<T> job = {{m}, batch, m.rows, m.cols, cells, {}, w, data_of<A>(coords), data_of<int64_t>(index)};
    reduce_lines("soft_argmax", job, transposed(corr), device);
  });
  return {coords, index};
}

template <class T, bool kPerRow>
void backward(const Arguments& a, const Tensor& corr, const Tensor& index, const Tensor& grad, const Tensor& out) {
  using A = Wide<T>;
  const Windowing<A> w = windowing_of<A>(a, corr);
  const auto m = matrices_of<T>(corr);
  const int64_t cells = corr.size(2);
  if (m.batch == 0) return;
  const OnDevice device(corr);
  Workspace memory(corr, m.batch * cells * sizeof(WindowSlope<A>), 1);
  auto* slopes = memory.take<WindowSlope<A>>(m.batch * cells);
  const SoftArgmaxSlopes<T> job = {{m},
                                   m.batch,
                                   m.rows,
                                   m.cols,
                                   cells,
                                   {w, data_of<const int64_t>(index), cells, 0},
                                   A(1 / a.temperature),
                                   data_of<const A>(grad),
                                   grad.stride(0),
                                   grad.stride(1),
                                   grad.stride(2),
                                   slopes};
  reduce_lines("soft_argmax_slopes", job, kPerRow, device);
  using Gradient = SoftArgmaxGradient<T, kPerRow>;
  const Gradient gradient = {{m}, m.batch, m.rows, m.cols, w, slopes, data_of<T>(out)};
  launch("soft_argmax_gradient", map_entries<Gradient>, map_geometry(m.batch, m.rows, m.cols), device.stream(),
         gradient);
}

Tensor soft_argmax_backward(Tensor corr, Grid2 grid, double temperature, std::string window, double width, Tensor,
                            Tensor index, Tensor grad) {
  const int64_t batch = corr.size(0), cells = corr.size(2);
  STD_TORCH_CHECK(grad.scalar_type() == accumulate_type(corr) && grad.dim() == 3 && grad.size(0) == batch &&
                      grad.size(1) == cells && grad.size(2) == 2,
                  "semimatch: the gradient differs from the result in dtype or shape");
  const Tensor best = per_cell(index, batch, cells, ScalarType::Long, "index");
  const Tensor out = new_grad(corr);
  const Arguments a = {grid, temperature, window, width};
  with_cuda_type(corr, [&](auto type) {
    using T = decltype(type);
    transposed(corr) ? backward<T, true>(a, corr, best, grad, out) : backward<T, false>(a, corr, best, grad, out);
  });
  return out;
}

}  // namespace

SEMIMATCH_CUDA_IMPL(library) {
  library.impl("soft_argmax", TORCH_BOX(&soft_argmax));
  library.impl("soft_argmax_backward", TORCH_BOX(&soft_argmax_backward));
}

}  // namespace semimatch
