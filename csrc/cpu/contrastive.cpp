// `masked_contrastive_loss` on the CPU: memory, threads and the order of the work. The loops are in
// contrastive_kernels.cpp.
#include <algorithm>
#include <cmath>
#include <string>
#include <tuple>
#include <vector>

#include "contrastive_kernels.h"
#include "dispatch.h"
#include "memory.h"
#include "smoothing.h"
#include "tensors.h"
#include "work.h"

namespace semimatch {
namespace {

// The arguments that both ops have.
struct Arguments {
  Tensor corr, labels;
  OptionalTensor weight, mask;
  double temperature;
  std::string reduction;
  int64_t width;
  double sigma;
  int64_t radius;
};

// The job of one call, and the memory of its tables.
template <class T>
struct Call {
  using A = typename CpuContrastive<T>::A;
  using Index = typename CpuContrastive<T>::Index;
  const ContrastiveKernels<T> kernels = SEMIMATCH_BEST(contrastive_kernels<T>());
  bool per_row;  // the cells that have a loss are the rows
  int64_t cells, reduced, count = 0;
  SmoothingTables smoothing;
  std::vector<Index> labels;
  std::vector<uint8_t> counts;
  Tensor weight;  // undefined where there is none
  typename CpuContrastive<T>::Job job = {};

  explicit Call(const Arguments& a)
      : per_row(transposed(a.corr)),
        cells(a.corr.size(2)),
        reduced(a.corr.size(1)),
        smoothing(reduced, a.width, a.sigma, a.radius) {
    job.corr = matrices_of<T>(a.corr);
    job.step = ceil_div(cells, kernels.group) * kernels.group;
    job.inverse_temperature = A(1 / a.temperature);
    job.scale = A(kLog2E / a.temperature);
    job.smoothing = smoothing.get();
    const int64_t batch = a.corr.size(0);
    read_labels(per_cell(a.labels, batch, cells, ScalarType::Long, "labels"),
                a.mask ? per_cell(*a.mask, batch, cells, ScalarType::Bool, "mask") : Tensor(), a.mask.has_value());
    if (!a.weight) return;
    weight = per_cell(*a.weight, batch, cells, accumulate_type(a.corr), "weight");
    job.weight = data_of<const A>(weight);
  }

  // Labels in the kernels' form; `count` becomes the number of cells that count.
  void read_labels(const Tensor& given, const Tensor& mask, bool masked) {
    const int64_t batch = job.corr.batch;
    labels.assign(batch * job.step, Index(-1));
    counts.assign(batch * job.step / kernels.group, 0);
    const int64_t* from = data_of<const int64_t>(given);
    const bool* keep = masked ? data_of<const bool>(mask) : nullptr;
    for (int64_t b = 0; b < batch; ++b) {
      for (int64_t i = b * cells, cell = b * job.step; i < (b + 1) * cells; ++i, ++cell) {
        if (from[i] < 0 || (keep != nullptr && !keep[i])) continue;
        labels[cell] = Index(std::min(from[i], reduced));
        counts[cell / kernels.group] = 1;
        ++count;
      }
    }
    job.labels = labels.data();
    job.counts = counts.data();
  }
};

template <class T>
void forward(const Arguments& a, Tensor& loss, Tensor& logsumexp, Tensor& count) {
  using A = typename CpuContrastive<T>::A;
  Call<T> call(a);
  auto& job = call.job;
  const auto& kernels = call.kernels;
  const int64_t batch = job.corr.batch;
  Tensor losses = a.reduction == "none" ? loss : new_tensor(logsumexp, {batch, call.cells});
  job.loss = data_of<A>(losses);
  job.logsumexp = data_of<A>(logsumexp);
  if (call.per_row) {
    for_pieces(batch, job.corr.rows, rows_per_piece(job.corr.cols),
               [&](int64_t b, int64_t r0, int64_t r1) { kernels.rows(job, b, r0, r1); });
  } else {
    const int64_t piece = columns_per_piece(batch * job.corr.cols) / kernels.group;
    for_pieces(batch, job.step / kernels.group, piece, [&](int64_t b, int64_t g0, int64_t g1) {
      const Scratch memory(g1 - g0, 2 * kernels.group * int64_t(sizeof(A)));
      kernels.columns(job, b, g0, g1, memory.at(0));
    });
  }
  *data_of<int64_t>(count) = call.count;
  if (a.reduction == "none") return;
  double sum = 0;
  for (int64_t i = 0; i < batch * call.cells; ++i) sum += double(job.loss[i]);
  *data_of<A>(loss) = A(a.reduction == "mean" ? sum / double(std::max<int64_t>(call.count, 1)) : sum);
}

template <class T>
void backward(const Arguments& a, const Tensor& logsumexp, const Tensor& count, const Tensor& grad_loss,
              const Tensor& grad) {
  using A = typename CpuContrastive<T>::A;
  Call<T> call(a);
  auto& job = call.job;
  const auto& kernels = call.kernels;
  const int64_t batch = job.corr.batch;
  STD_TORCH_CHECK(grad_loss.scalar_type() == logsumexp.scalar_type() && count.scalar_type() == ScalarType::Long &&
                      count.numel() == 1,
                  "semimatch: the gradient or the count is not of the dtype that forward returned");
  const bool by_cell = a.reduction == "none";
  STD_TORCH_CHECK(by_cell || grad_loss.numel() == 1, "semimatch: the gradient of a reduced loss must be a scalar");
  const Tensor grads = by_cell ? per_cell(grad_loss, batch, call.cells, grad_loss.scalar_type(), "grad") : grad_loss;
  const Tensor saved = per_cell(logsumexp, batch, call.cells, accumulate_type(a.corr), "logsumexp");
  const int64_t kept = std::max<int64_t>(*data_of<const int64_t>(count), 1);
  const Scratch memory(2 * batch * job.step, sizeof(A));
  A* const finite = static_cast<A*>(memory.at(0));
  A* const factor = static_cast<A*>(memory.at(batch * job.step));
  const A* const logs = data_of<const A>(saved);
  const A* const by_loss = data_of<const A>(grads);
  const A shared = by_cell ? A(0) : a.reduction == "mean" ? by_loss[0] / A(kept) : by_loss[0];
  for (int64_t b = 0; b < batch; ++b) {
    for (int64_t cell = b * job.step; cell < (b + 1) * job.step; ++cell) {
      finite[cell] = factor[cell] = A(0);
      if (job.labels[cell] < 0) continue;
      const int64_t i = b * call.cells + cell - b * job.step;
      finite[cell] = finite_logsumexp(logs[i]);
      const A weight = job.weight != nullptr ? job.weight[i] : A(1);
      const A f = (by_cell ? by_loss[i] : shared) * weight;
      factor[cell] = job.labels[cell] < call.reduced ? f * job.inverse_temperature : A(NAN);
    }
  }
  job.finite_logsumexp = finite;
  job.factor = factor;
  job.grad = data_of<T>(grad);
  const auto kernel = call.per_row ? kernels.gradient_of_rows : kernels.gradient_of_columns;
  const int64_t piece = std::max<int64_t>(rows_per_piece(job.corr.cols), 16);  // rows share what columns need
  for_pieces(batch, job.corr.rows, piece, [&](int64_t b, int64_t r0, int64_t r1) { kernel(job, b, r0, r1); });
}

std::tuple<Tensor, Tensor, Tensor> masked_contrastive_loss(Tensor corr, Tensor labels, OptionalTensor weight,
                                                           OptionalTensor mask, double temperature,
                                                           std::string reduction, int64_t width, double sigma,
                                                           int64_t radius) {
  STD_TORCH_CHECK(corr.dim() == 3 && corr.size(1) > 0 && corr.size(2) > 0,
                  "semimatch: corr must be [B,S,T], not empty");
  const ScalarType type = accumulate_type(corr);
  const int64_t batch = corr.size(0), cells = corr.size(2);
  Tensor logsumexp = new_tensor(corr, {batch, cells}, type);
  Tensor loss = reduction == "none" ? new_tensor(corr, {batch, cells}, type) : new_tensor(corr, {}, type);
  Tensor count = new_tensor(corr, {}, ScalarType::Long);
  const Arguments a = {corr, labels, weight, mask, temperature, reduction, width, sigma, radius};
  with_type(corr, [&](auto type) { forward<decltype(type)>(a, loss, logsumexp, count); });
  return {loss, logsumexp, count};
}

Tensor masked_contrastive_loss_backward(Tensor corr, Tensor labels, OptionalTensor weight, OptionalTensor mask,
                                        double temperature, std::string reduction, int64_t width, double sigma,
                                        int64_t radius, Tensor logsumexp, Tensor count, Tensor grad) {
  STD_TORCH_CHECK(corr.dim() == 3 && corr.size(1) > 0 && corr.size(2) > 0,
                  "semimatch: corr must be [B,S,T], not empty");
  const Tensor result = new_grad(corr, new_large);
  const Arguments a = {corr, labels, weight, mask, temperature, reduction, width, sigma, radius};
  with_type(corr, [&](auto type) { backward<decltype(type)>(a, logsumexp, count, grad, result); });
  return result;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(semimatch_kernels, CPU, library) {
  library.impl("masked_contrastive_loss", TORCH_BOX(&masked_contrastive_loss));
  library.impl("masked_contrastive_loss_backward", TORCH_BOX(&masked_contrastive_loss_backward));
}

}  // namespace semimatch
