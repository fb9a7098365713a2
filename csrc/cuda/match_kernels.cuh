// Kernels of `match`. All of them take the blocks' place from blockIdx.x alone, address in 64 bits, and write every
// result from one thread in a fixed order: repeated runs agree bit for bit.
#pragma once

#include "../match_job.h"
#include "tensors.h"

namespace semimatch {

// Walks over cells first, first + step, first + 2 step, ... of a grid.
template <class A>
struct Walk {
  int64_t first;
  int step;
  A x_, y_, x_last, width, step_x, step_y;

  SEMIMATCH_FN Walk(Grid grid, int64_t first_cell, int step_cells) : first(first_cell), step(step_cells) {
    const Position<A> p = position_of<A>(grid, static_cast<int>(first_cell));
    x_ = p.x;
    y_ = p.y;
    width = A(grid.width);
    x_last = A(0.5) * (width - A(1));
    step_x = A(step % grid.width);
    step_y = A(step / grid.width);
  }
  SEMIMATCH_FN int64_t index(int i) const { return first + int64_t(step) * i; }
  SEMIMATCH_FN A x() const { return x_; }
  SEMIMATCH_FN A y() const { return y_; }
  SEMIMATCH_FN void next() {
    x_ += step_x;
    y_ += step_y;
    const bool wraps = x_ > x_last;
    x_ = wraps ? x_ - width : x_;
    y_ = wraps ? y_ + A(1) : y_;
  }
};

// Adds kCount entries, `stride` elements apart, of which the first `valid` exist, and moves the walk on.
template <int kCount, class A, class T>
SEMIMATCH_FN void add_strided(Stats<A>& s, const T* from, int64_t stride, int64_t valid, A scale, Walk<A>& walk) {
  const auto load = [&](int i) { return i < valid ? widen<A>(from[i * stride]) : lowest<A>(); };
  add<kCount>(s, load, kCount, scale, walk);
  walk.first += kCount * walk.step;
}

// --- one match per column ---
// A block has 32 neighbouring columns: neighbouring lanes read neighbouring entries of a row. Its warps share out the
// rows, each a run of them.
constexpr int kColumnBatch = 8;

template <class T, class A>
__global__ void __launch_bounds__(kWarp* kColumnWarps) match_columns(MatchJob<T, A> job) {
  const Tiling::Place at = column_tiling(job.batch, job.cols).place(blockIdx.x);
  const int64_t b = at.b;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int64_t col = at.col + lane;
  const auto [begin, end] = range_of(warp, kColumnWarps, job.rows);

  Stats<A> s = no_stats<A>();
  if (col < job.cols) {
    Walk<A> walk(job.per_col.grid, begin, 1);
    const T* from = job.at(b, begin, col);
    for (int64_t row = begin; row < end; row += kColumnBatch, from += kColumnBatch * job.stride_row)
      add_strided<kColumnBatch>(s, from, job.stride_row, end - row, job.scale, walk);
  }

  SEMIMATCH_SHARED(parts, Stats<A>[kColumnWarps][kWarp]);
  parts[warp][lane] = s;
  __syncthreads();
  for (int half = kColumnWarps / 2; half > 0; half /= 2) {
    if (warp < half) {
      merge(s, parts[warp + half][lane], job.scale);
      parts[warp][lane] = s;
    }
    __syncthreads();
  }
  if (warp == 0 && col < job.cols)
    finish(s, b * job.cols + col, job.per_col.grid, job.inverse_temperature, job.per_col.results);
}

// --- one match per row ---
// A warp has one row: neighbouring lanes read neighbouring entries.
constexpr int kRowBatch = 8;

// Statistics of a row from those of the warp's lanes; valid in lane 0.
template <class A>
__device__ __forceinline__ Stats<A> over_lanes(Stats<A> s, A scale) {
  constexpr unsigned kAll = 0xffffffff;
  A top = s.top;
#pragma unroll
  for (int delta = kWarp / 2; delta > 0; delta /= 2) {
    const A other = __shfl_xor_sync(kAll, top, delta);
    top = other > top ? other : top;
  }
  // A lane without the largest entry has no say in the index. The lowest one wins.
  auto index = s.top == top ? s.index : Number<A>::same(INT32_MAX);
  raise_top(s, top, scale);
#pragma unroll
  for (int delta = kWarp / 2; delta > 0; delta /= 2) {
    const auto other = __shfl_xor_sync(kAll, index, delta);
    index = other < index ? other : index;
    s.mass += __shfl_xor_sync(kAll, s.mass, delta);
    s.x += __shfl_xor_sync(kAll, s.x, delta);
    s.y += __shfl_xor_sync(kAll, s.y, delta);
    s.t += __shfl_xor_sync(kAll, s.t, delta);
  }
  s.index = index;
  return s;
}

template <class T, class A>
__global__ void __launch_bounds__(kWarp* kRowWarps, kBlocksPerSm<A>) match_rows(MatchJob<T, A> job) {
  const int64_t cell = int64_t(blockIdx.x) * kRowWarps + threadIdx.x / kWarp;  // over batch and rows
  if (cell >= job.batch * job.rows) return;                                    // the whole warp
  const int lane = threadIdx.x % kWarp;
  Stats<A> s = no_stats<A>();
  if (lane < job.cols) {
    Walk<A> walk(job.per_row.grid, lane, kWarp);
    const T* from = job.at(cell / job.rows, cell % job.rows, lane);
    const int64_t stride = kWarp * job.stride_col;
    for (int64_t col = lane; col < job.cols; col += kWarp * kRowBatch, from += kRowBatch * stride)
      add_strided<kRowBatch>(s, from, stride, ceil_div(job.cols - col, kWarp), job.scale, walk);
  }
  s = over_lanes(s, job.scale);
  if (lane == 0) finish(s, cell, job.per_row.grid, job.inverse_temperature, job.per_row.results);
}

// --- both at once ---
// A block has kTile rows and a run of tiles along them. It reads a tile into shared memory once, and from there adds it
// to the statistics of its columns, which are thereby complete for these rows, and of its rows. What blocks find is
// merged by match_merge, in order.
constexpr int kShare = kTile / kShares;  // entries of a thread's share of a column or a row
constexpr int kTileBatch = 8;            // of which this many at a time

// Merges the shares of each of the kTile columns or rows; the threads of share 0 hold the result.
template <class A>
__device__ __forceinline__ void merge_shares(Stats<A>& s, Stats<A> (*parts)[kTile], int cell, int share, A scale) {
  parts[share][cell] = s;
  __syncthreads();
  if (share == 0) {
    for (int i = 1; i < kShares; ++i) merge(s, parts[i][cell], scale);
  }
}

// Adds a thread's share of a column or a row of the tile.
template <class A>
__device__ __forceinline__ void add_shared(Stats<A>& s, const A* from, int stride, A scale, Walk<A>& walk) {
#pragma unroll 1
  for (int i = 0; i < kShare; i += kTileBatch)
    add_strided<kTileBatch>(s, from + i * stride, stride, kTileBatch, scale, walk);
}

// col_parts [batch, row panels, cols], row_parts [batch, runs, rows].
template <class T, class A>
__global__ void __launch_bounds__(kTileThreads, kBlocksPerSm<A>)
    match_tiles(MatchJob<T, A> job, TileRuns runs, Stats<A>* col_parts, Stats<A>* row_parts) {
  const auto [b, panel, which_run, first_tile, last_tile] = runs.place(blockIdx.x);
  const int cell = threadIdx.x % kTile, share = threadIdx.x / kTile;
  const int64_t row0 = panel * kTile;

  SEMIMATCH_SHARED(tile, A[kTile][kTile + 1]);  // one more: threads along a column of it meet no bank twice
  SEMIMATCH_SHARED(parts, Stats<A>[kShares][kTile]);
  Stats<A> of_row = no_stats<A>();
  for (int64_t t = first_tile; t < last_tile; ++t) {
    const int64_t col0 = t * kTile;
    const int64_t col = col0 + cell;
    const T* from = job.at(b, row0 + share, col);
#pragma unroll kTileBatch
    for (int r = share; r < kTile; r += kShares, from += kShares * job.stride_row)
      tile[r][cell] = row0 + r < job.rows && col < job.cols ? widen<A>(*from) : lowest<A>();
    __syncthreads();
    const int first = share * kShare;
    Walk<A> along(job.per_row.grid, col0 + first, 1);
    add_shared(of_row, &tile[cell][first], 1, job.scale, along);
    Walk<A> down(job.per_col.grid, row0 + first, 1);
    Stats<A> of_col = no_stats<A>();
    add_shared(of_col, &tile[first][cell], kTile + 1, job.scale, down);
    merge_shares(of_col, parts, cell, share, job.scale);
    if (share == 0 && col < job.cols) col_parts[(b * runs.panels + panel) * job.cols + col] = of_col;
    // `tile` has been read by all; `parts` is written again only after the barrier that follows the next load.
  }
  __syncthreads();
  merge_shares(of_row, parts, cell, share, job.scale);
  if (share == 0 && row0 + cell < job.rows) row_parts[(b * runs.runs + which_run) * job.rows + row0 + cell] = of_row;
}

// Merges `pieces` statistics [batch, pieces, cells] of each cell and writes the results.
template <class A>
__global__ void __launch_bounds__(kItemThreads)
    match_merge(const Stats<A>* parts, int64_t batch, int64_t pieces, int64_t cells, Side<A> side, A scale,
                A inverse_temperature) {
  const int64_t i = int64_t(blockIdx.x) * kItemThreads + threadIdx.x;
  if (i >= batch * cells) return;
  const Stats<A>* from = parts + i / cells * pieces * cells + i % cells;
  Stats<A> s = from[0];
  for (int64_t p = 1; p < pieces; ++p) merge(s, from[p * cells], scale);
  finish(s, i, side.grid, inverse_temperature, side.results);
}

// --- gradient ---
// A block has kMapRows rows and kMapCols columns: their slopes are computed once, into shared memory; then it reads
// and writes each entry once, neighbouring lanes next to each other.
constexpr int kGradBatch = 4;  // entries of a thread that are on their way at a time

template <class T, class A, bool kPerCol, bool kPerRow>
__global__ void __launch_bounds__(kMapThreads, kBlocksPerSm<A>) match_gradient(MatchJob<T, A> job) {
  const auto [b, row0, col0] = map_tiling(job.batch, job.rows, job.cols).place(blockIdx.x);

  SEMIMATCH_SHARED(col_slopes, Slope<A>[kPerCol ? kMapCols : 1]);
  SEMIMATCH_SHARED(row_slopes, Slope<A>[kPerRow ? kMapRows : 1]);
  if (kPerRow && threadIdx.x < kMapRows && row0 + threadIdx.x < job.rows) {
    const Side<A>& side = job.per_row;
    const int64_t row = row0 + threadIdx.x;
    const A top = widen<A>(*job.at(b, row, side.results.index[b * job.rows + row]));
    row_slopes[threadIdx.x] =
        slope_of(side.results, side.grads, b, row, job.rows, top, side.grid, job.inverse_temperature);
  }
  const int other = threadIdx.x - (kMapThreads - kMapCols);  // the last threads, which have no row
  if (kPerCol && other >= 0 && col0 + other < job.cols) {
    const Side<A>& side = job.per_col;
    const int64_t col = col0 + other;
    const A top = widen<A>(*job.at(b, side.results.index[b * job.cols + col], col));
    col_slopes[other] = slope_of(side.results, side.grads, b, col, job.cols, top, side.grid, job.inverse_temperature);
  }
  __syncthreads();

  constexpr int kStep = kMapThreads / kMapCols;  // rows between those of a thread
  const int mine = threadIdx.x % kMapCols;
  const int64_t col = col0 + mine;
  if (col >= job.cols) return;
  int r = threadIdx.x / kMapCols;
  Slope<A> of_col = {};
  if (kPerCol) of_col = col_slopes[mine];
  Walk<A> walk(job.per_col.grid, row0 + r, kStep);
  const Position<A> at = position_of<A>(job.per_row.grid, static_cast<int>(col));
  const T* from = job.at(b, row0 + r, col);
  T* to = job.grad + (b * job.rows + row0 + r) * job.cols + col;
  const int rows = static_cast<int>(job.rows - row0 < kMapRows ? job.rows - row0 : kMapRows);
  for (; r < rows; r += kGradBatch * kStep) {
    A c[kGradBatch];  // all loads before the first store, which the compiler must take to change what they read
#pragma unroll
    for (int i = 0; i < kGradBatch; ++i, from += kStep * job.stride_row)
      c[i] = r + i * kStep < rows ? widen<A>(*from) : A(0);
#pragma unroll
    for (int i = 0; i < kGradBatch; ++i, to += kStep * job.cols) {
      const int row = r + i * kStep;
      if (row >= rows) return;
      A g = A(0);
      if (kPerCol) g += entry_gradient(c[i], of_col, row0 + row, walk.x(), walk.y(), job.scale);
      if (kPerRow) g += entry_gradient(c[i], row_slopes[row], col, at.x, at.y, job.scale);
      *to = narrow<T>(g);
      walk.next();
    }
  }
}

}  // namespace semimatch
