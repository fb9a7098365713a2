// Jobs of `mutual_filter` for the kernels of reduce.cuh. Rows are always the source cells: the result is contiguous,
// and a correlation that is not is read tile by tile.
#pragma once

#include "reduce.cuh"

namespace semimatch {

// Matrices [..., rows, cols] whose leading dimensions lie anywhere in memory.
constexpr int kMostDims = 6;

template <class T, class A>
struct Levels {
  const T* data;
  int dims;
  int64_t sizes[kMostDims], strides[kMostDims];  // of the leading dimensions, the last first
  int64_t stride_row, stride_col;

  SEMIMATCH_FN Plane<T, A> plane(int64_t b) const {
    int64_t offset = 0;
#pragma unroll
    for (int d = 0; d < kMostDims; ++d) {
      if (d >= dims) break;
      offset += b % sizes[d] * strides[d];
      b /= sizes[d];
    }
    return {data + offset, stride_row, stride_col};
  }
  SEMIMATCH_FN bool turned() const { return stride_row < stride_col; }
};

// The largest entries: their indices, and what their lines are divided by.
template <class T>
struct MutualMaxima {
  using A = Wide<T>;
  Levels<T, A> source;
  int64_t batch, rows, cols;
  Tops<A> per_col, per_row;
  Divisor<A> divisor;
  int64_t *row_index, *col_index;
  A *row_by, *col_by;

  SEMIMATCH_FN void finish_col(int64_t b, int64_t col, Best<A> s) const {
    col_index[b * cols + col] = s.index;
    col_by[b * cols + col] = divisor.of(s.top);
  }
  SEMIMATCH_FN void finish_row(int64_t b, int64_t row, Best<A> s) const {
    row_index[b * rows + row] = s.index;
    row_by[b * rows + row] = divisor.of(s.top);
  }
};

template <class T>
struct MutualFilter {
  using A = Wide<T>;
  Levels<T, A> corr;
  int64_t batch, rows, cols;
  const A *row_by, *col_by;
  T* out;

  SEMIMATCH_FN A col_of(int64_t b, int64_t col) const { return col_by[b * cols + col]; }
  SEMIMATCH_FN A row_of(int64_t b, int64_t row) const { return row_by[b * rows + row]; }
  SEMIMATCH_FN Plane<T, A> plane(int64_t b) const { return corr.plane(b); }
  SEMIMATCH_FN T value(A c, int64_t, int64_t, A col, A row) const { return narrow<T>(c * ratio_of<true>(c, row, col)); }
};

// --- gradient ---

// What lines are divided by, from the indices of their largest entries: one thread a line, columns first.
template <class T, class A>
__global__ void __launch_bounds__(kItemThreads, 1)
    mutual_divisors(Levels<T, A> corr, int64_t batch, int64_t rows, int64_t cols, Divisor<A> divisor,
                    const int64_t* row_index, const int64_t* col_index, A* row_by, A* col_by) {
  int64_t i = int64_t(blockIdx.x) * kItemThreads + threadIdx.x;
  if (i < batch * cols) {
    col_by[i] = divisor.of(corr.plane(i / cols).at(col_index[i], i % cols));
    return;
  }
  i -= batch * cols;
  if (i < batch * rows) row_by[i] = divisor.of(corr.plane(i / rows).at(i % rows, row_index[i]));
}

// Minus the sum of entries, each divided by what its line is.
template <class A>
struct DividedSums {
  struct State {
    A sum;
  };
  static constexpr A kPadding = 0;
  const A* by;
  int64_t lines;
  SEMIMATCH_FN State none() const { return {A(0)}; }
  SEMIMATCH_FN A line(int64_t b, int64_t i) const { return by[b * lines + i]; }
  template <int n>
  SEMIMATCH_FN void add(State& s, const A* c, int64_t valid, Run, A line) const {
    A part = 0;
#pragma unroll
    for (int i = 0; i < n; ++i) part += i < valid ? c[i] / line : A(0);
    s.sum -= part;
  }
  SEMIMATCH_FN void merge(State& s, State other) const { s.sum += other.sum; }
};

// The gradient of the result times the result.
template <class T>
struct MutualProducts {
  using A = Wide<T>;
  Levels<T, A> corr, grad;
  int64_t rows, cols;
  const A *row_by, *col_by;

  struct Products {
    Plane<T, A> corr, grad;
    const A *row_by, *col_by;
    SEMIMATCH_FN A at(int64_t row, int64_t col) const {
      const A c = corr.at(row, col);
      return grad.at(row, col) * (c * ratio_of<true>(c, row_by[row], col_by[col]));
    }
  };
  SEMIMATCH_FN Products plane(int64_t b) const {
    return {corr.plane(b), grad.plane(b), row_by + b * rows, col_by + b * cols};
  }
  SEMIMATCH_FN bool turned() const { return corr.turned() && grad.turned(); }
};

// What goes to the largest entry of each line.
template <class T>
struct MutualTerms {
  using A = Wide<T>;
  MutualProducts<T> source;
  int64_t batch, rows, cols;
  DividedSums<A> per_col, per_row;
  A *row_term, *col_term;

  using State = typename DividedSums<A>::State;
  SEMIMATCH_FN void finish_col(int64_t b, int64_t col, State s) const { col_term[b * cols + col] = s.sum; }
  SEMIMATCH_FN void finish_row(int64_t b, int64_t row, State s) const { row_term[b * rows + row] = s.sum; }
};

template <class T>
struct MutualGradient {
  using A = Wide<T>;
  Levels<T, A> corr, grad;
  int64_t batch, rows, cols;
  const A *row_by, *col_by, *row_term, *col_term;
  const int64_t *row_index, *col_index;
  T* out;

  struct Line {
    A by, term;
    int64_t index;
  };
  struct Pair {
    A c, g;
  };
  SEMIMATCH_FN Line col_of(int64_t b, int64_t col) const {
    const int64_t i = b * cols + col;
    return {col_by[i], col_term[i], col_index[i]};
  }
  SEMIMATCH_FN Line row_of(int64_t b, int64_t row) const {
    const int64_t i = b * rows + row;
    return {row_by[i], row_term[i], row_index[i]};
  }
  struct Pairs {
    Plane<T, A> corr, grad;
    SEMIMATCH_FN Pair at(int64_t row, int64_t col) const { return {corr.at(row, col), grad.at(row, col)}; }
  };
  SEMIMATCH_FN Pairs plane(int64_t b) const { return {corr.plane(b), grad.plane(b)}; }
  SEMIMATCH_FN T value(Pair e, int64_t row, int64_t col, const Line& of_col, const Line& of_row) const {
    A sum = A(3) * e.g * ratio_of<true>(e.c, of_row.by, of_col.by);
    if (of_row.index == col) sum += of_row.term;
    if (of_col.index == row) sum += of_col.term;
    return narrow<T>(sum);
  }
};

}  // namespace semimatch
