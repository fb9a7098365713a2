// Reductions over the source cells of a correlation that is formed from features a tile at a time, by the Reducers of
// reduce.cuh. A block has kTile target cells and a run of tiles of source cells; its parts are merged in order.
#pragma once

#include "features.cuh"
#include "reduce.cuh"

namespace semimatch {

constexpr int kFeatureBatch = 8;  // entries of a column that a thread adds at a time

// parts [batch, runs, targets]. Cells beyond a side come as entries of -inf.
template <class T, class Reducer>
__global__ void __launch_bounds__(kTileThreads, 1)
    reduce_features(Vectors<T> src, Vectors<T> trg, TileRuns runs, Reducer reducer, typename Reducer::State* parts) {
  using A = Wide<T>;
  using State = typename Reducer::State;
  const auto [b, panel, which_run, first_tile, last_tile] = runs.place(blockIdx.x);
  const int cell = threadIdx.x % kTile, share = threadIdx.x / kTile, first = share * (kTile / kShares);
  const int64_t target = panel * kTile + cell;
  union Memory {
    FeatureTile<A> tile;
    State shares[kShares][kTile];
  };
  SEMIMATCH_SHARED(memory, Memory);
  SEMIMATCH_SHARED(stages, Stages<T>);
  SEMIMATCH_SHARED(there, There);
  const auto line = reducer.line(b, target < trg.cells ? target : trg.cells - 1);
  State s = reducer.none();
  for (int64_t i = first_tile; i < last_tile; ++i) {
    form_tile<T>(memory.tile, stages, there, src, trg, b, i * kTile, panel * kTile);
    __syncthreads();
#pragma unroll 1
    for (int r = first; r < first + kTile / kShares; r += kFeatureBatch) {
      A c[kFeatureBatch];
#pragma unroll
      for (int k = 0; k < kFeatureBatch; ++k) c[k] = memory.tile[r + k][cell];
      reducer.template add<kFeatureBatch>(s, c, kFeatureBatch, Run{i * kTile + r, 1}, line);
    }
    __syncthreads();
  }
  memory.shares[share][cell] = s;
  __syncthreads();
  if (share > 0 || target >= trg.cells) return;
  for (int k = 1; k < kShares; ++k) reducer.merge(s, memory.shares[k][cell]);
  parts[(b * runs.runs + which_run) * trg.cells + target] = s;
}

// Job: reducer; finish(b, cell, State), which writes the results of a target cell.
template <class Job>
__global__ void __launch_bounds__(kItemThreads, 1) merge_features(const typename decltype(Job::reducer)::State* parts,
                                                                  int64_t batch, int64_t runs, int64_t cells, Job job) {
  const int64_t i = int64_t(blockIdx.x) * kItemThreads + threadIdx.x;
  if (i >= batch * cells) return;
  const int64_t b = i / cells, cell = i % cells;
  const auto* const from = parts + b * runs * cells + cell;
  auto s = from[0];
  for (int64_t k = 1; k < runs; ++k) job.reducer.merge(s, from[k * cells]);
  job.finish(b, cell, s);
}

template <class T, class Job>
void reduce_sources(const Job& job, const FeatureSide<T>& src, const FeatureSide<T>& trg, const Tensor& like,
                    const OnDevice& device) {
  using Reducer = decltype(Job::reducer);
  using State = typename Reducer::State;
  const int64_t batch = src.map.batch, cells = trg.map.cells;
  const TileRuns runs = feature_runs(batch, cells, src.map.cells);
  Workspace memory(like, batch * runs.runs * cells * int64_t(sizeof(State)), 1);
  auto* const parts = memory.take<State>(batch * runs.runs * cells);
  launch("reduce_features", reduce_features<T, Reducer>, tiles_geometry(runs), device.stream(), src.vectors,
         trg.vectors, runs, job.reducer, parts);
  launch("merge_features", merge_features<Job>, items_geometry(batch * cells), device.stream(), parts, batch, runs.runs,
         cells, job);
}

}  // namespace semimatch
