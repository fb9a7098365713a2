// Interface between the CPU op `mutual_filter` (mutual.cpp: memory, threads, choice of instruction set) and its loops
// (mutual_kernels.cpp: compiled once for each instruction set).
#pragma once

#include "../matrices.h"
#include "../mutual.h"
#include "types.h"

namespace semimatch {

template <class T>
struct CpuMutual {
  using A = typename Accumulate<T>::Type;

  // Matrices [batch, rows, cols] in any layout; those of the batch lie anywhere, `offsets` from the first.
  struct Batch {
    Matrices<T> first;
    const int64_t* offsets;
  };

  // Arrays by row are [batch, rows], those by column [batch, cols]; but `column_by`, `column_part` and `column_term`
  // are padded to `step` = whole groups of columns.
  struct Job {
    Batch corr;
    int64_t step;
    int64_t *row_index, *column_index;  // column_index is null where only the rows' are asked for
    A *row_top, *column_top;            // the largest entries
    // What entries are divided by, see divider_of.
    bool divide;
    const A *row_by, *column_by;
    T* out;  // the result, or the gradient: contiguous [batch, rows, cols]
    // Backward: the gradient of the result, and what goes to the largest entry of each row and column.
    Batch grad;
    A *row_term, *column_term;
  };

  struct Kernels {
    int group;           // columns of one; also a good number of rows at a time
    int64_t best_bytes;  // of the largest entries of a group
    // The largest entries of rows [r0, r1), and those of the columns among these rows: one of `best` a group (null
    // where only the rows' are asked for).
    void (*maxima)(const Job&, int64_t b, int64_t r0, int64_t r1, void* best);
    // The largest entries of columns from those of `panels` panels of rows, in order.
    void (*finish_columns)(const Job&, int64_t b, const void* best, int64_t panels);
    // The largest entries, from their indices.
    void (*look_up)(const Job&, int64_t b);
    void (*filter)(const Job&, int64_t b, int64_t r0, int64_t r1);
    // The gradient of rows [r0, r1) but for what goes through the maxima: row_term, and the part of these rows of
    // column_term, [step].
    void (*gradient)(const Job&, int64_t b, int64_t r0, int64_t r1, A* column_part);
    // The gradient of the largest entries of rows [r0, r1), and of those of columns [c0, c1) that are not.
    void (*gradient_of_row_tops)(const Job&, int64_t b, int64_t r0, int64_t r1);
    void (*gradient_of_column_tops)(const Job&, int64_t b, int64_t c0, int64_t c1);
  };
};

template <class T>
using MutualKernels = typename CpuMutual<T>::Kernels;
SEMIMATCH_DECLARE_KERNELS(MutualKernels, mutual_kernels)

}  // namespace semimatch
