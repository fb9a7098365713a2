// The windowed `soft_argmax` on CUDA (forward 1 launch, backward 2), as jobs for the kernels of reduce.cuh: the best
// cell of a line, then its windowed scores, in one kernel. The cells that have a result are the columns of the
// matrices, or with kPerRow their rows.
#include <string>
#include <tuple>
#include <vector>

#include "soft_argmax.cuh"

namespace semimatch {
namespace {

using Grid2 = std::vector<int64_t>;

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
    return {source.plane(b), {w, nullptr, 0, int(s.index), true}};
  }
  SEMIMATCH_FN void finish(int64_t b, int64_t cell, bool, Best<A> best, const Moments<A>& s) const {
    const int64_t i = b * cells + cell;
    w.coordinates(s, coords + 2 * i);
    index[i] = best.index;
  }
};

// --- gradient ---

template <class T>
struct SoftArgmaxSlopes {
  using A = Wide<T>;
  static constexpr bool kTwice = false;
  Entries<T, A> source;
  int64_t batch, rows, cols, cells;
  MomentsReducer<A> first;
  A inverse_temperature;
  Strided<A> grad;
  WindowSlope<A>* slopes;

  SEMIMATCH_FN bool wanted(int64_t, int64_t) const { return true; }
  SEMIMATCH_FN void finish(int64_t b, int64_t cell, bool, const Moments<A>& s) const {
    slopes[b * cells + cell] = first.slope(s, b, cell, grad, inverse_temperature);
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
  template <class Col, class Row>
  SEMIMATCH_FN T value(A c, int64_t row, int64_t col, const Col& of_col, const Row& of_row) const {
    if constexpr (kPerRow) {
      return narrow<T>(w.entry_gradient(c, int(col), of_row));
    } else {
      return narrow<T>(w.entry_gradient(c, int(row), of_col));
    }
  }
};

// --- host ---

void check(const Tensor& corr) {
  STD_TORCH_CHECK(corr.dim() == 3 && corr.size(1) > 0 && corr.size(2) > 0,
                  "semimatch: corr must be [B,S,T], not empty");
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
  check(corr);
  const int64_t batch = corr.size(0), cells = corr.size(2);
  const Tensor coords = new_tensor(corr, {batch, cells, 2}, accumulate_type(corr));
  const Tensor index = new_tensor(corr, {batch, cells}, ScalarType::Long);
  with_cuda_type(corr, [&](auto type) {
    using T = decltype(type);
    using A = Wide<T>;
    const Windowing<A> w = windowing_of<A>({grid, temperature, window, width}, corr.size(1));
    if (batch == 0) return;
    const OnDevice device(corr);
    const auto m = matrices_of<T>(corr);
    const SoftArgmax<T> job = {{m}, batch, m.rows, m.cols, cells, {}, w, data_of<A>(coords), data_of<int64_t>(index)};
    reduce_lines("soft_argmax", job, transposed(corr), device);
  });
  return {coords, index};
}

template <class T, bool kPerRow>
void backward(const WindowArguments& a, const Tensor& corr, const Tensor& index, const Tensor& grad,
              const Tensor& out) {
  using A = Wide<T>;
  const auto m = matrices_of<T>(corr);
  const int64_t cells = corr.size(2);
  const Windowing<A> w = windowing_of<A>(a, corr.size(1));
  const Strided<A> by_coords = coordinates_gradient<A>(grad, accumulate_type(corr), m.batch, cells);
  if (m.batch == 0) return;
  const OnDevice device(corr);
  Workspace memory(corr, m.batch * cells * int64_t(sizeof(WindowSlope<A>)), 1);
  auto* slopes = memory.take<WindowSlope<A>>(m.batch * cells);
  const MomentsReducer<A> reducer = {w, data_of<const int64_t>(index), cells, 0, false};
  const SoftArgmaxSlopes<T> job = {{m},       m.batch, m.rows, m.cols, cells, reducer, A(1 / a.temperature),
                                   by_coords, slopes};
  reduce_lines("soft_argmax_slopes", job, kPerRow, device);
  using Gradient = SoftArgmaxGradient<T, kPerRow>;
  const Gradient gradient = {{m}, m.batch, m.rows, m.cols, w, slopes, data_of<T>(out)};
  launch("soft_argmax_gradient", map_entries<Gradient>, map_geometry(m.batch, m.rows, m.cols), device.stream(),
         gradient);
}

Tensor soft_argmax_backward(Tensor corr, Grid2 grid, double temperature, std::string window, double width, Tensor,
                            Tensor index, Tensor grad) {
  check(corr);
  const Tensor best = per_cell(index, corr.size(0), corr.size(2), ScalarType::Long, "index");
  const Tensor out = new_grad(corr);
  const WindowArguments a = {grid, temperature, window, width};
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
