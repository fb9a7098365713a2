// Interface between the CPU op `masked_contrastive_loss` (contrastive.cpp: memory, threads, choice of instruction set)
// and its loops (contrastive_kernels.cpp: compiled once for each instruction set).
#pragma once

#include "../contrastive.h"
#include "../matrices.h"
#include "types.h"

namespace semimatch {

template <class T>
struct CpuContrastive {
  using A = typename Accumulate<T>::Type;
  using Index = typename Number<A>::Index;

  // Columns are handled in groups as wide as a vector, the last one possibly short. The cells that have a loss are the
  // columns of the matrix, or its rows. Arrays by cell have `step` places for a batch element, whole groups.
  struct Job {
    Matrices<T> corr;
    int64_t step;
    A inverse_temperature, scale;  // scale = log2(e) / temperature
    Smoothing smoothing;
    const Index* labels;    // by cell: entry of its column or row; negative: the cell does not count; too large: NaN
    const uint8_t* counts;  // by group of cells: whether any counts
    const A* weight;        // [batch, cells], null for 1
    A *loss, *logsumexp;    // results of forward, [batch, cells]
    // Backward: the gradient, contiguous [batch, rows, cols], is factor (p - goal), with the log-sum-exps that p takes.
    const A *finite_logsumexp, *factor;
    T* grad;
  };

  struct Kernels {
    int group;  // columns of one
    // The losses of the cells that are the rows [r0, r1).
    void (*rows)(const Job&, int64_t b, int64_t r0, int64_t r1);
    // The losses of the cells that are the columns of groups [g0, g1); `memory` holds 2 * group numbers a group,
    // aligned to 64 bytes.
    void (*columns)(const Job&, int64_t b, int64_t g0, int64_t g1, void* memory);
    // The gradient of rows [r0, r1), where the cells are the rows, and where they are the columns.
    void (*gradient_of_rows)(const Job&, int64_t b, int64_t r0, int64_t r1);
    void (*gradient_of_columns)(const Job&, int64_t b, int64_t r0, int64_t r1);
  };
};

template <class T>
using ContrastiveKernels = typename CpuContrastive<T>::Kernels;
SEMIMATCH_DECLARE_KERNELS(ContrastiveKernels, contrastive_kernels)

}  // namespace semimatch
