// Kernels of `pseudo_labels`, all from one read of the correlation: a panel of rows at a time gives the statistics of
// the target cells and the best target cell of each source cell. The target cells are the columns of the matrices, or
// with kTargetRows their rows.
//
// In a cluster the parts that blocks found stay in their shared memory, and the labels follow in the same launch;
// otherwise they go through memory to a second one. Only entropies with eps, which need the column's total first, read
// the correlation again.
#pragma once

#include "../consistency.h"
#include "../pseudo_labels.h"
#include "cluster.cuh"
#include "reduce.cuh"

namespace semimatch {

template <class A>
struct LabelReducer {
  using State = LabelStats<A>;
  struct Line {};
  static constexpr A kPadding = -A(INFINITY);
  A scale;
  SEMIMATCH_FN State none() const { return no_label<A>(); }
  SEMIMATCH_FN Line line(int64_t, int64_t) const { return {}; }
  template <int n>
  SEMIMATCH_FN void add(State& s, const A* c, int64_t, Run run, Line) const {
    semimatch::add<n>(s, c, scale, [&](int i) { return run.index(i); });
  }
  SEMIMATCH_FN void merge(State& s, State other) const { semimatch::merge(s, other, scale); }
};

// The entropy with eps of a column of which the rest is known.
template <class A>
struct EntropyReducer {
  struct State {
    A sum;
  };
  struct Line {};
  static constexpr A kPadding = 0;
  A top, score, scale, eps;
  SEMIMATCH_FN State none() const { return {A(0)}; }
  SEMIMATCH_FN Line line(int64_t, int64_t) const { return {}; }
  template <int n>
  SEMIMATCH_FN void add(State& s, const A* c, int64_t valid, Run, Line) const {
    A part = 0;
#pragma unroll
    for (int i = 0; i < n; ++i)
      if (i < valid) part -= entropy_term(c[i], top, score, scale, eps);
    s.sum += part;
  }
  SEMIMATCH_FN void merge(State& s, State other) const { s.sum += other.sum; }
};

// Boxes [batch, 4] of float32 or float64; null for none.
struct Boxes {
  const void* data;
  bool wide;
  int64_t stride_batch, stride_number;
  SEMIMATCH_FN double number(int64_t b, int i) const {
    const int64_t at = b * stride_batch + i * stride_number;
    return nearbyint(wide ? static_cast<const double*>(data)[at] : double(static_cast<const float*>(data)[at]));
  }
  SEMIMATCH_FN bool hold(int64_t b, int64_t cell, Grid grid) const {
    if (data == nullptr) return true;
    const Box box = {number(b, 0), number(b, 1), number(b, 2), number(b, 3)};
    return box.holds(cell, grid);
  }
};

// What a call asks for.
template <class T, bool kTargetRows>
struct LabelJob {
  using A = Wide<T>;
  using Target = LabelReducer<A>;
  using Source = Tops<A>;
  Entries<T, A> source;
  int64_t batch, rows, cols;
  std::conditional_t<kTargetRows, Source, Target> per_col;
  std::conditional_t<kTargetRows, Target, Source> per_row;
  Grid source_grid, target_grid;
  bool forward_backward;
  Consistency consistency;
  Boxes source_box, target_box;
  A threshold, uncertainty, scale, eps;
  Cells<int64_t> cell;  // where results are read; null: each at its own cell
  Cells<bool> valid;
  int64_t* labels;
  A *weight, *score, *entropy;
  bool* mask;

  SEMIMATCH_FN int64_t sources() const { return kTargetRows ? cols : rows; }
  SEMIMATCH_FN int64_t targets() const { return kTargetRows ? rows : cols; }

  // Writes result i of batch element b, that of target cell t; of_source[s] is the best target cell of source cell s.
  template <class OfSource>
  SEMIMATCH_FN void finish(int64_t b, int64_t i, int64_t t, const LabelStats<A>& s, A score_, A entropy_,
                           const OfSource& of_source) const {
    const bool seen = valid.data == nullptr || (valid.at(b, i) && cell.at(b, i) == t);
    const int64_t label = s.best.index, at = b * targets() + i;
    // A cell with no admissible match has score 0, which a threshold of 0 would let pass.
    mask[at] = seen && score_ > A(0) && score_ >= threshold && source_box.hold(b, label, source_grid) &&
               target_box.hold(b, t, target_grid) &&
               (!forward_backward || consistent(consistency, t, label, of_source));
    labels[at] = seen ? label : -1;
    weight[at] = std::exp(-uncertainty * entropy_);
    score[at] = score_;
    entropy[at] = entropy_;
  }
};

// --- where the states of a line are ---

// Parts [batch, pieces, cells] in memory.
template <class R>
struct PartsInMemory {
  R r;
  const typename R::State* parts;
  int64_t pieces, cells;
  SEMIMATCH_FN typename R::State at(int64_t b, int64_t i) const { return merged(r, parts, pieces, cells, b, i); }
};

// One part of each column in each block of the cluster.
template <class R>
struct PartsInCluster {
  R r;
  typename R::State* mine;
  int blocks;
  __device__ typename R::State at(int64_t, int64_t i) const {
    using State = typename R::State;
    return over_cluster(mine + i, 0, 1, blocks, [&](State& s, const State& other) { r.merge(s, other); });
  }
};

// Whole states of rows, `rows` in each block of the cluster.
template <class State>
struct RowsInCluster {
  State* mine;
  int rows;
  __device__ State at(int64_t, int64_t i) const {
    return shared_of(mine, static_cast<int>(i) / rows)[static_cast<int>(i) % rows];
  }
};

// The best cells of the source cells of batch element b.
template <class Of>
struct Matches {
  const Of& of;
  int64_t b;
  __device__ int64_t operator[](int64_t i) const { return of.at(b, i).index; }
};

// --- labels from states ---

// Results [first, first + 32) of batch element b, those that exist; all threads of a block of kLabelWarps call it.
template <class T, bool kTargetRows, class OfTarget, class OfSource, class Parts>
__device__ __forceinline__ void write_labels(const LabelJob<T, kTargetRows>& job, int64_t b, int64_t first,
                                             const OfTarget& of_target, const OfSource& of_source, Parts& parts) {
  using A = Wide<T>;
  const auto plane = job.source.plane(b);
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const Matches<OfSource> matches = {of_source, b};
  const auto cell_of = [&](int64_t i) {  // one that does not exist must not be read
    const int64_t t = job.cell.data == nullptr ? i : job.cell.at(b, i);
    return t < 0 || t >= job.targets() ? 0 : t;
  };
  const auto score_of = [&](const LabelStats<A>& s) { return s.mass == A(0) ? A(0) : A(1) / s.mass; };
  const auto entropy_of = [&](const LabelStats<A>& s, A score) {
    return s.mass == A(0) ? A(0) : std::log(s.mass) - A(kLn2) * (s.t * score);
  };
  if constexpr (kTargetRows) {
    for (int64_t i = first + warp; i < first + kWarp && i < job.targets(); i += kLabelWarps) {
      const int64_t t = cell_of(i);
      const LabelStats<A> s = of_target.at(b, t);
      const A score = score_of(s);
      A entropy = entropy_of(s, score);
      if (job.eps != A(0))
        entropy = reduce_row(plane, EntropyReducer<A>{s.best.top, score, job.scale, job.eps}, job.cols, b, t).sum;
      if (lane == 0) job.finish(b, i, t, s, score, entropy, matches);
    }
  } else {
    const int64_t i = first + lane;
    const bool exists = i < job.targets();
    const int64_t t = exists ? cell_of(i) : 0;
    const LabelStats<A> s = of_target.at(b, t);
    const A score = score_of(s);
    A entropy = entropy_of(s, score);
    if (job.eps != A(0)) {
      const EntropyReducer<A> reducer = {s.best.top, score, job.scale, job.eps};
      entropy = reduce_column<kLabelWarps>(plane, reducer, job.rows, b, t, exists, parts).sum;
    }
    if (warp == 0 && exists) job.finish(b, i, t, s, score, entropy, matches);
  }
}

template <class T, bool kTargetRows>
using EntropyParts = typename EntropyReducer<Wide<T>>::State[kLabelWarps][kWarp];

// The second launch.
template <class T, bool kTargetRows, class OfCol, class OfRow>
__global__ void __launch_bounds__(kLabelThreads, 1)
    pseudo_labels_from_parts(LabelJob<T, kTargetRows> job, OfCol of_col, OfRow of_row) {
  const Tiling::Place at = label_tiling(job.batch, job.targets()).place(blockIdx.x);
  SEMIMATCH_SHARED(parts, EntropyParts<T, kTargetRows>);
  if constexpr (kTargetRows) {
    write_labels(job, at.b, at.col, of_row, of_col, parts);
  } else {
    write_labels(job, at.b, at.col, of_col, of_row, parts);
  }
}

// All in one: a cluster a matrix.
template <class T, bool kTargetRows>
__global__ void __launch_bounds__(kLabelThreads, 1) pseudo_labels_in_cluster(LabelJob<T, kTargetRows> job) {
  using Job = LabelJob<T, kTargetRows>;
  using ColReducer = decltype(Job::per_col);
  using ColState = typename ColReducer::State;
  using RowState = typename decltype(Job::per_row)::State;
  SEMIMATCH_SHARED(tile, Tile<Wide<T>>);
  SEMIMATCH_SHARED(col_shares, ColState[kShares][kTile]);
  SEMIMATCH_SHARED(row_shares, RowState[kShares][kTile]);
  SEMIMATCH_SHARED(cols, ColState[kClusterCells]);
  SEMIMATCH_SHARED(rows, RowState[kClusterRows]);
  SEMIMATCH_SHARED(parts, EntropyParts<T, kTargetRows>);
  const ClusterShares shares = cluster_shares(job.rows);
  const int rank = cluster_rank();
  const int64_t b = blockIdx.x / shares.blocks;
  for (int i = threadIdx.x; i < job.cols; i += kLabelThreads) cols[i] = job.per_col.none();
  __syncthreads();
  for (int panel = 0; panel < shares.rows; panel += kTile) {
    const int64_t row0 = int64_t(rank) * shares.rows + panel;
    if (row0 >= job.rows) break;  // the whole block
    const RowState of_row = reduce_panel(job, tile, col_shares, row_shares, b, row0, 0, ceil_div(job.cols, kTile),
                                         [&](int64_t col, const ColState& s) { job.per_col.merge(cols[col], s); });
    if (threadIdx.x < kTile) rows[panel + threadIdx.x] = of_row;
    __syncthreads();
  }
  cluster_barrier();
  const PartsInCluster<ColReducer> of_col = {job.per_col, cols, shares.blocks};
  const RowsInCluster<RowState> of_row = {rows, shares.rows};
  for (int64_t first = int64_t(rank) * kWarp; first < job.targets(); first += int64_t(shares.blocks) * kWarp) {
    if constexpr (kTargetRows) {
      write_labels(job, b, first, of_row, of_col, parts);
    } else {
      write_labels(job, b, first, of_col, of_row, parts);
    }
  }
  cluster_barrier();  // no block leaves while others read its shared memory
}

}  // namespace semimatch
