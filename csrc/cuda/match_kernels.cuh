// Kernels of `match`. All of them take the blocks' place from blockIdx.x alone, address in 64 bits, and write every
// result from one thread in a fixed order: repeated runs agree bit for bit.
//
// Each reads the matrix once, in packs of kWidth neighbouring entries: 16 bytes where every row begins at a multiple of
// that, else one entry. Forward moves batch * rows * cols * sizeof(T) bytes, backward twice that; results and what lies
// in memory between launches (see strips_of) add a few percent.
#pragma once

#include "cluster.cuh"
#include "match_stats.cuh"

namespace semimatch {

template <class T, int kWidth>
struct alignas(kWidth * sizeof(T)) Pack {
  T at[kWidth];
};

// Packs of a matrix, or those it would have beyond its end: of excluded entries.
template <int kWidth, class T, class A>
__device__ __forceinline__ Pack<T, kWidth> load_pack(const T* from, bool exists) {
  Pack<T, kWidth> pack;
#pragma unroll
  for (int v = 0; v < kWidth; ++v) pack.at[v] = narrow<T>(lowest<A>());
  if (!exists) return pack;
  if constexpr (kWidth == 1) {
    pack.at[0] = *from;
  } else {
    pack = load_16_bytes<Pack<T, kWidth>>(from);
  }
  return pack;
}

template <int kWidth, class T>
__device__ __forceinline__ void store_pack(T* to, const Pack<T, kWidth>& pack) {
  if constexpr (kWidth == 1) {
    *to = pack.at[0];
  } else {
    store_16_bytes(to, pack);
  }
}

// Entries that are added at a time, as registers allow.
template <class A>
constexpr int kBatchOf = sizeof(A) == 8 ? 4 : 8;

// --- a match for each column, and with kPerRow for each row as well ---
// A thread has a pack of columns of a strip, and in each tile every kDown-th row: all it reads goes from its registers
// into the statistics of its columns, which stay there to the end of the range. A row needs threads side by side: its
// entries go through shared memory, to four threads that add them to the statistics of this row in this strip, which
// wait in shared memory until the range is done. Then the cluster merges: the rows along it, the columns down it.

// The positions of `n` cells, for several lines that lie there.
template <class A, int n>
struct Places {
  int64_t first;
  int step, i;
  A x_[n], y_[n];
  SEMIMATCH_FN int64_t index(int k) const { return first + int64_t(step) * k; }
  SEMIMATCH_FN A x() const { return x_[i]; }
  SEMIMATCH_FN A y() const { return y_[i]; }
  SEMIMATCH_FN void next() { ++i; }
};

// Adds kSteps packs, one below the other, to the statistics of their columns.
template <int kSteps, int kWidth, class T, class A>
__device__ __forceinline__ void add_columns(Stats<A> (&s)[kWidth], const Pack<T, kWidth> (&c)[kSteps], A scale,
                                            Walk<A>& walk) {
  constexpr int kRows = kSteps < kBatchOf<A> ? kSteps : kBatchOf<A>;
#pragma unroll
  for (int done = 0; done < kSteps; done += kRows) {
    Places<A, kRows> places = {walk.first, walk.step, 0, {}, {}};
#pragma unroll
    for (int i = 0; i < kRows; ++i, walk.next()) {
      places.x_[i] = walk.x();
      places.y_[i] = walk.y();
    }
#pragma unroll
    for (int v = 0; v < kWidth; ++v) {
      Places<A, kRows> at = places;
      add<kRows>(s[v], [&](int i) { return widen<A>(c[done + i].at[v]); }, kRows, scale, at);
    }
    walk.first += kRows * walk.step;
  }
}

// The cells of a thread's share of a row of a tile: every kShares-th pack. Their positions come from a table.
template <class A, int kWidth>
struct Share {
  int64_t col0;
  const Position<A>* places;
  int first, i = 0;  // first pack
  SEMIMATCH_FN int cell(int k) const { return (first + k / kWidth * kShares) * kWidth + k % kWidth; }
  SEMIMATCH_FN int64_t index(int k) const { return col0 + cell(k); }
  SEMIMATCH_FN A x() const { return places[cell(i)].x; }
  SEMIMATCH_FN A y() const { return places[cell(i)].y; }
  SEMIMATCH_FN void next() { ++i; }
};

// Blocks that should fit on a multiprocessor: as many as leave every thread registers enough.
template <class A, int kWidth>
constexpr int kStripBlocks = sizeof(A) == 8 ? 1 : (kWidth == 8 ? 2 : 3);

// Where column i of a strip is kept, so that neighbouring threads, which have neighbouring packs, meet few banks twice.
template <int kWidth>
SEMIMATCH_FN int kept_at(int i) {
  return i % kWidth * kAcross<kWidth> + i / kWidth;
}

template <class T, class A, int kWidth, bool kPerRow>
__global__ void __launch_bounds__(kStripThreads, kStripBlocks<A, kWidth>)
    match_strips(MatchJob<T, A> job, Strips strips, Parts<A> col_parts, Parts<A> row_parts) {
  constexpr int kPacks = kAcross<kWidth>, kCols = kStripCols<kWidth>;
  constexpr int kDown = kStripThreads / kPacks, kSteps = kStripRows / kDown;
  static_assert(kStripThreads == kStripRows * kShares);
  constexpr int kColGroup = kPacks < kWarp ? kWarp : kPacks;  // threads that leave one part of a column
  using P = Pack<T, kWidth>;
  union Memory {
    P tile[kStripRows][kPacks + kShares];  // so wide that a row's four threads and those of the next meet no bank twice
    Stats<A> cols[kStripThreads / kColGroup][kCols];
  };
  SEMIMATCH_SHARED(memory, Memory);
  SEMIMATCH_SHARED(row_stats, Stats<A>[kPerRow ? kMostStripTiles<A> * kStripRows : 1]);
  SEMIMATCH_SHARED(places, Position<A>[kPerRow ? kCols : 1]);
  SEMIMATCH_SHARED(place, Strips::Place);  // not in registers, which the loop needs

  if (threadIdx.x == 0) place = strips.place(blockIdx.x);
  __syncthreads();
  const int pack = threadIdx.x % kPacks, down = threadIdx.x / kPacks;
  const int line = threadIdx.x / kShares, share = threadIdx.x % kShares;
  const int64_t col0 = place.strip * kCols, col = col0 + pack * kWidth;
  const int64_t row0 = place.range * strips.run * kStripRows;
  const int64_t most = strips.run * kStripRows, left = job.rows - row0;
  const int rows = static_cast<int>(left < most ? left : most);  // of the range; none if it lies outside
  if (kPerRow && threadIdx.x < kCols)
    places[threadIdx.x] = position_of<A>(job.per_row.grid, static_cast<int>(col0 + threadIdx.x));

  Stats<A> of_col[kWidth];
#pragma unroll
  for (int v = 0; v < kWidth; ++v) of_col[v] = no_stats<A>();
  Walk<A> walk(job.per_col.grid, row0 + down, kDown);
  const T* from = job.at(place.b, row0 + down, col);
  P c[kSteps];
  const int mine = col < job.cols ? rows - down : 0;  // rows, to the end of the range
  const auto load = [&](int row) {
#pragma unroll
    for (int i = 0; i < kSteps; ++i, from += kDown * job.stride_row)
      c[i] = load_pack<kWidth, T, A>(from, row + i * kDown < mine);
  };
  load(0);
  for (int row = 0; row < rows; row += kStripRows) {
    if constexpr (kPerRow) {
      __syncthreads();  // the last tile has been read
#pragma unroll
      for (int i = 0; i < kSteps; ++i) memory.tile[down + i * kDown][pack] = c[i];
      __syncthreads();
    }
    add_columns(of_col, c, job.scale, walk);
    load(row + kStripRows);  // on its way during what follows
    if constexpr (kPerRow) {
      constexpr int kAtATime = kBatchOf<A> > kWidth ? kBatchOf<A> / kWidth : 1;  // packs
      Stats<A> of_row = no_stats<A>();
#pragma unroll 1
      for (int first = share; first < kPacks; first += kAtATime * kShares) {
        P entries[kAtATime];
#pragma unroll
        for (int k = 0; k < kAtATime; ++k) entries[k] = memory.tile[line][first + k * kShares];
        Share<A, kWidth> at = {col0, places, first};
        add<kAtATime * kWidth>(
            of_row, [&](int i) { return widen<A>(entries[i / kWidth].at[i % kWidth]); }, kAtATime * kWidth, job.scale,
            at);
      }
      of_row = over_lanes<kShares>(of_row, job.scale);
      if (share == 0) row_stats[row + line] = of_row;
    }
  }

  // Threads that have the same columns: lanes of a warp first.
#pragma unroll
  for (int v = 0; v < kWidth; ++v)
    if constexpr (kPacks < kWarp) of_col[v] = over_lanes<kWarp, kPacks>(of_col[v], job.scale);
  __syncthreads();  // the last tile has been read
  if (threadIdx.x % kWarp < kPacks) {
#pragma unroll
    for (int v = 0; v < kWidth; ++v) memory.cols[down * kPacks / kColGroup][v * kPacks + pack] = of_col[v];
  }
  __syncthreads();
  const auto merge_stats = [&](Stats<A>& s, const Stats<A>& other) { merge(s, other, job.scale); };
  if (threadIdx.x < kCols) {
    Stats<A> s = memory.cols[0][threadIdx.x];
#pragma unroll 1
    for (int i = 1; i < kStripThreads / kColGroup; ++i) merge_stats(s, memory.cols[i][threadIdx.x]);
    memory.cols[0][threadIdx.x] = s;
  }
  meet_in_cluster(strips.cluster());
  const int64_t first_col = place.strip * kCols, first_row = place.range * strips.run * kStripRows;
  for (int i = threadIdx.x * strips.down + place.down; i < kCols && first_col + i < job.cols;
       i += kStripThreads * strips.down) {
    Stats<A>* const kept = &memory.cols[0][kept_at<kWidth>(i)];
    const Stats<A> s = over_cluster(kept, place.across, strips.across, strips.down, merge_stats);
    col_parts.put(place.b, place.range / strips.down, first_col + i, s, job.inverse_temperature);
  }
  if constexpr (kPerRow) {
    for (int i = threadIdx.x * strips.across + place.across; i < rows; i += kStripThreads * strips.across) {
      const Stats<A> s = over_cluster(&row_stats[i], place.down * strips.across, 1, strips.across, merge_stats);
      row_parts.put(place.b, place.strip / strips.across, first_row + i, s, job.inverse_temperature);
    }
  }
  if (strips.cluster() > 1) cluster_barrier();  // no block leaves while others read its shared memory
}

// --- one match per row ---
// A warp has one row: neighbouring lanes read neighbouring packs.

// Walks along packs that are `step` entries apart.
template <class A, int kWidth>
struct PackWalk {
  Walk<A> start;  // of the packs
  A x_, y_;
  int i = 0;
  SEMIMATCH_FN PackWalk(Grid grid, int64_t first, int step) : start(grid, first, step), x_(start.x_), y_(start.y_) {}
  SEMIMATCH_FN int64_t index(int k) const { return start.index(k / kWidth) + k % kWidth; }
  SEMIMATCH_FN A x() const { return x_; }
  SEMIMATCH_FN A y() const { return y_; }
  SEMIMATCH_FN void next() {
    if (++i % kWidth == 0) {
      start.next();
      x_ = start.x_;
      y_ = start.y_;
    } else {
      x_ += A(1);
      const bool wraps = x_ > start.x_last;
      x_ = wraps ? x_ - start.width : x_;
      y_ = wraps ? y_ + A(1) : y_;
    }
  }
  SEMIMATCH_FN void done(int packs) {
    start.first += packs * start.step;
    i = 0;
  }
};

template <class T, class A, int kWidth>
__global__ void __launch_bounds__(kWarp* kRowWarps, kBlocksPerSm<A>) match_rows(MatchJob<T, A> job) {
  constexpr int kPacks = kWidth == 1 ? 8 : 4;  // of a lane on their way
  constexpr int kAtATime = kBatchOf<A> > kWidth ? (kBatchOf<A> / kWidth < kPacks ? kBatchOf<A> / kWidth : kPacks) : 1;
  const int64_t cell = int64_t(blockIdx.x) * kRowWarps + threadIdx.x / kWarp;  // over batch and rows
  if (cell >= job.batch * job.rows) return;                                    // the whole warp
  constexpr int kStep = kWarp * kWidth;
  const int64_t first = threadIdx.x % kWarp * kWidth;
  Stats<A> s = no_stats<A>();
  if (first < job.cols) {
    PackWalk<A, kWidth> walk(job.per_row.grid, first, kStep);
    const T* from = job.at(cell / job.rows, cell % job.rows, first);
    for (int64_t col = first; col < job.cols; col += kPacks * kStep) {
      Pack<T, kWidth> c[kPacks];
#pragma unroll
      for (int k = 0; k < kPacks; ++k, from += kStep * job.stride_col)
        c[k] = load_pack<kWidth, T, A>(from, col + k * kStep < job.cols);
#pragma unroll
      for (int k = 0; k < kPacks; k += kAtATime) {
        add<kAtATime * kWidth>(
            s, [&](int i) { return widen<A>(c[k + i / kWidth].at[i % kWidth]); }, kAtATime * kWidth, job.scale, walk);
        walk.done(kAtATime);
      }
    }
  }
  s = over_lanes<kWarp>(s, job.scale);
  if (threadIdx.x % kWarp == 0) finish(s, cell, job.per_row.grid, job.inverse_temperature, job.per_row.results);
}

// --- gradient ---
// A block has kMapRows rows of a strip: their slopes are computed once, into shared memory; then it reads and writes
// each pack once, neighbouring lanes next to each other.

template <class T, class A, int kWidth, bool kPerCol, bool kPerRow>
__global__ void __launch_bounds__(kMapThreads, sizeof(A) == 8 ? 1
                                               : kWidth > 1   ? 2
                                                              : 3) match_gradient(MatchJob<T, A> job) {
  constexpr int kPacks = kAcross<kWidth>, kCols = kStripCols<kWidth>;
  static_assert(kMapRows + kCols <= kMapThreads);
  const auto [b, row0, col0] = strip_tiling<kWidth>(job.batch, job.rows, job.cols).place(blockIdx.x);

  SEMIMATCH_SHARED(col_slopes, Slope<A>[kPerCol ? kCols : 1]);
  SEMIMATCH_SHARED(row_slopes, Slope<A>[kPerRow ? kMapRows : 1]);
  SEMIMATCH_SHARED(places, Position<A>[kPerRow ? kCols : 1]);
  if (kPerRow && threadIdx.x < kMapRows && row0 + threadIdx.x < job.rows) {
    const Side<A>& side = job.per_row;
    const int64_t row = row0 + threadIdx.x;
    const A top = widen<A>(*job.at(b, row, side.results.index[b * job.rows + row]));
    row_slopes[threadIdx.x] =
        slope_of(saved_of(side.results, side.grads, b, row, job.rows, top), side.grid, job.inverse_temperature);
  }
  const int other = threadIdx.x - (kMapThreads - kCols);  // the last threads, which have no row
  if (other >= 0 && col0 + other < job.cols) {
    const int64_t col = col0 + other;
    if constexpr (kPerCol) {
      const Side<A>& side = job.per_col;
      const A top = widen<A>(*job.at(b, side.results.index[b * job.cols + col], col));
      col_slopes[kept_at<kWidth>(other)] =
          slope_of(saved_of(side.results, side.grads, b, col, job.cols, top), side.grid, job.inverse_temperature);
    }
    if constexpr (kPerRow) places[kept_at<kWidth>(other)] = position_of<A>(job.per_row.grid, static_cast<int>(col));
  }
  __syncthreads();

  constexpr int kStep = kMapThreads / kPacks;                          // rows between those of a thread
  constexpr int kAtATime = kWidth == 8 && kPerCol && kPerRow ? 2 : 4;  // packs on their way, as registers allow
  using P = Pack<T, kWidth>;
  const int pack = threadIdx.x % kPacks;
  const int64_t col = col0 + pack * kWidth;
  if (col >= job.cols) return;
  int r = threadIdx.x / kPacks;
  Walk<A> walk(job.per_col.grid, row0 + r, kStep);
  const T* from = job.at(b, row0 + r, col);
  T* to = job.grad + (b * job.rows + row0 + r) * job.cols + col;
  const int rows = static_cast<int>(job.rows - row0 < kMapRows ? job.rows - row0 : kMapRows);
#pragma unroll 1
  for (; r < rows; r += kAtATime * kStep) {
    P c[kAtATime];  // all loads before the first store, which the compiler must take to change what they read
    A x[kAtATime], y[kAtATime];
    Slope<A> of_row[kPerRow ? kAtATime : 1];
#pragma unroll
    for (int i = 0; i < kAtATime; ++i, from += kStep * job.stride_row, walk.next()) {
      c[i] = load_pack<kWidth, T, A>(from, r + i * kStep < rows);
      x[i] = walk.x();
      y[i] = walk.y();
    }
    if constexpr (kPerRow) {
#pragma unroll
      for (int i = 0; i < kAtATime; ++i) of_row[i] = row_slopes[r + i * kStep < rows ? r + i * kStep : 0];
    }
#pragma unroll
    for (int v = 0; v < kWidth; ++v) {
      Slope<A> of_col = {};
      Position<A> at = {};
      if constexpr (kPerCol) of_col = col_slopes[v * kPacks + pack];
      if constexpr (kPerRow) at = places[v * kPacks + pack];
#pragma unroll
      for (int i = 0; i < kAtATime; ++i) {
        const A entry = widen<A>(c[i].at[v]);
        A g = A(0);
        if constexpr (kPerCol) g += entry_gradient(entry, of_col, row0 + r + i * kStep, x[i], y[i], job.scale);
        if constexpr (kPerRow) g += entry_gradient(entry, of_row[i], col + v, at.x, at.y, job.scale);
        c[i].at[v] = narrow<T>(g);
      }
    }
#pragma unroll
    for (int i = 0; i < kAtATime; ++i, to += kStep * job.cols)
      if (r + i * kStep < rows) store_pack(to, c[i]);
  }
}

}  // namespace semimatch
