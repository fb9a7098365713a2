// What one call of `match` asks of a device's kernels, in plain data: the host glue (match_ops.h) fills it in, CPU and
// CUDA kernels read it.
//
// A job sees the correlation as a matrix [batch, rows, cols] whose cols lie next to each other in memory where either
// side does: a correlation whose source cells are contiguous comes in transposed. Kernels thus know one layout only.
#pragma once

#include "match.h"

namespace semimatch {

// The matches of one side of the matrix: one for each column (over the rows), or one for each row (over the columns).
template <class A>
struct Side {
  bool wanted = false;
  Grid grid = {1, 1};       // of the cells that are reduced over
  Results<A> results = {};  // forward writes them, backward reads them
  Gradients<A> grads = {};  // backward only
};

// T: element type of the correlation; A: accumulate type.
template <class T, class A>
struct MatchJob {
  const T* data;
  int64_t batch, rows, cols;
  int64_t stride_batch, stride_row, stride_col;
  A inverse_temperature;
  A scale;  // log2(e) / temperature
  Side<A> per_col, per_row;
  T* grad;  // backward only: contiguous [batch, rows, cols]

  SEMIMATCH_FN const T* at(int64_t b, int64_t row, int64_t col) const {
    return data + b * stride_batch + row * stride_row + col * stride_col;
  }
};

}  // namespace semimatch
