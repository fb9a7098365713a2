// `match_features` on the CPU: `match` on tiles of the correlation.
#include "../match_features_ops.h"

#include <tuple>
#include <vector>

#include "features.h"
#include "match_kernels.h"

namespace semimatch {
namespace {

using Arguments = MatchFeaturesArguments;

// The results of cell i on.
template <class A>
Results<A> from_cell(const Results<A>& r, int64_t i) {
  return {r.coords + 2 * i, r.score + i, r.entropy + i, r.logsumexp + i, r.index + i};
}

template <class A>
Strided<A> from_cell(const Strided<A>& g, int64_t b, int64_t i) {
  return {g.data == nullptr ? nullptr : g.data + b * g.batch + i * g.cell, g.batch, g.cell, g.xy};
}

// What a call needs beside the tiles. T: element type of the features.
template <class T>
struct Call {
  using A = typename CpuFeatures<T>::A;
  const MatchKernels<A> kernels = SEMIMATCH_BEST(match_kernels<A>());
  const Tensor source_mask, target_mask;
  FeatureTiles<T> tiles;
  std::vector<A> x, y;
  MatchJob<A, A> job = {};
  int64_t cells;

  explicit Call(const Arguments& a)
      : source_mask(mask_of(a.source_mask, a.src.size(0), a.src.size(2), "source_mask")),
        target_mask(mask_of(a.target_mask, a.src.size(0), a.trg.size(2), "target_mask")),
        tiles(
            feature_map<T>(a.src, data_of_mask(a.source_mask, source_mask), normalizer_of<A>(a.normalize, a.eps), true),
            feature_map<T>(a.trg, data_of_mask(a.target_mask, target_mask), normalizer_of<A>(a.normalize, a.eps), true),
            a.src.size(0)),
        x(a.src.size(2)),
        y(a.src.size(2)),
        cells(a.trg.size(2)) {
    job.batch = 1;
    job.rows = a.src.size(2);
    job.stride_col = 1;
    job.inverse_temperature = A(1 / a.temperature);
    job.scale = A(kLog2E / a.temperature);
    job.per_col.wanted = true;
    job.per_col.grid = a.reduced();
    for (int64_t s = 0; s < job.rows; ++s) {
      const Position<A> p = position_of<A>(job.per_col.grid, int(s));
      x[s] = p.x;
      y[s] = p.y;
    }
  }

  typename CpuMatch<A>::Positions positions() const { return {x.data(), y.data(), nullptr, nullptr}; }

  // The job of one tile: its cells are those of a matrix of their own.
  MatchJob<A, A> on(const Columns<A>& tile, int64_t columns) const {
    MatchJob<A, A> part = job;
    part.data = part.grad = tile.data;
    part.cols = columns;
    part.stride_row = tile.step;
    Side<A>& side = part.per_col;
    side.results = from_cell(job.per_col.results, tile.b * cells + tile.first);
    const Gradients<A>& g = job.per_col.grads;
    const auto from = [&](const Strided<A>& grad) { return from_cell(grad, tile.b, tile.first); };
    side.grads = {from(g.coords), from(g.score), from(g.entropy), from(g.logsumexp)};
    return part;
  }
};

struct Cpu {
  template <class T>
  using Wide = typename CpuFeatures<T>::A;

  template <class F>
  static void with_type(const Tensor& features, const F& f) {
    semimatch::with_type(features, f);
  }

  template <class T>
  static void forward(const Arguments& a, const Results<Wide<T>>& results) {
    Call<T> call(a);
    call.job.per_col.results = results;
    const auto& kernels = call.kernels;
    call.tiles.forward([&](const Columns<Wide<T>>& tile) {
      const int64_t groups = tile.step / kernels.group;
      const Scratch stats(groups, kernels.stats_bytes);
      kernels.columns(call.on(tile, tile.step), call.positions(), 0, 0, call.job.rows, 0, groups, stats.at(0));
      kernels.finish_columns(call.on(tile, tile.cells), 0, 0, groups, stats.at(0), 1, 0);
    });
  }

  template <class T>
  static std::tuple<Tensor, Tensor> backward(const Arguments& a, const Results<Wide<T>>& results,
                                             const Gradients<Wide<T>>& grads) {
    using A = Wide<T>;
    Call<T> call(a);
    call.job.per_col.results = results;
    call.job.per_col.grads = grads;
    const auto& kernels = call.kernels;
    const auto by_entry = [&](const Columns<A>& tile) {
      const int64_t groups = tile.step / kernels.group;
      const Scratch slopes(groups, kernels.slope_bytes);
      kernels.column_slopes(call.on(tile, tile.cells), 0, 0, groups, slopes.at(0));
      const MatchJob<A, A> job = call.on(tile, tile.step);
      for (int64_t r = 0; r < job.rows; r += CpuMatch<A>::kRows)
        kernels.gradient(job, call.positions(), 0, r, std::min<int64_t>(r + CpuMatch<A>::kRows, job.rows),
                         slopes.at(0));
    };
    return call.tiles.backward(true, by_entry, a.src, a.trg);
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(semimatch_kernels, CPU, library) { MatchFeaturesOps<Cpu>::implement(library); }

}  // namespace semimatch
