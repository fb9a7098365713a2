// Interface between the CPU op `correlation` (correlation.cpp: memory, threads, choice of instruction set) and its
// loops (correlation_kernels.cpp: compiled once for each instruction set).
#pragma once

#include "../correlation.h"
#include "../matrices.h"
#include "columns.h"
#include "types.h"

namespace semimatch {

// O: element type of the result.
template <class O>
struct CpuCorrelation {
  using A = typename Accumulate<O>::Type;

  struct Kernels {
    // Writes the columns to a result whose rows are `stride` apart, from the first column on.
    void (*write)(const Columns<A>&, int64_t rows, const Epilogue&, O* to, int64_t stride);
    // Turns the columns, inner products, into the gradient by them, given that by the result [batch, S, T], any
    // strides. Without an epilogue they are not read.
    void (*gradient)(const Columns<A>&, const Epilogue&, const Matrices<O>& grad);
  };
};

template <class O>
using CorrelationKernels = typename CpuCorrelation<O>::Kernels;
SEMIMATCH_DECLARE_KERNELS(CorrelationKernels, correlation_kernels)

}  // namespace semimatch
