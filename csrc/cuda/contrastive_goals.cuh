// What the masked contrastive losses share on CUDA: the goals of a call, and the sum of the losses.
#pragma once

#include <algorithm>
#include <string>
#include <tuple>

#include "../contrastive.h"
#include "tensors.h"

namespace semimatch {

// What the gradient of a cell's column needs, beside its entries.
template <class A>
struct Goal {
  int64_t label;  // negative: the cell does not count
  A logsumexp, factor, total;
};
template <class A>
SEMIMATCH_FN Goal<A> no_goal() {
  return {-1, A(0), A(0), A(0)};
}

// What backward is given of the results.
template <class A>
struct LossGradient {
  Cells<A> logsumexp, grad;  // grad: the same number for all where the loss is reduced
  const int64_t* count;      // null: no mean was taken
};

// What a call says of each cell.
template <class A>
struct Goals {
  int64_t batch, cells, reduced;
  Cells<int64_t> labels;
  Cells<A> weight;  // null for 1
  Cells<bool> mask;
  Smoothing smoothing;  // its table lies in device memory
  A inverse_temperature, scale;

  SEMIMATCH_FN bool count(int64_t b, int64_t i) const {
    return labels.at(b, i) >= 0 && (mask.data == nullptr || mask.at(b, i));
  }
  SEMIMATCH_FN A weight_of(int64_t b, int64_t i) const { return weight.data == nullptr ? A(1) : weight.at(b, i); }
  // The label, or the last cell for one that names none.
  SEMIMATCH_FN int64_t nearest(int64_t b, int64_t i) const {
    const int64_t label = labels.at(b, i);
    return label < reduced ? label : reduced - 1;
  }
  // entry_at(cell) is an entry of the column, as far as whether it is -inf.
  template <class EntryAt>
  SEMIMATCH_FN Goal<A> goal_at(int64_t b, int64_t i, const LossGradient<A>& upstream, const EntryAt& entry_at) const {
    if (!count(b, i)) return no_goal<A>();
    const int64_t label = labels.at(b, i);
    A factor = upstream.grad.at(b, i);
    if (upstream.count != nullptr) factor /= A(*upstream.count > 0 ? *upstream.count : 1);
    factor *= weight_of(b, i) * inverse_temperature;
    if (label >= reduced) factor = A(NAN);
    const A total = smoothing.on() ? goal_total<A>(smoothing, nearest(b, i), entry_at) : A(1);
    return {label, finite_logsumexp(upstream.logsumexp.at(b, i)), factor, total};
  }
  // The gradient by an entry c of the column.
  SEMIMATCH_FN A entry_gradient(A c, int64_t entry, const Goal<A>& g) const {
    if (g.label < 0) return A(0);  // not a product with 0: what does not count may be NaN
    const A p = probability(c, g.logsumexp, inverse_temperature);
    const A q = smoothing.on() ? goal_of(smoothing, g.label, entry, c, g.total) : A(entry == g.label);
    return g.factor * (p - q);
  }
};

// The table of a Smoothing: one thread a distance.
template <class W>
__global__ void __launch_bounds__(kItemThreads, 1) smoothing_table(W* weights, int64_t n, double sigma) {
  const int64_t d = int64_t(blockIdx.x) * kItemThreads + threadIdx.x;
  if (d < n) weights[d] = exp(-(double(d) * double(d)) / (2 * sigma * sigma));
}

// The number of cells that count, and the sum of the losses or their mean over those cells: one block, its threads
// share out the cells in a fixed order. `sum` null: the number alone.
constexpr int kTotalThreads = 1024;

template <class A>
__global__ void __launch_bounds__(kTotalThreads, 1)
    contrastive_total(Goals<A> goals, const A* losses, bool mean, A* sum, int64_t* count) {
  SEMIMATCH_SHARED(sums, double[kTotalThreads]);
  SEMIMATCH_SHARED(counts, int64_t[kTotalThreads]);
  const int t = threadIdx.x;
  double mine = 0;
  int64_t kept = 0;
  for (int64_t i = t; i < goals.batch * goals.cells; i += kTotalThreads) {
    if (!goals.count(i / goals.cells, i % goals.cells)) continue;
    ++kept;
    if (sum != nullptr) mine += double(losses[i]);
  }
  sums[t] = mine;
  counts[t] = kept;
  __syncthreads();
  for (int half = kTotalThreads / 2; half > 0; half /= 2) {
    if (t < half) {
      sums[t] += sums[t + half];
      counts[t] += counts[t + half];
    }
    __syncthreads();
  }
  if (t != 0) return;
  *count = counts[0];
  if (sum != nullptr) *sum = A(mean ? sums[0] / double(counts[0] > 0 ? counts[0] : 1) : sums[0]);
}

// --- host ---

// The arguments that all of these ops have.
struct LossArguments {
  Tensor labels;
  OptionalTensor weight, mask;
  double temperature;
  std::string reduction;
  int64_t width;
  double sigma;
  int64_t radius;
};

// The arguments as kernels take them, and the memory of what had to be made for that.
template <class A>
class GoalsOfCall {
  Tensor labels_, weight_, mask_, table_;

 public:
  Goals<A> goals = {};

  // like: [batch, anything, cells] on the device.
  GoalsOfCall(const LossArguments& a, const Tensor& like, int64_t reduced, const OnDevice& device) {
    const int64_t batch = like.size(0), cells = like.size(2);
    goals.batch = batch;
    goals.cells = cells;
    goals.reduced = reduced;
    labels_ = in_type(a.labels, ScalarType::Long);
    goals.labels = cells_of<int64_t>(labels_, batch, cells, "labels");
    if (a.weight) {
      weight_ = in_type(*a.weight, accumulate_type(like));
      goals.weight = cells_of<A>(weight_, batch, cells, "weight");
    }
    if (a.mask) {
      mask_ = in_type(*a.mask, ScalarType::Bool);
      goals.mask = cells_of<bool>(mask_, batch, cells, "mask");
    }
    goals.inverse_temperature = A(1 / a.temperature);
    goals.scale = A(kLog2E / a.temperature);
    if (a.sigma == 0) return;
    STD_TORCH_CHECK(a.width > 0 && reduced % a.width == 0 && a.radius >= 0,
                    "semimatch: the cells that are reduced over (", reduced, ") must be whole rows of width ", a.width,
                    ", and the radius at least 0");
    goals.smoothing.grid = {int(reduced / a.width), int(a.width)};
    goals.smoothing.radius = int(std::min(a.radius, std::max(a.width, reduced / a.width) - 1));
    const int64_t n = goals.smoothing.radius + 1;
    table_ = new_tensor(like, {n}, ScalarType::Double);
    goals.smoothing.weights = data_of<double>(table_);
    launch("smoothing_table", smoothing_table<double>, items_geometry(n), device.stream(), data_of<double>(table_), n,
           a.sigma);
  }
};

// What backward is given, checked; like: as GoalsOfCall has it.
template <class A>
LossGradient<A> loss_gradient_of(const LossArguments& a, const Tensor& like, const Tensor& logsumexp,
                                 const Tensor& count, const Tensor& grad) {
  const ScalarType wide = accumulate_type(like);
  STD_TORCH_CHECK(grad.scalar_type() == wide && logsumexp.scalar_type() == wide &&
                      count.scalar_type() == ScalarType::Long && count.numel() == 1,
                  "semimatch: the gradient or the saved results are not of the dtypes that forward returned");
  const bool by_cell = a.reduction == "none";
  STD_TORCH_CHECK(by_cell || grad.numel() == 1, "semimatch: the gradient of a reduced loss must be a scalar");
  const int64_t batch = like.size(0), cells = like.size(2);
  Cells<A> grads = {data_of<const A>(grad), 0, 0};
  if (by_cell) grads = cells_of<A>(grad, batch, cells, "grad");
  return {cells_of<A>(logsumexp, batch, cells, "logsumexp"), grads,
          a.reduction == "mean" ? data_of<const int64_t>(count) : nullptr};
}

// The results of a call, and what fills the reduced ones from the losses of cells; like: as above.
class LossResults {
  Tensor loss_, count_;

 public:
  Tensor losses, logsumexp;  // of cells: [batch, cells]

  LossResults(const Tensor& like, const std::string& reduction) {
    const int64_t batch = like.size(0), cells = like.size(2);
    const ScalarType type = accumulate_type(like);
    losses = new_tensor(like, {batch, cells}, type);
    logsumexp = new_tensor(like, {batch, cells}, type);
    loss_ = reduction == "none" ? losses : new_tensor(like, {}, type);
    count_ = new_tensor(like, {}, ScalarType::Long);
  }
  template <class A>
  void total(const Goals<A>& goals, const std::string& reduction, const OnDevice& device) const {
    launch("contrastive_total", contrastive_total<A>, {1, kTotalThreads}, device.stream(), goals, data_of<A>(losses),
           reduction == "mean", reduction == "none" ? nullptr : data_of<A>(loss_), data_of<int64_t>(count_));
  }
  std::tuple<Tensor, Tensor, Tensor> all() const { return {loss_, logsumexp, count_}; }
};

}  // namespace semimatch
