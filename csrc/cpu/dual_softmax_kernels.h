// Interface between the CPU op `dual_softmax` (dual_softmax.cpp: memory, threads, choice of instruction set) and its
// loops (dual_softmax_kernels.cpp: compiled once for each instruction set).
#pragma once

#include "../dual_softmax.h"
#include "../matrices.h"
#include "types.h"

namespace semimatch {

template <class T>
struct CpuDualSoftmax {
  using A = typename Accumulate<T>::Type;

  // Numbers of each row or each column: `step` places for a batch element. `logsumexp`, without gaps between batch
  // elements, may be null; `sum` is backward's.
  struct Lines {
    int64_t step;
    A *top, *log_mass, *inverse_mass, *sum, *logsumexp;
  };

  // Columns are handled in groups as wide as a vector; their Lines have whole groups.
  struct Job {
    Matrices<T> corr;
    Matrices<A> grad;  // by the result; backward only
    bool log;
    A inverse_temperature, scale;  // scale = log2(e) / temperature
    Lines rows, cols;
    A* p;         // forward's result, contiguous [batch, rows, cols]
    T* grad_out;  // backward's
  };

  struct Kernels {
    int group;           // columns of one; as many rows are read at a time
    int64_t mass_bytes;  // of a group's masses, and of its sums
    // Lines of rows [r0, r1), and the masses of all groups of columns over them.
    void (*masses)(const Job&, int64_t b, int64_t r0, int64_t r1, void* masses);
    // Lines of the columns of groups [g0, g1), from `panels` sets of masses that are `step` groups apart.
    void (*finish)(const Job&, int64_t b, int64_t g0, int64_t g1, const void* masses, int64_t panels, int64_t step);
    // The result of rows [r0, r1).
    void (*forward)(const Job&, int64_t b, int64_t r0, int64_t r1);
    // Sums of the gradient by the log-probabilities: of rows [r0, r1), and of all groups of columns over them.
    void (*sums)(const Job&, int64_t b, int64_t r0, int64_t r1, void* sums);
    void (*finish_sums)(const Job&, int64_t b, int64_t g0, int64_t g1, const void* sums, int64_t panels, int64_t step);
    // The gradient of rows [r0, r1).
    void (*backward)(const Job&, int64_t b, int64_t r0, int64_t r1);
  };
};

template <class T>
using DualSoftmaxKernels = typename CpuDualSoftmax<T>::Kernels;
SEMIMATCH_DECLARE_KERNELS(DualSoftmaxKernels, dual_softmax_kernels)

}  // namespace semimatch
