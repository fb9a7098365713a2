// Interface between the CPU ops `soft_argmax` and `soft_argmax_features` (soft_argmax.cpp: memory, threads, choice of
// instruction set) and their loops (soft_argmax_kernels.cpp: compiled once for each instruction set).
#pragma once

#include "../matrices.h"
#include "../soft_argmax.h"
#include "columns.h"
#include "types.h"

namespace semimatch {

template <class A>
struct SoftArgmaxJob {
  Grid grid;
  Window window;
  A width, inverse_temperature, scale;  // scale = log2(e) / temperature
  int64_t cells;                        // T
  A* coords;                            // [batch, T, 2], written by forward
  int64_t* index;                       // [batch, T], written by forward
  Strided<A> grad;                      // by coords; backward only
};

template <class T>
struct CpuSoftArgmax {
  using A = typename Accumulate<T>::Type;

  using Job = SoftArgmaxJob<A>;

  struct Kernels {
    int group;  // columns that are handled at a time: numbers of a vector
    // Coordinates and best cells of the columns. `memory` holds a vector for each row and column of the grid.
    void (*forward)(const Job&, const Columns<A>&, void* memory);
    // Turns the entries into the gradient by them.
    void (*backward)(const Job&, const Columns<A>&, void* memory);
    // The columns of a correlation [batch, S, T], any strides; and back to where the first of them is to lie, `rows`
    // entries each, where one of the strides is 1.
    void (*read)(const Matrices<T>&, const Columns<A>&);
    void (*write)(const Columns<A>&, T* to, int64_t rows, int64_t stride_row, int64_t stride_col);
  };
};

template <class T>
using SoftArgmaxKernels = typename CpuSoftArgmax<T>::Kernels;
SEMIMATCH_DECLARE_KERNELS(SoftArgmaxKernels, soft_argmax_kernels)

}  // namespace semimatch
