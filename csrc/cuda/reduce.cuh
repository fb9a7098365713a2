// Kernels that reduce matrices along their columns, their rows, or both from one read, and one that maps them entry by
// entry. An op supplies the entries, what is made of them, and what becomes of the results:
//
//   Source    plane(b), a matrix of the batch, with at(row, col), the entry as a number of the accumulate type;
//             turned(): neighbouring rows are closer in memory than neighbouring columns
//   Reducer   State; kPadding, an entry that adds nothing; none(); line(b, i), what entries of line i need;
//             add<n>(State&, const A* c, valid, Run, line), entries with ascending indices; merge(State&, State)
//
// Every result is written by one thread, and sums are taken in an order that depends on shapes alone: repeated runs
// agree bit for bit.
#pragma once

#include "../contrastive.h"
#include "../matrices.h"
#include "../mutual.h"
#include "tensors.h"

namespace semimatch {

// Kernels ask for at least 1 block of theirs on a multiprocessor: left to itself, ptxas keeps registers free for more
// by spilling what a thread needs at its end only.

// Entries of a line that are on their way at a time, as registers allow.
template <class A>
constexpr int kBatch = sizeof(A) == 8 ? 4 : 8;

// Cells first, first + step, ...
struct Run {
  int64_t first;
  int step;
  SEMIMATCH_FN int64_t index(int i) const { return first + int64_t(step) * i; }
};

// --- sources ---

template <class T, class A>
struct Plane {
  const T* data;
  int64_t stride_row, stride_col;
  SEMIMATCH_FN A at(int64_t row, int64_t col) const { return widen<A>(data[row * stride_row + col * stride_col]); }
};

template <class T, class A>
struct Entries {
  Matrices<T> m;
  SEMIMATCH_FN Plane<T, A> plane(int64_t b) const { return {m.at(b, 0, 0), m.stride_row, m.stride_col}; }
  SEMIMATCH_FN bool turned() const { return m.stride_row < m.stride_col; }
};

// --- reducers ---

// The largest entry and its index, the lowest among equals; NaN is larger than anything.
template <class A>
struct Tops {
  using State = Best<A>;
  struct Line {};
  static constexpr A kPadding = -A(INFINITY);
  SEMIMATCH_FN State none() const { return no_best<A>(); }
  SEMIMATCH_FN Line line(int64_t, int64_t) const { return {}; }
  template <int n>
  SEMIMATCH_FN void add(State& s, const A* c, int64_t, Run run, Line) const {
#pragma unroll
    for (int i = 0; i < n; ++i) take(s, c[i], Number<A>::same(run.index(i)));
  }
  SEMIMATCH_FN void merge(State& s, State other) const { s = better(s, other); }
};

// The log-sum-exp.
template <class A>
struct Masses {
  using State = Mass<A>;
  struct Line {};
  static constexpr A kPadding = -A(INFINITY);
  A scale;
  SEMIMATCH_FN State none() const { return no_mass<A>(); }
  SEMIMATCH_FN Line line(int64_t, int64_t) const { return {}; }
  template <int n>
  SEMIMATCH_FN void add(State& s, const A* c, int64_t, Run, Line) const {
    semimatch::add<n>(s, c, n, scale);
  }
  SEMIMATCH_FN void merge(State& s, State other) const { semimatch::merge(s, other, scale); }
};

template <class A>
struct Sums {
  struct State {
    A sum;
  };
  struct Line {};
  static constexpr A kPadding = 0;
  SEMIMATCH_FN State none() const { return {A(0)}; }
  SEMIMATCH_FN Line line(int64_t, int64_t) const { return {}; }
  template <int n>
  SEMIMATCH_FN void add(State& s, const A* c, int64_t, Run, Line) const {
    A part = 0;
#pragma unroll
    for (int i = 0; i < n; ++i) part += c[i];
    s.sum += part;
  }
  SEMIMATCH_FN void merge(State& s, State other) const { s.sum += other.sum; }
};

// --- one line ---

template <class S>
__device__ __forceinline__ S from_lane(S s, int lane_or_delta, bool other_lane) {
  static_assert(sizeof(S) % sizeof(uint32_t) == 0);
  constexpr int kWords = sizeof(S) / sizeof(uint32_t);
  uint32_t words[kWords];
  memcpy(words, &s, sizeof(S));
#pragma unroll
  for (int i = 0; i < kWords; ++i)
    words[i] = other_lane ? __shfl_xor_sync(0xffffffff, words[i], lane_or_delta)
                          : __shfl_sync(0xffffffff, words[i], lane_or_delta);
  memcpy(&s, words, sizeof(S));
  return s;
}

// The reduction over all rows of the column `col` of each lane, of which there are `lanes`; a thread with `wanted`
// false, or with none, adds nothing. All threads of the block call it and get the results; `parts` may be used again.
template <int kWarps, class Plane, class R>
__device__ __forceinline__ typename R::State reduce_column(const Plane& plane, const R& r, int64_t rows, int64_t b,
                                                           int64_t col, bool wanted,
                                                           typename R::State (&parts)[kWarps][kWarp]) {
  using A = decltype(plane.at(0, 0));
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const auto [begin, end] = range_of(warp, kWarps, rows);
  auto s = r.none();
  if (wanted) {
    const auto line = r.line(b, col);
    for (int64_t row = begin; row < end; row += kBatch<A>) {
      A c[kBatch<A>];
#pragma unroll
      for (int i = 0; i < kBatch<A>; ++i) c[i] = row + i < end ? plane.at(row + i, col) : R::kPadding;
      r.template add<kBatch<A>>(s, c, end - row, {row, 1}, line);
    }
  }
  parts[warp][lane] = s;
  __syncthreads();
  for (int half = kWarps / 2; half > 0; half /= 2) {
    if (warp < half) {
      r.merge(s, parts[warp + half][lane]);
      parts[warp][lane] = s;
    }
    __syncthreads();
  }
  s = parts[0][lane];
  __syncthreads();
  return s;
}

// The reduction over all columns of a row; all lanes of the warp call it and get the result.
template <class Plane, class R>
__device__ __forceinline__ typename R::State reduce_row(const Plane& plane, const R& r, int64_t cols, int64_t b,
                                                        int64_t row) {
  using A = decltype(plane.at(0, 0));
  const int lane = threadIdx.x % kWarp;
  auto s = r.none();
  const auto line = r.line(b, row);
  for (int64_t col = lane; col < cols; col += kWarp * kBatch<A>) {
    A c[kBatch<A>];
#pragma unroll
    for (int i = 0; i < kBatch<A>; ++i) c[i] = col + i * kWarp < cols ? plane.at(row, col + i * kWarp) : R::kPadding;
    r.template add<kBatch<A>>(s, c, ceil_div(cols - col, kWarp), {col, kWarp}, line);
  }
#pragma unroll
  for (int delta = kWarp / 2; delta > 0; delta /= 2) r.merge(s, from_lane(s, delta, true));
  return from_lane(s, 0, false);
}

// --- a result for each column, or for each row ---
// Job: source, batch, rows, cols; wanted(b, line); first, a Reducer; second(b, line, state of first), where kTwice says
// that there is one, another plane and Reducer; finish(b, line, state, state of second).

template <class Job>
__global__ void __launch_bounds__(kWarp* kColumnWarps, 1) reduce_columns(Job job) {
  const Tiling::Place at = column_tiling(job.batch, job.cols).place(blockIdx.x);
  const int64_t b = at.b, col = at.col + threadIdx.x % kWarp;
  const bool exists = col < job.cols;
  const bool wanted = exists && job.wanted(b, col);
  SEMIMATCH_SHARED(parts, typename decltype(job.first)::State[kColumnWarps][kWarp]);
  const auto s = reduce_column<kColumnWarps>(job.source.plane(b), job.first, job.rows, b, col, wanted, parts);
  if constexpr (Job::kTwice) {
    const auto [plane, second] = job.second(b, col, s);
    SEMIMATCH_SHARED(more, typename decltype(second)::State[kColumnWarps][kWarp]);
    const auto again = reduce_column<kColumnWarps>(plane, second, job.rows, b, col, wanted, more);
    if (threadIdx.x < kWarp && exists) job.finish(b, col, wanted, s, again);
  } else {
    if (threadIdx.x < kWarp && exists) job.finish(b, col, wanted, s);
  }
}

template <class Job>
__global__ void __launch_bounds__(kWarp* kRowWarps, 1) reduce_rows(Job job) {
  const int64_t cell = int64_t(blockIdx.x) * kRowWarps + threadIdx.x / kWarp;  // over batch and rows
  if (cell >= job.batch * job.rows) return;                                    // the whole warp
  const int64_t b = cell / job.rows, row = cell % job.rows;
  const bool wanted = job.wanted(b, row);
  auto s = job.first.none();
  if (wanted) s = reduce_row(job.source.plane(b), job.first, job.cols, b, row);
  if constexpr (Job::kTwice) {
    const auto [plane, second] = job.second(b, row, s);
    auto again = second.none();
    if (wanted) again = reduce_row(plane, second, job.cols, b, row);
    if (threadIdx.x % kWarp == 0) job.finish(b, row, wanted, s, again);
  } else {
    if (threadIdx.x % kWarp == 0) job.finish(b, row, wanted, s);
  }
}

// --- both from one read ---
// Job: A, the accumulate type; source, batch, rows, cols; per_col and per_row, Reducers; finish_col(b, col, state),
// finish_row(b, row, state).

template <class A>
using Tile = A[kTile][kTile + 1];  // one more: threads along a column of it meet no bank twice

// Reads the tile that begins at (row0, col0), with `padding` outside the matrix; neighbouring threads read neighbours.
template <class A, class Plane>
__device__ __forceinline__ void load_tile(Tile<A>& tile, const Plane& plane, bool turned, int64_t rows, int64_t cols,
                                          int64_t row0, int64_t col0, A padding) {
  const int along = threadIdx.x % kTile, across = threadIdx.x / kTile;
#pragma unroll kBatch < A>
  for (int i = across; i < kTile; i += kShares) {
    const int r = turned ? along : i, c = turned ? i : along;
    tile[r][c] = row0 + r < rows && col0 + c < cols ? plane.at(row0 + r, col0 + c) : padding;
  }
}

// Adds a thread's share of one line of a tile, from cell `first` of the line; `n` cells of the line exist.
template <class A, class R, class Line>
__device__ __forceinline__ void add_share(const R& r, typename R::State& s, const A* from, int stride, int64_t first,
                                          int64_t n, const Line& line) {
#pragma unroll 1
  for (int i = 0; i < kTile / kShares; i += kBatch<A>) {
    A c[kBatch<A>];
#pragma unroll
    for (int k = 0; k < kBatch<A>; ++k) c[k] = from[(i + k) * stride];
    r.template add<kBatch<A>>(s, c, n - first - i, {first + i, 1}, line);
  }
}

// Merges the shares of each of the kTile lines; the threads of share 0 hold the result.
template <class R>
__device__ __forceinline__ void merge_shares(const R& r, typename R::State& s,
                                             typename R::State (&parts)[kShares][kTile], int cell, int share) {
  parts[share][cell] = s;
  __syncthreads();
  if (share == 0)
    for (int i = 1; i < kShares; ++i) r.merge(s, parts[i][cell]);
}

// A panel of kTile rows from row0, tiles [first, last): `store_col(col, state)` is called for the columns, of these
// rows, and the state of the thread's row is returned; both by the threads of share 0 alone.
template <class Job, class Store>
__device__ __forceinline__ auto reduce_panel(const Job& job, Tile<typename Job::A>& tile,
                                             typename decltype(Job::per_col)::State (&col_parts)[kShares][kTile],
                                             typename decltype(Job::per_row)::State (&row_parts)[kShares][kTile],
                                             int64_t b, int64_t row0, int64_t first_tile, int64_t last_tile,
                                             const Store& store_col) {
  const int cell = threadIdx.x % kTile, share = threadIdx.x / kTile, first = share * (kTile / kShares);
  const auto plane = job.source.plane(b);
  const bool turned = job.source.turned();
  auto of_row = job.per_row.none();
  const int64_t row = row0 + cell < job.rows ? row0 + cell : job.rows - 1;
  const auto row_line = job.per_row.line(b, row);
  for (int64_t t = first_tile; t < last_tile; ++t) {
    const int64_t col0 = t * kTile;
    load_tile(tile, plane, turned, job.rows, job.cols, row0, col0, decltype(Job::per_col)::kPadding);
    __syncthreads();
    add_share<typename Job::A>(job.per_row, of_row, &tile[cell][first], 1, col0 + first, job.cols, row_line);
    auto of_col = job.per_col.none();
    const int64_t col = col0 + cell < job.cols ? col0 + cell : job.cols - 1;
    add_share<typename Job::A>(job.per_col, of_col, &tile[first][cell], kTile + 1, row0 + first, job.rows,
                               job.per_col.line(b, col));
    merge_shares(job.per_col, of_col, col_parts, cell, share);
    if (share == 0 && col0 + cell < job.cols) store_col(col0 + cell, of_col);
    // `tile` has been read by all; `col_parts` is written again only after the barrier that follows the next load.
  }
  merge_shares(job.per_row, of_row, row_parts, cell, share);
  return of_row;
}

// col_parts [batch, row panels, cols], row_parts [batch, runs, rows].
template <class Job, class ColState, class RowState>
__global__ void __launch_bounds__(kTileThreads, 1)
    reduce_tiles(Job job, TileRuns runs, ColState* col_parts, RowState* row_parts) {
  const TileRuns::Place at = runs.place(blockIdx.x);
  SEMIMATCH_SHARED(tile, Tile<typename Job::A>);
  SEMIMATCH_SHARED(cols, ColState[kShares][kTile]);
  SEMIMATCH_SHARED(rows, RowState[kShares][kTile]);
  const int64_t row = at.panel * kTile + threadIdx.x % kTile;
  const RowState of_row = reduce_panel(
      job, tile, cols, rows, at.b, at.panel * kTile, at.first_tile, at.last_tile,
      [&](int64_t col, const ColState& s) { col_parts[(at.b * runs.panels + at.panel) * job.cols + col] = s; });
  if (threadIdx.x < kTile && row < job.rows) row_parts[(at.b * runs.runs + at.run) * job.rows + row] = of_row;
}

// The state of a line from its `pieces` parts [batch, pieces, cells], in order.
template <class R>
SEMIMATCH_FN typename R::State merged(const R& r, const typename R::State* parts, int64_t pieces, int64_t cells,
                                      int64_t b, int64_t i) {
  const auto* from = parts + b * pieces * cells + i;
  auto s = from[0];
  for (int64_t p = 1; p < pieces; ++p) r.merge(s, from[p * cells]);
  return s;
}

template <class Job, class ColState, class RowState>
__global__ void __launch_bounds__(kItemThreads, 1)
    merge_tiles(Job job, TileRuns runs, const ColState* col_parts, const RowState* row_parts) {
  int64_t i = int64_t(blockIdx.x) * kItemThreads + threadIdx.x;
  if (i < job.batch * job.cols) {
    const int64_t b = i / job.cols, col = i % job.cols;
    job.finish_col(b, col, merged(job.per_col, col_parts, runs.panels, job.cols, b, col));
    return;
  }
  i -= job.batch * job.cols;
  if (i >= job.batch * job.rows) return;
  const int64_t b = i / job.rows, row = i % job.rows;
  job.finish_row(b, row, merged(job.per_row, row_parts, runs.runs, job.rows, b, row));
}

// Launches both. The states lie in memory of their own meanwhile.
template <class Job>
void reduce_both(const char* name, const Job& job, const OnDevice& device, const torch::stable::Tensor& like) {
  using ColState = typename decltype(Job::per_col)::State;
  using RowState = typename decltype(Job::per_row)::State;
  const TileRuns runs = tile_runs(job.batch, job.rows, job.cols);
  const int64_t col_count = job.batch * runs.panels * job.cols, row_count = job.batch * runs.runs * job.rows;
  Workspace memory(like, col_count * sizeof(ColState) + row_count * sizeof(RowState), 2);
  auto* col_parts = memory.take<ColState>(col_count);
  auto* row_parts = memory.take<RowState>(row_count);
  launch(name, reduce_tiles<Job, ColState, RowState>, tiles_geometry(runs), device.stream(), job, runs, col_parts,
         row_parts);
  launch(name, merge_tiles<Job, ColState, RowState>, items_geometry(job.batch * (job.rows + job.cols)), device.stream(),
         job, runs, col_parts, row_parts);
}

// --- entry by entry ---
// Job: batch, rows, cols; plane(b) with at(row, col), what is read of an entry; col_of(b, col), row_of(b, row), what
// all entries of a line share; value(entry, row, col, of the column, of the row); out, contiguous [batch, rows, cols].

template <class Job>
__global__ void __launch_bounds__(kMapThreads, 1) map_entries(Job job) {
  const auto [b, row0, col0] = map_tiling(job.batch, job.rows, job.cols).place(blockIdx.x);
  SEMIMATCH_SHARED(row_states, decltype(job.row_of(0, 0))[kMapRows]);
  const int mine = threadIdx.x % kMapCols;
  const int64_t col = col0 + mine;
  SEMIMATCH_SHARED(col_states, decltype(job.col_of(0, 0))[kMapCols]);
  if (threadIdx.x < kMapRows) {
    if (row0 + threadIdx.x < job.rows) row_states[threadIdx.x] = job.row_of(b, row0 + threadIdx.x);
  } else if (threadIdx.x < kMapRows + kMapCols) {
    if (col < job.cols) col_states[mine] = job.col_of(b, col);
  }
  __syncthreads();
  if (col >= job.cols) return;
  const auto of_col = col_states[mine];
  const auto plane = job.plane(b);
  constexpr int kStep = kMapThreads / kMapCols, kAtATime = 4;
  const int rows = static_cast<int>(job.rows - row0 < kMapRows ? job.rows - row0 : kMapRows);
  auto* to = job.out + (b * job.rows + row0) * job.cols + col;
  for (int r = threadIdx.x / kMapCols; r < rows; r += kAtATime * kStep) {
    decltype(plane.at(0, 0)) c[kAtATime];  // all loads before the first store, which might change what they read
#pragma unroll
    for (int i = 0; i < kAtATime; ++i)
      if (r + i * kStep < rows) c[i] = plane.at(row0 + r + i * kStep, col);
#pragma unroll
    for (int i = 0; i < kAtATime; ++i) {
      const int row = r + i * kStep;
      if (row < rows) to[row * job.cols] = job.value(c[i], row0 + row, col, of_col, row_states[row]);
    }
  }
}

}  // namespace semimatch
