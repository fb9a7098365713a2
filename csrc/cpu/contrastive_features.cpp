// `masked_contrastive_loss_features` on the CPU: `masked_contrastive_loss` on tiles of the correlation, of those target
// cells that count.
#include <memory>
#include <tuple>
#include <vector>

#include "contrastive_kernels.h"
#include "features.h"
#include "kept_cells.h"
#include "smoothing.h"

namespace semimatch {
namespace {

struct Arguments {
  Tensor src, trg, labels;
  OptionalTensor weight, mask, source_mask;
  double temperature;
  std::string reduction;
  int64_t width;
  double sigma;
  int64_t radius;
  std::string normalize;
  double eps;
};

// The target cells that count, in the kernels' form: [batch, step], step in whole groups.
template <class A>
struct Cells {
  using Index = typename CpuContrastive<A>::Index;
  int64_t step, count = 0;
  std::vector<Index> labels;
  std::vector<uint8_t> groups;     // whether any cell of a group counts
  std::unique_ptr<bool[]> counts;  // [batch, T]

  Cells(const Arguments& a, int group) {
    const int64_t batch = a.src.size(0), cells = a.trg.size(2);
    step = ceil_div(cells, group) * group;
    labels.assign(batch * step, Index(-1));
    groups.assign(batch * step / group, 0);
    counts.reset(new bool[batch * cells]());
    const Tensor given = per_cell(a.labels, batch, cells, ScalarType::Long, "labels");
    const Tensor mask = mask_of(a.mask, batch, cells, "mask");
    const bool* const keep = data_of_mask(a.mask, mask);
    for (int64_t i = 0; i < batch * cells; ++i) {
      const int64_t label = data_of<const int64_t>(given)[i], at = i / cells * step + i % cells;
      if (label < 0 || (keep != nullptr && !keep[i])) continue;
      labels[at] = Index(std::min(label, a.src.size(2)));
      groups[at / group] = 1;
      counts[i] = true;
      ++count;
    }
  }
};

// What a call needs beside the tiles. T: element type of the features.
template <class T>
struct Call {
  using A = typename CpuFeatures<T>::A;
  using Job = typename CpuContrastive<A>::Job;
  const ContrastiveKernels<A> kernels = SEMIMATCH_BEST(contrastive_kernels<A>());
  const Cells<A> cells;
  const Tensor source_mask;
  const SmoothingTables smoothing;
  FeatureTiles<T> tiles;
  const int64_t targets;
  Tensor weight;  // undefined where there is none
  Job job = {};   // of all tiles; pointers are to the first cell

  explicit Call(const Arguments& a)
      : cells(a, kernels.group),
        source_mask(mask_of(a.source_mask, a.src.size(0), a.src.size(2), "source_mask")),
        smoothing(a.src.size(2), a.width, a.sigma, a.radius),
        tiles(
            feature_map<T>(a.src, data_of_mask(a.source_mask, source_mask), normalizer_of<A>(a.normalize, a.eps), true),
            feature_map<T>(a.trg, cells.counts.get(), normalizer_of<A>(a.normalize, a.eps), true), a.src.size(0)),
        targets(a.trg.size(2)) {
    job.corr = {nullptr, 1, a.src.size(2), 0, 0, 0, 1};
    job.step = cells.step;
    job.inverse_temperature = A(1 / a.temperature);
    job.scale = A(kLog2E / a.temperature);
    job.smoothing = smoothing.get();
    job.labels = cells.labels.data();
    job.counts = cells.groups.data();
    if (!a.weight) return;
    weight = per_cell(*a.weight, a.src.size(0), targets, accumulate_type(a.src), "weight");
    job.weight = data_of<const A>(weight);
  }

  // The job of the first `columns` columns of a tile: a matrix of its own.
  Job on(const Columns<A>& tile, const A* entries, int64_t columns) const {
    Job part = job;
    part.corr.data = entries;
    part.corr.cols = columns;
    part.corr.stride_row = part.step = tile.step;
    const int64_t cell = tile.b * targets + tile.first, at = tile.b * cells.step + tile.first;
    part.labels += at;
    part.counts += at / kernels.group;
    const auto move = [](auto*& array, int64_t by) {
      if (array != nullptr) array += by;
    };
    move(part.weight, cell);
    move(part.loss, cell);
    move(part.logsumexp, cell);
    move(part.finite_logsumexp, at);
    move(part.factor, at);
    part.grad = tile.data;
    return part;
  }
};

template <class T>
void forward(const Arguments& a, Tensor& loss, Tensor& logsumexp, Tensor& count) {
  using A = typename CpuFeatures<T>::A;
  Call<T> call(a);
  const int64_t cells = a.src.size(0) * call.targets;
  const Tensor losses = a.reduction == "none" ? loss : new_tensor(logsumexp, {a.src.size(0), call.targets});
  call.job.loss = data_of<A>(losses);
  call.job.logsumexp = data_of<A>(logsumexp);
  const auto& kernels = call.kernels;
  call.tiles.forward([&](const Columns<A>& tile) {
    const int64_t groups = tile.step / kernels.group;
    const Scratch memory(groups, 2 * kernels.group * int64_t(sizeof(A)));
    kernels.columns(call.on(tile, tile.data, tile.cells), 0, 0, groups, memory.at(0));
  });
  *data_of<int64_t>(count) = call.cells.count;
  if (a.reduction == "none") return;
  double sum = 0;
  for (int64_t i = 0; i < cells; ++i) sum += double(call.job.loss[i]);
  *data_of<A>(loss) = A(a.reduction == "mean" ? sum / double(std::max<int64_t>(call.cells.count, 1)) : sum);
}

template <class T>
std::tuple<Tensor, Tensor> backward(const Arguments& a, const Tensor& logsumexp, const Tensor& count,
                                    const Tensor& grad_loss) {
  using A = typename CpuFeatures<T>::A;
  Call<T> call(a);
  auto& job = call.job;
  const int64_t batch = a.src.size(0), step = call.cells.step;
  STD_TORCH_CHECK(grad_loss.scalar_type() == logsumexp.scalar_type() && count.scalar_type() == ScalarType::Long &&
                      count.numel() == 1,
                  "semimatch: the gradient or the count is not of the dtype that forward returned");
  const bool by_cell = a.reduction == "none";
  STD_TORCH_CHECK(by_cell || grad_loss.numel() == 1, "semimatch: the gradient of a reduced loss must be a scalar");
  const Tensor grads = by_cell ? per_cell(grad_loss, batch, call.targets, grad_loss.scalar_type(), "grad") : grad_loss;
  const Tensor saved = per_cell(logsumexp, batch, call.targets, accumulate_type(a.src), "logsumexp");
  const int64_t kept = std::max<int64_t>(*data_of<const int64_t>(count), 1);
  std::vector<A> finite(batch * step), factor(batch * step);
  for (int64_t at = 0; at < batch * step; ++at) {
    if (job.labels[at] < 0) continue;
    const int64_t i = at / step * call.targets + at % step;
    finite[at] = finite_logsumexp(data_of<const A>(saved)[i]);
    A f = data_of<const A>(grads)[by_cell ? i : 0];
    if (a.reduction == "mean") f /= A(kept);
    if (job.weight != nullptr) f *= job.weight[i];
    factor[at] = job.labels[at] < job.corr.rows ? f * job.inverse_temperature : A(NAN);
  }
  job.finite_logsumexp = finite.data();
  job.factor = factor.data();
  const auto by_entry = [&](const Columns<A>& tile) {
    // In place, unless the goals of smoothed labels are to be read from the entries afterwards.
    const int64_t entries = job.smoothing.on() ? job.corr.rows * tile.step : 0;
    std::vector<A> copy(tile.data, tile.data + entries);
    call.kernels.gradient_of_columns(call.on(tile, entries > 0 ? copy.data() : tile.data, tile.step), 0, 0,
                                     job.corr.rows);
  };
  return call.tiles.backward(true, by_entry, a.src, a.trg);
}

KeptCells kept_cells(const Arguments& a) {
  const int64_t batch = a.src.size(0), cells = a.trg.size(2);
  const Tensor labels = per_cell(a.labels, batch, cells, ScalarType::Long, "labels");
  const Tensor mask = mask_of(a.mask, batch, cells, "mask");
  return KeptCells(data_of<const int64_t>(labels), data_of_mask(a.mask, mask), batch, cells);
}

// The call on the cells that count alone. T: element type of the features.
template <class T>
Arguments on_kept(const Arguments& a, const KeptCells& kept) {
  using A = typename CpuFeatures<T>::A;
  const int64_t batch = a.src.size(0), cells = a.trg.size(2);
  Arguments part = a;
  part.trg = kept.gather<T>(a.trg, T{});
  part.labels = kept.gather<int64_t>(per_cell(a.labels, batch, cells, ScalarType::Long, "labels"), -1);
  part.mask.reset();
  if (a.weight) part.weight = kept.gather<A>(per_cell(*a.weight, batch, cells, accumulate_type(a.src), "weight"), A(0));
  return part;
}

std::tuple<Tensor, Tensor, Tensor> masked_contrastive_loss_features(Tensor src, Tensor trg, Tensor labels,
                                                                    OptionalTensor weight, OptionalTensor mask,
                                                                    OptionalTensor source_mask, double temperature,
                                                                    std::string reduction, int64_t width, double sigma,
                                                                    int64_t radius, std::string normalize, double eps) {
  check_features(src, trg);
  const ScalarType type = accumulate_type(src);
  const Arguments a = {src,       trg,   labels, weight, mask,      source_mask, temperature,
                       reduction, width, sigma,  radius, normalize, eps};
  const KeptCells kept = kept_cells(a);
  const int64_t batch = src.size(0), cells = kept.few() ? kept.most() : trg.size(2);
  Tensor logsumexp = new_tensor(src, {batch, cells}, type);
  Tensor loss = reduction == "none" ? new_tensor(src, {batch, cells}, type) : new_tensor(src, {}, type);
  Tensor count = new_tensor(src, {}, ScalarType::Long);
  with_type(src, [&](auto type) {
    using T = decltype(type);
    using A = typename CpuFeatures<T>::A;
    forward<T>(kept.few() ? on_kept<T>(a, kept) : a, loss, logsumexp, count);
    if (!kept.few()) return;
    logsumexp = kept.scatter<A>(logsumexp);
    if (reduction == "none") loss = kept.scatter<A>(loss);
  });
  return {loss, logsumexp, count};
}

std::tuple<Tensor, Tensor> masked_contrastive_loss_features_backward(Tensor src, Tensor trg, Tensor labels,
                                                                     OptionalTensor weight, OptionalTensor mask,
                                                                     OptionalTensor source_mask, double temperature,
                                                                     std::string reduction, int64_t width, double sigma,
                                                                     int64_t radius, std::string normalize, double eps,
                                                                     Tensor logsumexp, Tensor count, Tensor grad) {
  check_features(src, trg);
  const Arguments a = {src,       trg,   labels, weight, mask,      source_mask, temperature,
                       reduction, width, sigma,  radius, normalize, eps};
  const int64_t batch = src.size(0), cells = trg.size(2);
  const KeptCells kept = kept_cells(a);
  std::tuple<Tensor, Tensor> grads;
  with_type(src, [&](auto type) {
    using T = decltype(type);
    using A = typename CpuFeatures<T>::A;
    if (!kept.few()) {
      grads = backward<T>(a, logsumexp, count, grad);
      return;
    }
    const auto gather = [&](const Tensor& t, const char* name) {
      return kept.gather<A>(per_cell(t, batch, cells, accumulate_type(src), name), A(0));
    };
    const Tensor upstream = reduction == "none" ? gather(grad, "grad") : grad;
    grads = backward<T>(on_kept<T>(a, kept), gather(logsumexp, "logsumexp"), count, upstream);
    std::get<1>(grads) = kept.scatter<T>(std::get<1>(grads));
  });
  return grads;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(semimatch_kernels, CPU, library) {
  library.impl("masked_contrastive_loss_features", TORCH_BOX(&masked_contrastive_loss_features));
  library.impl("masked_contrastive_loss_features_backward", TORCH_BOX(&masked_contrastive_loss_features_backward));
}

}  // namespace semimatch
