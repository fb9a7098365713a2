// `masked_contrastive_loss` on CUDA: memory and launches (forward 2, backward 1; one more where labels are smoothed).
// What the kernels do is in contrastive.cuh.
#include <algorithm>
#include <string>
#include <tuple>
#include <vector>

#include "contrastive.cuh"

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

void check(const Tensor& corr) {
  STD_TORCH_CHECK(corr.dim() == 3 && corr.size(1) > 0 && corr.size(2) > 0,
                  "semimatch: corr must be [B,S,T], not empty");
}

// The arguments as kernels take them, and the memory of what had to be made for that.
template <class A>
class Call {
  Tensor labels_, weight_, mask_, table_;

 public:
  Goals<A> goals = {};

  Call(const Arguments& a, const OnDevice& device) {
    const int64_t batch = a.corr.size(0), cells = a.corr.size(2), reduced = a.corr.size(1);
    goals.batch = batch;
    goals.cells = cells;
    goals.reduced = reduced;
    labels_ = in_type(a.labels, ScalarType::Long);
    goals.labels = cells_of<int64_t>(labels_, batch, cells, "labels");
    if (a.weight) {
      weight_ = in_type(*a.weight, accumulate_type(a.corr));
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
    table_ = torch::stable::new_empty(a.corr, {n}, ScalarType::Double);
    goals.smoothing.weights = data_of<double>(table_);
    launch("smoothing_table", smoothing_table, items_geometry(n), device.stream(), data_of<double>(table_), n, a.sigma);
  }
};

template <class T, bool kPerRow>
void forward(const Arguments& a, const Tensor& loss, const Tensor& logsumexp, const Tensor& count) {
  using A = Wide<T>;
  using Losses = ContrastiveLosses<T, kPerRow>;
  const OnDevice device(a.corr);
  const Call<A> call(a, device);
  const Goals<A>& goals = call.goals;
  const bool reduced = a.reduction != "none";
  const auto m = matrices_of<T>(a.corr);
  const int64_t batch = a.corr.size(0), cells = a.corr.size(2);
  Tensor losses = loss;
  if (reduced) losses = torch::stable::new_empty(logsumexp, {batch, cells});
  if (m.batch > 0) {
    const Losses job = {{m}, m.batch, m.rows, m.cols, {goals.scale}, goals, data_of<A>(losses), data_of<A>(logsumexp)};
    if constexpr (kPerRow) {
      launch("contrastive_rows", reduce_rows<Losses>, rows_geometry(m.batch, m.rows), device.stream(), job);
    } else {
      launch("contrastive_columns", reduce_columns<Losses>, columns_geometry(m.batch, m.cols), device.stream(), job);
    }
  }
  launch("contrastive_total", contrastive_total<A>, {1, kTotalThreads}, device.stream(), goals, data_of<A>(losses),
         a.reduction == "mean", reduced ? data_of<A>(loss) : nullptr, data_of<int64_t>(count));
}

template <class T, bool kPerRow>
void backward(const Arguments& a, const Tensor& logsumexp, const Tensor& count, const Tensor& grad, const Tensor& out) {
  using A = Wide<T>;
  using Gradient = ContrastiveGradient<T, kPerRow>;
  const auto m = matrices_of<T>(a.corr);
  if (m.batch == 0) return;
  const OnDevice device(a.corr);
  const Call<A> call(a, device);
  const Goals<A>& goals = call.goals;
  const ScalarType wide = accumulate_type(a.corr);
  STD_TORCH_CHECK(grad.scalar_type() == wide && logsumexp.scalar_type() == wide &&
                      count.scalar_type() == ScalarType::Long && count.numel() == 1,
                  "semimatch: the gradient or the saved results are not of the dtypes that forward returned");
  const bool by_cell = a.reduction == "none";
  STD_TORCH_CHECK(by_cell || grad.numel() == 1, "semimatch: the gradient of a reduced loss must be a scalar");
  const Cells<A> grads =
      by_cell ? cells_of<A>(grad, goals.batch, goals.cells, "grad") : Cells<A>{data_of<const A>(grad), 0, 0};
  const Gradient job = {{m},
                        m.batch,
                        m.rows,
                        m.cols,
                        goals,
                        cells_of<A>(logsumexp, goals.batch, goals.cells, "logsumexp"),
                        grads,
                        a.reduction == "mean" ? data_of<const int64_t>(count) : nullptr,
                        data_of<T>(out)};
  launch("contrastive_gradient", map_entries<Gradient>, map_geometry(m.batch, m.rows, m.cols), device.stream(), job);
}

std::tuple<Tensor, Tensor, Tensor> masked_contrastive_loss(Tensor corr, Tensor labels, OptionalTensor weight,
                                                           OptionalTensor mask, double temperature,
                                                           std::string reduction, int64_t width, double sigma,
                                                           int64_t radius) {
  check(corr);
  const ScalarType type = accumulate_type(corr);
  const int64_t batch = corr.size(0), cells = corr.size(2);
  const Tensor logsumexp = torch::stable::new_empty(corr, {batch, cells}, type);
  std::vector<int64_t> shape;
  if (reduction == "none") shape = {batch, cells};
  const Tensor loss = torch::stable::new_empty(corr, shape, type);
  const Tensor count = torch::stable::new_empty(corr, {}, ScalarType::Long);
  const Arguments a = {corr, labels, weight, mask, temperature, reduction, width, sigma, radius};
  with_cuda_type(corr, [&](auto type) {
    using T = decltype(type);
    transposed(corr) ? forward<T, true>(a, loss, logsumexp, count) : forward<T, false>(a, loss, logsumexp, count);
  });
  return {loss, logsumexp, count};
}

Tensor masked_contrastive_loss_backward(Tensor corr, Tensor labels, OptionalTensor weight, OptionalTensor mask,
                                        double temperature, std::string reduction, int64_t width, double sigma,
                                        int64_t radius, Tensor logsumexp, Tensor count, Tensor grad) {
  check(corr);
  const Tensor out = new_grad(corr);
  const Arguments a = {corr, labels, weight, mask, temperature, reduction, width, sigma, radius};
  with_cuda_type(corr, [&](auto type) {
    using T = decltype(type);
    transposed(corr) ? backward<T, true>(a, logsumexp, count, grad, out)
                     : backward<T, false>(a, logsumexp, count, grad, out);
  });
  return out;
}

}  // namespace

SEMIMATCH_CUDA_IMPL(library) {
  library.impl("masked_contrastive_loss", TORCH_BOX(&masked_contrastive_loss));
  library.impl("masked_contrastive_loss_backward", TORCH_BOX(&masked_contrastive_loss_backward));
}

}  // namespace semimatch
