// `match_features` on CUDA: forward 3 or 4 launches, backward 7. Tiles of the correlation are those of features.cuh,
// their statistics those of match.h.
#include "../match_features_ops.h"
#include "feature_gradient.cuh"
#include "match_stats.cuh"

namespace semimatch {

// A block has kTile target cells and a run of tiles of source cells; parts [batch, runs, targets].
template <class T>
__global__ void __launch_bounds__(kTileThreads, 1)
    match_features_tiles(Vectors<T> src, Vectors<T> trg, TileRuns runs, Parts<Wide<T>> parts, Wide<T> scale,
                         Wide<T> inverse_temperature) {
  using A = Wide<T>;
  const auto [b, panel, which_run, first_tile, last_tile] = runs.place(blockIdx.x);
  const int cell = threadIdx.x % kTile, share = threadIdx.x / kTile, first = share * kShare;
  const int64_t target0 = panel * kTile;
  union Memory {
    FeatureTile<A> tile;
    Stats<A> shares[kShares][kTile];
  };
  SEMIMATCH_SHARED(memory, Memory);
  SEMIMATCH_SHARED(stages, Stages<T>);
  SEMIMATCH_SHARED(there, There);
  Stats<A> s = no_stats<A>();
  for (int64_t i = first_tile; i < last_tile; ++i) {
    form_tile<T>(memory.tile, stages, there, src, trg, b, i * kTile, target0);
    __syncthreads();
    Walk<A> down(parts.side.grid, i * kTile + first, 1);
    add_shared(s, &memory.tile[first][cell], kTileWidth<A>, scale, down);
    __syncthreads();
  }
  merge_shares(s, memory.shares, cell, share, scale);
  if (share == 0 && target0 + cell < trg.cells) parts.put(b, which_run, target0 + cell, s, inverse_temperature);
}

// The gradient by entries, for features_gradient.
template <class A>
struct MatchSlopes {
  using Line = Slope<A>;
  using Place = Position<A>;
  const Slope<A>* lines;  // [batch, targets]
  int64_t targets;
  Grid grid;
  A scale;

  SEMIMATCH_FN bool needs_entries() const { return true; }
  SEMIMATCH_FN Line line(int64_t b, int64_t t) const { return lines[b * targets + t]; }
  SEMIMATCH_FN Line none() const { return {}; }
  SEMIMATCH_FN Place place(int64_t s) const { return position_of<A>(grid, static_cast<int>(s)); }
  SEMIMATCH_FN A value(A c, const Line& line, int64_t s, Place at) const {
    return entry_gradient(c, line, s, at.x, at.y, scale);
  }
};

// For each target cell the source cell of its index, as the rows of a tile.
template <class T>
struct BestCells {
  Vectors<T> src;
  const int64_t* index;  // [batch, cells]
  int64_t cells, width;

  SEMIMATCH_FN const T* at(int64_t b, int64_t cell) const { return src.at(b, index[b * cells + cell]); }
  SEMIMATCH_FN bool valid(int64_t, int64_t cell) const { return cell < cells; }
};

// The slope of each of kTile target cells a block. Their largest entries are the diagonal of a tile, formed as they
// were when their exponentials were summed, and will be when their gradient is taken: to the bit.
template <class T>
__global__ void __launch_bounds__(kTileThreads, 1)
    match_features_slopes(Vectors<T> src, Vectors<T> trg, int64_t batch, Side<Wide<T>> side,
                          Wide<T> inverse_temperature, Slope<Wide<T>>* lines) {
  using A = Wide<T>;
  const Tiling::Place at = line_tiling(batch, trg.cells).place(blockIdx.x);
  SEMIMATCH_SHARED(tile, FeatureTile<A>);
  SEMIMATCH_SHARED(stages, Stages<T>);
  SEMIMATCH_SHARED(there, There);
  const BestCells<T> best = {src, side.results.index, trg.cells, src.width};
  form_tile<T>(tile, stages, there, best, trg, at.b, at.col, at.col);
  __syncthreads();
  const int64_t t = at.col + threadIdx.x;
  if (threadIdx.x < kTile && t < trg.cells) {
    const Wide<T> top = tile[threadIdx.x][threadIdx.x];
    lines[at.b * trg.cells + t] =
        slope_of(saved_of(side.results, side.grads, at.b, t, trg.cells, top), side.grid, inverse_temperature);
  }
}

namespace {

struct Cuda {
  template <class T>
  using Wide = semimatch::Wide<T>;

  template <class F>
  static void with_type(const Tensor& features, const F& f) {
    with_cuda_type(features, f);
  }

  template <class T>
  static void forward(const MatchFeaturesArguments& a, const Results<Wide<T>>& results) {
    using A = Wide<T>;
    const Grid grid = a.reduced();
    const int64_t batch = a.src.size(0), sources = a.src.size(2), targets = a.trg.size(2);
    if (batch == 0) return;
    const OnDevice device(a.src);
    const auto normalizer = normalizer_of<A>(a.normalize, a.eps);
    const FeatureSide<T> src(a.src, a.source_mask, normalizer, false, device);
    const FeatureSide<T> trg(a.trg, a.target_mask, normalizer, false, device);
    const TileRuns runs = feature_runs(batch, targets, sources);
    Parts<A> parts = {nullptr, runs.runs, targets, {true, grid, results, {}}};
    const int64_t unfinished = parts.unfinished(batch), count = unfinished * runs.runs;
    Workspace memory(a.src, count * int64_t(sizeof(Stats<A>)), 1);
    parts.data = memory.take<Stats<A>>(count);
    const A scale = A(kLog2E / a.temperature), inverse_temperature = A(1 / a.temperature);
    launch("match_features_tiles", match_features_tiles<T>, tiles_geometry(runs), device.stream(), src.vectors,
           trg.vectors, runs, parts, scale, inverse_temperature);
    if (unfinished > 0)
      launch("match_merge", match_merge<A>, items_geometry(unfinished), device.stream(), parts, Parts<A>{}, batch,
             scale, inverse_temperature);
  }

  template <class T>
  static std::tuple<Tensor, Tensor> backward(const MatchFeaturesArguments& a, const Results<Wide<T>>& results,
                                             const Gradients<Wide<T>>& grads) {
    using A = Wide<T>;
    const Tensor grad_src = new_contiguous(a.src), grad_trg = new_contiguous(a.trg);
    const Grid grid = a.reduced();
    const int64_t batch = a.src.size(0), targets = a.trg.size(2);
    if (batch == 0) return {grad_src, grad_trg};
    const OnDevice device(a.src);
    const auto normalizer = normalizer_of<A>(a.normalize, a.eps);
    const FeatureSide<T> src(a.src, a.source_mask, normalizer, true, device);
    const FeatureSide<T> trg(a.trg, a.target_mask, normalizer, true, device);
    Workspace memory(a.src, batch * targets * int64_t(sizeof(Slope<A>)), 1);
    auto* const lines = memory.take<Slope<A>>(batch * targets);
    const Side<A> side = {true, grid, results, grads};
    launch("match_features_slopes", match_features_slopes<T>, line_geometry(batch, targets), device.stream(),
           src.vectors, trg.vectors, batch, side, A(1 / a.temperature), lines);
    const MatchSlopes<A> slopes = {lines, targets, grid, A(kLog2E / a.temperature)};
    gradient_of_side<true>(slopes, src, trg, grad_src, device);
    gradient_of_side<false>(slopes, trg, src, grad_trg, device);
    return {grad_src, grad_trg};
  }
};

}  // namespace

SEMIMATCH_CUDA_IMPL(library) { MatchFeaturesOps<Cuda>::implement(library); }

}  // namespace semimatch
