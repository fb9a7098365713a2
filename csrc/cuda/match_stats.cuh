// Statistics of `match` on CUDA, as the kernels of match.cu and match_features.cu take and merge them.
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

// Statistics of a line from those of the lanes that share it: kLanes in a row, or every kApart-th of them. All of them
// get the result.
template <int kLanes, int kApart = 1, class A>
__device__ __forceinline__ Stats<A> over_lanes(Stats<A> s, A scale) {
  constexpr unsigned kAll = 0xffffffff;
  A top = s.top;
#pragma unroll
  for (int delta = kLanes / 2; delta >= kApart; delta /= 2) {
    const A other = __shfl_xor_sync(kAll, top, delta);
    top = other > top ? other : top;
  }
  // A lane without the largest entry has no say in the index. The lowest one wins.
  auto index = s.top == top ? s.index : Number<A>::same(INT32_MAX);
  raise_top(s, top, scale);
#pragma unroll
  for (int delta = kLanes / 2; delta >= kApart; delta /= 2) {
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

// --- columns of a tile that kShares threads share ---
constexpr int kShare = kTile / kShares;  // entries of a thread's share
constexpr int kTileBatch = 8;            // of which this many at a time

// Merges the shares of each of the kTile columns; the threads of share 0 hold the result.
template <class A>
__device__ __forceinline__ void merge_shares(Stats<A>& s, Stats<A> (*parts)[kTile], int cell, int share, A scale) {
  parts[share][cell] = s;
  __syncthreads();
  if (share == 0) {
    for (int i = 1; i < kShares; ++i) merge(s, parts[i][cell], scale);
  }
}

// Adds a thread's share of a column of the tile.
template <class A>
__device__ __forceinline__ void add_shared(Stats<A>& s, const A* from, int stride, A scale, Walk<A>& walk) {
#pragma unroll 1
  for (int i = 0; i < kShare; i += kTileBatch) {
    add<kTileBatch>(s, [&](int k) { return from[(i + k) * stride]; }, kTileBatch, scale, walk);
    walk.first += kTileBatch * walk.step;
  }
}

// --- parts in memory ---

// Statistics [batch, pieces, cells] of one side, whose results they become.
template <class A>
struct Parts {
  Stats<A>* data;
  int64_t pieces, cells;
  Side<A> side;

  // Keeps a piece of cell i of batch element b, or writes the result if there is no other.
  SEMIMATCH_FN void put(int64_t b, int64_t piece, int64_t i, const Stats<A>& s, A inverse_temperature) const {
    if (pieces == 1) {
      finish(s, b * cells + i, side.grid, inverse_temperature, side.results);
    } else {
      data[(b * pieces + piece) * cells + i] = s;
    }
  }
  // Merges the pieces of cell `at` of [batch, cells], in order, and writes the result.
  SEMIMATCH_FN void merge_at(int64_t at, A scale, A inverse_temperature) const {
    const Stats<A>* const from = data + at / cells * pieces * cells + at % cells;
    Stats<A> s = from[0];
    for (int64_t p = 1; p < pieces; ++p) merge(s, from[p * cells], scale);
    finish(s, at, side.grid, inverse_temperature, side.results);
  }
  // Cells for merge_at.
  SEMIMATCH_FN int64_t unfinished(int64_t batch) const { return pieces > 1 ? batch * cells : 0; }
};

template <class A>
__global__ void __launch_bounds__(kItemThreads)
    match_merge(Parts<A> first, Parts<A> second, int64_t batch, A scale, A inverse_temperature) {
  const int64_t i = int64_t(blockIdx.x) * kItemThreads + threadIdx.x, of_first = first.unfinished(batch);
  if (i < of_first) {
    first.merge_at(i, scale, inverse_temperature);
  } else if (i < of_first + second.unfinished(batch)) {
    second.merge_at(i - of_first, scale, inverse_temperature);
  }
}

}  // namespace semimatch
