// `match` on the CPU: memory, threads and the order of the work. The loops are in match_kernels.cpp.
//
// Every task writes its own results, and sums are taken in an order that depends on shapes alone: results are the same,
// bit for bit, for every number of threads.
#include <algorithm>

#include "../match_ops.h"
#include "dispatch.h"
#include "match_kernels.h"
#include "memory.h"
#include "parts.h"
#include "work.h"

namespace semimatch {
namespace {

// The positions of all rows and columns; see CpuMatch::Positions.
template <class T>
class PositionTables {
  using A = typename CpuMatch<T>::A;
  std::vector<A> values_;
  int64_t rows_, cols_;

 public:
  PositionTables(const typename CpuMatch<T>::Job& job, int group)
      : rows_(job.rows), cols_(ceil_div(job.cols, group) * group) {
    values_.assign(2 * (rows_ + cols_), A(0));
    for (int64_t i = 0; job.per_col.wanted && i < rows_; ++i) set(i, rows_, 0, job.per_col.grid);
    for (int64_t i = 0; job.per_row.wanted && i < job.cols; ++i) set(i, cols_, 2 * rows_, job.per_row.grid);
  }
  void set(int64_t cell, int64_t n, int64_t at, Grid grid) {
    const Position<A> p = position_of<A>(grid, int(cell));
    values_[at + cell] = p.x;
    values_[at + n + cell] = p.y;
  }
  typename CpuMatch<T>::Positions get() const {
    const A* v = values_.data();
    return {v, v + rows_, v + 2 * rows_, v + 2 * rows_ + cols_};
  }
};

// Rows that are read for more than their columns are read in panels that the second-level cache holds: once for the
// rows and then, from the cache, for the columns.
constexpr int64_t kPanelBytes = 256 * 1024;

}  // namespace

template <class T>
void match_forward(const typename CpuMatch<T>::Job& job, const RowsTask& also) {
  using Match = CpuMatch<T>;
  const auto kernels = SEMIMATCH_BEST(match_kernels<T>());
  const PositionTables<T> tables(job, kernels.group);
  const auto at = tables.get();
  const int64_t groups = ceil_div(job.cols, kernels.group);
  if (!job.per_col.wanted) {
    for_pieces(job.batch, job.rows, rows_per_piece(job.cols),
               [&](int64_t b, int64_t r0, int64_t r1) { kernels.rows(job, at, b, r0, r1); });
    return;
  }
  if (!job.per_row.wanted && !also) {
    const int64_t piece = columns_per_piece(job.batch * job.cols) / kernels.group;
    for_pieces(job.batch, groups, piece, [&](int64_t b, int64_t g0, int64_t g1) {
      const Scratch stats(g1 - g0, kernels.stats_bytes);
      kernels.columns(job, at, b, 0, job.rows, g0, g1, stats.at(0));
      kernels.finish_columns(job, b, g0, g1, stats.at(0), 1, 0);
    });
    return;
  }
  const int64_t row_bytes = job.cols * int64_t(sizeof(T));
  const int64_t panel = std::max<int64_t>(1, kPanelBytes / (row_bytes * Match::kRows)) * Match::kRows;
  const int64_t panels = ceil_div(job.rows, panel);
  const Scratch stats(job.batch * panels * groups, kernels.stats_bytes);
  for_pieces(job.batch, job.rows, panel, [&](int64_t b, int64_t r0, int64_t r1) {
    if (job.per_row.wanted) kernels.rows(job, at, b, r0, r1);
    if (also) also(b, r0, r1);
    kernels.columns(job, at, b, r0, r1, 0, groups, stats.at((b * panels + r0 / panel) * groups));
  });
  for_pieces(job.batch, groups, kNarrow / kernels.group, [&](int64_t b, int64_t g0, int64_t g1) {
    kernels.finish_columns(job, b, g0, g1, stats.at(b * panels * groups + g0), panels, groups);
  });
}

template void match_forward<float>(const CpuMatch<float>::Job&, const RowsTask&);
template void match_forward<double>(const CpuMatch<double>::Job&, const RowsTask&);
template void match_forward<BFloat16>(const CpuMatch<BFloat16>::Job&, const RowsTask&);
template void match_forward<Float16>(const CpuMatch<Float16>::Job&, const RowsTask&);

namespace {

struct Cpu {
  static constexpr NewTensor* new_tensor = new_large;
  using Half = Float16;
  using BFloat16 = semimatch::BFloat16;

  template <class T, class A>
  static void forward(const MatchJob<T, A>& job, const Tensor&) {
    match_forward<T>(job);
  }

  template <class T, class A>
  static void backward(const MatchJob<T, A>& job, const Tensor&) {
    using Match = CpuMatch<T>;
    const auto kernels = SEMIMATCH_BEST(match_kernels<T>());
    const PositionTables<T> tables(job, kernels.group);
    const auto at = tables.get();
    const int64_t groups = ceil_div(job.cols, kernels.group);
    const Scratch slopes(job.per_col.wanted ? job.batch * groups : 0, kernels.slope_bytes);
    if (job.per_col.wanted) {
      for_pieces(job.batch, groups, kNarrow / kernels.group, [&](int64_t b, int64_t g0, int64_t g1) {
        kernels.column_slopes(job, b, g0, g1, slopes.at(b * groups + g0));
      });
    }
    for_pieces(job.batch, job.rows, Match::kRows,
               [&](int64_t b, int64_t r0, int64_t r1) { kernels.gradient(job, at, b, r0, r1, slopes.at(b * groups)); });
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(semimatch_kernels, CPU, library) { MatchOps<Cpu>::implement(library); }

}  // namespace semimatch
