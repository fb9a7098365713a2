// Interface between the CPU op `pseudo_labels` (pseudo_labels.cpp) and its loop (pseudo_labels_kernels.cpp: compiled
// once for each instruction set).
#pragma once

#include "../matrices.h"
#include "../pseudo_labels.h"
#include "types.h"

namespace semimatch {

template <class T>
struct CpuPseudoLabels {
  using A = typename Accumulate<T>::Type;

  // Entropies of softmaxes with `eps` added to each probability, for the columns of the matrices or for their rows.
  // Arrays by cell have `step` places for a batch element, whole groups.
  struct Job {
    Matrices<T> corr;
    int64_t step;
    A scale, eps;
    const A *top, *score;
    A* entropy;
  };

  struct Kernels {
    int group;  // columns of one
    void (*entropy_of_columns)(const Job&, int64_t b, int64_t g0, int64_t g1);
    void (*entropy_of_rows)(const Job&, int64_t b, int64_t r0, int64_t r1);
    // Entry (row, col) of batch element b.
    A (*entry)(const Matrices<T>&, int64_t b, int64_t row, int64_t col);
  };
};

template <class T>
using PseudoLabelsKernels = typename CpuPseudoLabels<T>::Kernels;
SEMIMATCH_DECLARE_KERNELS(PseudoLabelsKernels, pseudo_labels_kernels)

}  // namespace semimatch
