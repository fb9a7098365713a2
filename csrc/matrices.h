// A batch of matrices in memory, any strides: what the kernels read.
#pragma once

#include "common.h"

namespace semimatch {

template <class T>
struct Matrices {
  const T* data;
  int64_t batch, rows, cols;
  int64_t stride_batch, stride_row, stride_col;  // in elements

  SEMIMATCH_FN const T* at(int64_t b, int64_t row, int64_t col) const {
    return data + b * stride_batch + row * stride_row + col * stride_col;
  }
};

// One of the two matrices of a product: entry (i, k) is data[i * row + k * col].
template <class A>
struct Factor {
  const A* data;
  int64_t row, col;
};

}  // namespace semimatch
