// Interface between the CPU op (match.cpp: memory, threads, choice of instruction set) and its loops
// (match_kernels.cpp: compiled once for each instruction set).
#pragma once

#include "../match_job.h"
#include "types.h"

namespace semimatch {

template <class T>
struct CpuMatch {
  using A = typename Accumulate<T>::Type;
  using Job = MatchJob<T, A>;

  // Centred positions of the rows and of the columns in their grids; those of the columns are padded to whole groups.
  struct Positions {
    const A *row_x, *row_y, *col_x, *col_y;
  };

  // Rows that are read at a time: their vectors of one group stay in the first-level cache.
  static constexpr int kRows = 32;

  // Columns are handled in groups as wide as a vector, the last one possibly short. What is kept for a group between
  // two calls, its statistics or its slopes, is opaque: an array of `stats_bytes` or `slope_bytes` each, aligned to 64.
  struct Kernels {
    int group;  // columns of one
    int64_t stats_bytes, slope_bytes;
    // Matches of rows [r0, r1), written to the results.
    void (*rows)(const Job&, const Positions&, int64_t b, int64_t r0, int64_t r1);
    // Statistics over rows [r0, r1) of the columns of groups [g0, g1); stats[0] is that of g0.
    void (*columns)(const Job&, const Positions&, int64_t b, int64_t r0, int64_t r1, int64_t g0, int64_t g1,
                    void* stats);
    // Merges `panels` sets of statistics of groups [g0, g1), `step` groups apart, in order; writes the results.
    void (*finish_columns)(const Job&, int64_t b, int64_t g0, int64_t g1, const void* stats, int64_t panels,
                           int64_t step);
    // Slopes of the columns of groups [g0, g1); slopes[0] is that of g0.
    void (*column_slopes)(const Job&, int64_t b, int64_t g0, int64_t g1, void* slopes);
    // The gradient of rows [r0, r1), at most kRows; `slopes` are those of all groups.
    void (*gradient)(const Job&, const Positions&, int64_t b, int64_t r0, int64_t r1, const void* slopes);
  };
};

template <class T>
using MatchKernels = typename CpuMatch<T>::Kernels;
SEMIMATCH_DECLARE_KERNELS(MatchKernels, match_kernels)

}  // namespace semimatch
