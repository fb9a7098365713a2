// `masked_contrastive_loss` on CUDA: memory and launches (forward 2, backward 1; one more where labels are smoothed).
// What the kernels do is in contrastive.cuh.
#include <string>
#include <tuple>

#include "contrastive.cuh"

namespace semimatch {
namespace {

void check(const Tensor& corr) {
  STD_TORCH_CHECK(corr.dim() == 3 && corr.size(1) > 0 && corr.size(2) > 0,
                  "semimatch: corr must be [B,S,T], not empty");
}

template <class T, bool kPerRow>
void cell_losses(const Tensor& corr, const Goals<Wide<T>>& goals, const LossResults& results, const OnDevice& device) {
  using A = Wide<T>;
  using Losses = ContrastiveLosses<T, kPerRow>;
  const auto m = matrices_of<T>(corr);
  if (m.batch == 0) return;
  const Losses job = {
      {m}, m.batch, m.rows, m.cols, {goals.scale}, goals, data_of<A>(results.losses), data_of<A>(results.logsumexp)};
  if constexpr (kPerRow) {
    launch("contrastive_rows", reduce_rows<Losses>, rows_geometry(m.batch, m.rows), device.stream(), job);
  } else {
    launch("contrastive_columns", reduce_columns<Losses>, columns_geometry(m.batch, m.cols), device.stream(), job);
  }
}

template <class T, bool kPerRow>
void backward(const Tensor& corr, const LossArguments& loss, const Tensor& logsumexp, const Tensor& count,
              const Tensor& grad, const Tensor& out) {
  using A = Wide<T>;
  using Gradient = ContrastiveGradient<T, kPerRow>;
  const auto m = matrices_of<T>(corr);
  if (m.batch == 0) return;
  const OnDevice device(corr);
  const GoalsOfCall<A> call(loss, corr, corr.size(1), device);
  const Gradient job = {{m},
                        m.batch,
                        m.rows,
                        m.cols,
                        call.goals,
                        loss_gradient_of<A>(loss, corr, logsumexp, count, grad),
                        data_of<T>(out)};
  launch("contrastive_gradient", map_entries<Gradient>, map_geometry(m.batch, m.rows, m.cols), device.stream(), job);
}

std::tuple<Tensor, Tensor, Tensor> masked_contrastive_loss(Tensor corr, Tensor labels, OptionalTensor weight,
                                                           OptionalTensor mask, double temperature,
                                                           std::string reduction, int64_t width, double sigma,
                                                           int64_t radius) {
  check(corr);
  const LossArguments loss = {labels, weight, mask, temperature, reduction, width, sigma, radius};
  const LossResults results(corr, reduction);
  with_cuda_type(corr, [&](auto type) {
    using T = decltype(type);
    const OnDevice device(corr);
    const GoalsOfCall<Wide<T>> call(loss, corr, corr.size(1), device);
    transposed(corr) ? cell_losses<T, true>(corr, call.goals, results, device)
                     : cell_losses<T, false>(corr, call.goals, results, device);
    results.total(call.goals, reduction, device);
  });
  return results.all();
}

Tensor masked_contrastive_loss_backward(Tensor corr, Tensor labels, OptionalTensor weight, OptionalTensor mask,
                                        double temperature, std::string reduction, int64_t width, double sigma,
                                        int64_t radius, Tensor logsumexp, Tensor count, Tensor grad) {
  check(corr);
  const LossArguments loss = {labels, weight, mask, temperature, reduction, width, sigma, radius};
  const Tensor out = new_grad(corr);
  with_cuda_type(corr, [&](auto type) {
    using T = decltype(type);
    transposed(corr) ? backward<T, true>(corr, loss, logsumexp, count, grad, out)
                     : backward<T, false>(corr, loss, logsumexp, count, grad, out);
  });
  return out;
}

}  // namespace

SEMIMATCH_CUDA_IMPL(library) {
  library.impl("masked_contrastive_loss", TORCH_BOX(&masked_contrastive_loss));
  library.impl("masked_contrastive_loss_backward", TORCH_BOX(&masked_contrastive_loss_backward));
}

}  // namespace semimatch
