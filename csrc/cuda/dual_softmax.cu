// `dual_softmax` on CUDA (forward 3 launches, backward 5), as jobs for the kernels of reduce.cuh. Forward: the mass of
// every row and column from one read, then the entries. Backward takes the masses again rather than the saved
// log-sum-exps, which have lost the digits of a large score; then the sums of the gradient over each line.
#include <tuple>

#include "../dual_softmax.h"
#include "reduce.cuh"

namespace semimatch {
namespace {

// The lines of a batch of matrices: what their entries need of them.
template <class A>
struct Lines {
  Line<A>*row, *col;
};

template <class T>
struct DualMasses {
  using A = Wide<T>;
  Entries<T, A> source;
  int64_t batch, rows, cols;
  Masses<A> per_col, per_row;
  A inverse_temperature;
  Lines<A> lines;
  A *row_logsumexp, *col_logsumexp;  // null: not wanted

  SEMIMATCH_FN void finish(int64_t i, Mass<A> s, Line<A>* line, A* logsumexp) const {
    line[i] = line_of(s);
    if (logsumexp != nullptr) logsumexp[i] = logsumexp_of_line(s, inverse_temperature);
  }
  SEMIMATCH_FN void finish_col(int64_t b, int64_t col, Mass<A> s) const {
    finish(b * cols + col, s, lines.col, col_logsumexp);
  }
  SEMIMATCH_FN void finish_row(int64_t b, int64_t row, Mass<A> s) const {
    finish(b * rows + row, s, lines.row, row_logsumexp);
  }
};

template <class T>
struct DualEntries {
  using A = Wide<T>;
  Entries<T, A> corr;
  int64_t batch, rows, cols;
  A inverse_temperature;
  bool log;
  Lines<A> lines;
  A* out;

  SEMIMATCH_FN Plane<T, A> plane(int64_t b) const { return corr.plane(b); }
  SEMIMATCH_FN Line<A> col_of(int64_t b, int64_t col) const { return lines.col[b * cols + col]; }
  SEMIMATCH_FN Line<A> row_of(int64_t b, int64_t row) const { return lines.row[b * rows + row]; }
  SEMIMATCH_FN A value(A c, int64_t, int64_t, const Line<A>& col, const Line<A>& row) const {
    const A log_p = log_dual(c, row, col, inverse_temperature);
    return log ? log_p : exp_of_log(log_p);
  }
};

// --- gradient ---

template <class A>
struct Pair {
  A c, g;
};

// The gradient by the log-probability of each entry.
template <class T>
struct DualGradients {
  using A = Wide<T>;
  Entries<T, A> corr;
  Entries<A, A> grad;
  int64_t rows, cols;
  A scale;
  bool log;
  Lines<A> lines;

  struct View {
    Plane<T, A> corr;
    Plane<A, A> grad;
    const Line<A>*row, *col;
    A scale;
    bool log;
    SEMIMATCH_FN A at(int64_t r, int64_t i) const {
      const A c = corr.at(r, i);
      return by_log_probability(c, grad.at(r, i), log, probability_in(c, row[r], scale),
                                probability_in(c, col[i], scale));
    }
  };
  SEMIMATCH_FN View plane(int64_t b) const {
    return {corr.plane(b), grad.plane(b), lines.row + b * rows, lines.col + b * cols, scale, log};
  }
  SEMIMATCH_FN bool turned() const { return corr.turned(); }
};

template <class T>
struct DualSums {
  using A = Wide<T>;
  DualGradients<T> source;
  int64_t batch, rows, cols;
  Sums<A> per_col, per_row;
  A *row_sum, *col_sum;

  using State = typename Sums<A>::State;
  SEMIMATCH_FN void finish_col(int64_t b, int64_t col, State s) const { col_sum[b * cols + col] = s.sum; }
  SEMIMATCH_FN void finish_row(int64_t b, int64_t row, State s) const { row_sum[b * rows + row] = s.sum; }
};

template <class T>
struct DualGradient {
  using A = Wide<T>;
  Entries<T, A> corr;
  Entries<A, A> grad;
  int64_t batch, rows, cols;
  A inverse_temperature, scale;
  bool log;
  Lines<A> lines;
  const A *row_sum, *col_sum;
  T* out;

  struct Side {
    Line<A> line;
    A sum;
  };
  struct View {
    Plane<T, A> corr;
    Plane<A, A> grad;
    SEMIMATCH_FN Pair<A> at(int64_t row, int64_t col) const { return {corr.at(row, col), grad.at(row, col)}; }
  };
  SEMIMATCH_FN View plane(int64_t b) const { return {corr.plane(b), grad.plane(b)}; }
  SEMIMATCH_FN Side col_of(int64_t b, int64_t col) const {
    return {lines.col[b * cols + col], col_sum[b * cols + col]};
  }
  SEMIMATCH_FN Side row_of(int64_t b, int64_t row) const {
    return {lines.row[b * rows + row], row_sum[b * rows + row]};
  }
  SEMIMATCH_FN T value(Pair<A> e, int64_t, int64_t, const Side& col, const Side& row) const {
    const A p_row = probability_in(e.c, row.line, scale), p_col = probability_in(e.c, col.line, scale);
    const A h = by_log_probability(e.c, e.g, log, p_row, p_col);
    return narrow<T>(dual_gradient(h, p_row, row.sum, p_col, col.sum, inverse_temperature));
  }
};

// --- host ---

void check(const Tensor& corr) {
  STD_TORCH_CHECK(corr.dim() == 3 && corr.size(1) > 0 && corr.size(2) > 0,
                  "semimatch: corr must be [B,S,T], not empty");
}

std::tuple<Tensor, Tensor, Tensor> dual_softmax(Tensor corr, double temperature, bool log) {
  check(corr);
  const int64_t batch = corr.size(0), rows = corr.size(1), cols = corr.size(2);
  const ScalarType wide = accumulate_type(corr);
  const Tensor p = new_tensor(corr, {batch, rows, cols}, wide);
  const Tensor target = new_tensor(corr, {batch, cols}, wide);
  const Tensor source = new_tensor(corr, {batch, rows}, wide);
  if (batch == 0) return {p, target, source};
  with_cuda_type(corr, [&](auto type) {
    using T = decltype(type);
    using A = Wide<T>;
    const OnDevice device(corr);
    Workspace memory(corr, batch * (rows + cols) * sizeof(Line<A>), 2);
    const Lines<A> lines = {memory.take<Line<A>>(batch * rows), memory.take<Line<A>>(batch * cols)};
    const Matrices<T> m = matrices_of<T>(corr, false);
    const A inverse_temperature = A(1 / temperature), scale = A(kLog2E / temperature);
    const DualMasses<T> masses = {
        {m}, batch, rows, cols, {scale}, {scale}, inverse_temperature, lines, data_of<A>(source), data_of<A>(target)};
    reduce_both("dual_masses", masses, device, corr);
    const DualEntries<T> entries = {{m}, batch, rows, cols, inverse_temperature, log, lines, data_of<A>(p)};
    launch("dual_entries", map_entries<DualEntries<T>>, map_geometry(batch, rows, cols), device.stream(), entries);
  });
  return {p, target, source};
}

Tensor dual_softmax_backward(Tensor corr, double temperature, bool log, Tensor, Tensor, Tensor grad) {
  check(corr);
  STD_TORCH_CHECK(grad.scalar_type() == accumulate_type(corr) && grad.dim() == 3 && grad.size(0) == corr.size(0) &&
                      grad.size(1) == corr.size(1) && grad.size(2) == corr.size(2),
                  "semimatch: the gradient differs from the result in dtype or shape");
  const Tensor out = new_grad(corr);
  if (corr.size(0) == 0) return out;
  with_cuda_type(corr, [&](auto type) {
    using T = decltype(type);
    using A = Wide<T>;
    const OnDevice device(corr);
    const bool swap = transposed(corr);
    const Matrices<T> m = matrices_of<T>(corr, swap);
    const Matrices<A> g = matrices_of<A>(grad, swap);
    const int64_t batch = m.batch, rows = m.rows, cols = m.cols;
    Workspace memory(corr, batch * (rows + cols) * (sizeof(Line<A>) + sizeof(A)), 4);
    const Lines<A> lines = {memory.take<Line<A>>(batch * rows), memory.take<Line<A>>(batch * cols)};
    A *row_sum = memory.take<A>(batch * rows), *col_sum = memory.take<A>(batch * cols);
    const A inverse_temperature = A(1 / temperature), scale = A(kLog2E / temperature);
    const DualMasses<T> masses = {{m},   batch,   rows,   cols, {scale}, {scale}, inverse_temperature,
                                  lines, nullptr, nullptr};
    reduce_both("dual_masses", masses, device, corr);
    const DualSums<T> sums = {{{m}, {g}, rows, cols, scale, log, lines}, batch, rows, cols, {}, {}, row_sum, col_sum};
    reduce_both("dual_sums", sums, device, corr);
    const DualGradient<T> gradient = {{m},   {g}, batch, rows,    cols,    inverse_temperature,
                                      scale, log, lines, row_sum, col_sum, data_of<T>(out)};
    launch("dual_gradient", map_entries<DualGradient<T>>, map_geometry(batch, rows, cols), device.stream(), gradient);
  });
  return out;
}

}  // namespace

SEMIMATCH_CUDA_IMPL(library) {
  library.impl("dual_softmax", TORCH_BOX(&dual_softmax));
  library.impl("dual_softmax_backward", TORCH_BOX(&dual_softmax_backward));
}

}  // namespace semimatch
