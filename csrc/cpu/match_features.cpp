// `match_features` on the CPU: `match` on tiles of the correlation.
#include <tuple>
#include <vector>

#include "features.h"
#include "match_kernels.h"

namespace semimatch {
namespace {

using Grid2 = std::vector<int64_t>;
// coords [B,T,2], score, entropy, logsumexp [B,T], index [B,T]
using MatchTensors = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

struct Arguments {
  Tensor src, trg;
  OptionalTensor source_mask, target_mask;
  Grid2 grid;
  double temperature;
  std::string normalize;
  double eps;
};

template <class A>
Results<A> results_of(const MatchTensors& t) {
  return {data_of<A>(std::get<0>(t)), data_of<A>(std::get<1>(t)), data_of<A>(std::get<2>(t)),
          data_of<A>(std::get<3>(t)), data_of<int64_t>(std::get<4>(t))};
}

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
    STD_TORCH_CHECK(a.grid.size() == 2 && a.grid[0] * a.grid[1] == job.rows,
                    "semimatch: grid must be (H, W) with H * W = ", job.rows, ", the source cells");
    job.stride_col = 1;
    job.inverse_temperature = A(1 / a.temperature);
    job.scale = A(kLog2E / a.temperature);
    job.per_col.wanted = true;
    job.per_col.grid = {int(a.grid[0]), int(a.grid[1])};
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

template <class T>
void forward(const Arguments& a, const MatchTensors& results) {
  using A = typename CpuFeatures<T>::A;
  Call<T> call(a);
  call.job.per_col.results = results_of<A>(results);
  const auto& kernels = call.kernels;
  call.tiles.forward([&](const Columns<A>& tile) {
    const int64_t groups = tile.step / kernels.group;
    const Scratch stats(groups, kernels.stats_bytes);
    kernels.columns(call.on(tile, tile.step), call.positions(), 0, 0, call.job.rows, 0, groups, stats.at(0));
    kernels.finish_columns(call.on(tile, tile.cells), 0, 0, groups, stats.at(0), 1, 0);
  });
}

template <class T>
std::tuple<Tensor, Tensor> backward(const Arguments& a, const MatchTensors& results,
                                    const Gradients<typename CpuFeatures<T>::A>& grads) {
  using A = typename CpuFeatures<T>::A;
  Call<T> call(a);
  call.job.per_col.results = results_of<A>(results);
  call.job.per_col.grads = grads;
  const auto& kernels = call.kernels;
  const auto by_entry = [&](const Columns<A>& tile) {
    const int64_t groups = tile.step / kernels.group;
    const Scratch slopes(groups, kernels.slope_bytes);
    kernels.column_slopes(call.on(tile, tile.cells), 0, 0, groups, slopes.at(0));
    const MatchJob<A, A> job = call.on(tile, tile.step);
    for (int64_t r = 0; r < job.rows; r += CpuMatch<A>::kRows)
      kernels.gradient(job, call.positions(), 0, r, std::min<int64_t>(r + CpuMatch<A>::kRows, job.rows), slopes.at(0));
  };
  return call.tiles.backward(true, by_entry, a.src, a.trg);
}

MatchTensors match_features(Tensor src, Tensor trg, OptionalTensor source_mask, OptionalTensor target_mask, Grid2 grid,
                            double temperature, std::string normalize, double eps) {
  check_features(src, trg);
  const int64_t batch = src.size(0), cells = trg.size(2);
  const ScalarType type = accumulate_type(src);
  const auto empty = [&](ScalarType t) { return torch::stable::new_empty(src, {batch, cells}, t); };
  const MatchTensors results = {torch::stable::new_empty(src, {batch, cells, 2}, type), empty(type), empty(type),
                                empty(type), empty(ScalarType::Long)};
  const Arguments a = {src, trg, source_mask, target_mask, grid, temperature, normalize, eps};
  with_type(src, [&](auto type) { forward<decltype(type)>(a, results); });
  return results;
}

// Upstream gradients of any strides.
template <class A>
Strided<A> strided(const OptionalTensor& grad, const Tensor& result) {
  if (!grad) return {nullptr, 0, 0, 0};
  const bool pair = result.dim() == 3;
  STD_TORCH_CHECK(grad->scalar_type() == result.scalar_type() && grad->dim() == result.dim() &&
                      grad->size(0) == result.size(0) && grad->size(1) == result.size(1) &&
                      (!pair || grad->size(2) == 2),
                  "semimatch: a gradient differs from its result in dtype or shape");
  return {data_of<const A>(*grad), grad->stride(0), grad->stride(1), pair ? grad->stride(2) : 0};
}

void check_saved(const Tensor& t, ScalarType type, int64_t numel) {
  STD_TORCH_CHECK(t.scalar_type() == type && t.numel() == numel && t.is_contiguous(),
                  "semimatch: a saved result is not what forward returned (dtype, size or strides differ)");
}

std::tuple<Tensor, Tensor> match_features_backward(Tensor src, Tensor trg, OptionalTensor source_mask,
                                                   OptionalTensor target_mask, Grid2 grid, double temperature,
                                                   std::string normalize, double eps, Tensor coords, Tensor score,
                                                   Tensor entropy, Tensor logsumexp, Tensor index,
                                                   OptionalTensor grad_coords, OptionalTensor grad_score,
                                                   OptionalTensor grad_entropy, OptionalTensor grad_logsumexp) {
  check_features(src, trg);
  const int64_t batch = src.size(0), cells = batch * trg.size(2);
  for (const Tensor& t : {score, entropy, logsumexp}) check_saved(t, accumulate_type(src), cells);
  check_saved(coords, accumulate_type(src), 2 * cells);
  check_saved(index, ScalarType::Long, cells);
  const Arguments a = {src, trg, source_mask, target_mask, grid, temperature, normalize, eps};
  const MatchTensors results = {coords, score, entropy, logsumexp, index};
  std::tuple<Tensor, Tensor> by_features;
  with_type(src, [&](auto type) {
    using T = decltype(type);
    using A = typename CpuFeatures<T>::A;
    const Gradients<A> grads = {strided<A>(grad_coords, coords), strided<A>(grad_score, score),
                                strided<A>(grad_entropy, entropy), strided<A>(grad_logsumexp, logsumexp)};
    by_features = backward<T>(a, results, grads);
  });
  return by_features;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(semimatch_kernels, CPU, library) {
  library.impl("match_features", TORCH_BOX(&match_features));
  library.impl("match_features_backward", TORCH_BOX(&match_features_backward));
}

}  // namespace semimatch
