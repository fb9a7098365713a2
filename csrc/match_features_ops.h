// The ops `match_features` and `match_features_backward` for one device: allocates the results, checks what memory
// safety needs, and hands the device its arguments.
#pragma once

#include <tuple>
#include <vector>

#include "feature_tensors.h"
#include "match.h"

namespace semimatch {

struct MatchFeaturesArguments {
  Tensor src, trg;
  OptionalTensor source_mask, target_mask;
  std::vector<int64_t> grid;
  double temperature;
  std::string normalize;
  double eps;

  Grid reduced() const {
    const int64_t cells = src.size(2);
    STD_TORCH_CHECK(grid.size() == 2 && grid[0] >= 1 && grid[1] >= 1 && grid[0] * grid[1] == cells,
                    "semimatch: grid must be (H, W) with H * W = ", cells, ", the source cells");
    return {int(grid[0]), int(grid[1])};
  }
};

// Device supplies with_type(features, f), which calls f(T{}) for its element type T; Wide<T>, the accumulate type;
// forward<T>(arguments, results) and backward<T>(arguments, results, gradients of the results).
template <class Device>
class MatchFeaturesOps {
  using Arguments = MatchFeaturesArguments;
  using Grid2 = std::vector<int64_t>;
  // coords [B,T,2], score, entropy, logsumexp [B,T], index [B,T]
  using MatchTensors = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

  template <class A>
  static Results<A> results_of(const MatchTensors& t) {
    return {data_of<A>(std::get<0>(t)), data_of<A>(std::get<1>(t)), data_of<A>(std::get<2>(t)),
            data_of<A>(std::get<3>(t)), data_of<int64_t>(std::get<4>(t))};
  }

  // Upstream gradients of any strides.
  template <class A>
  static Strided<A> strided(const OptionalTensor& grad, const Tensor& result) {
    if (!grad) return {nullptr, 0, 0, 0};
    const bool pair = result.dim() == 3;
    STD_TORCH_CHECK(grad->scalar_type() == result.scalar_type() && grad->dim() == result.dim() &&
                        grad->size(0) == result.size(0) && grad->size(1) == result.size(1) &&
                        (!pair || grad->size(2) == 2),
                    "semimatch: a gradient differs from its result in dtype or shape");
    return {data_of<const A>(*grad), grad->stride(0), grad->stride(1), pair ? grad->stride(2) : 0};
  }

  static void check_saved(const Tensor& t, ScalarType type, int64_t numel) {
    STD_TORCH_CHECK(t.scalar_type() == type && t.numel() == numel && t.is_contiguous(),
                    "semimatch: a saved result is not what forward returned (dtype, size or strides differ)");
  }

  static MatchTensors match_features(Tensor src, Tensor trg, OptionalTensor source_mask, OptionalTensor target_mask,
                                     Grid2 grid, double temperature, std::string normalize, double eps) {
    check_features(src, trg);
    const int64_t batch = src.size(0), cells = trg.size(2);
    const ScalarType type = accumulate_type(src);
    const auto empty = [&](ScalarType t) { return new_tensor(src, {batch, cells}, t); };
    const MatchTensors results = {new_tensor(src, {batch, cells, 2}, type), empty(type), empty(type), empty(type),
                                  empty(ScalarType::Long)};
    const Arguments a = {src, trg, source_mask, target_mask, grid, temperature, normalize, eps};
    Device::with_type(src, [&](auto type) {
      using T = decltype(type);
      Device::template forward<T>(a, results_of<typename Device::template Wide<T>>(results));
    });
    return results;
  }

  static std::tuple<Tensor, Tensor> match_features_backward(Tensor src, Tensor trg, OptionalTensor source_mask,
                                                            OptionalTensor target_mask, Grid2 grid, double temperature,
                                                            std::string normalize, double eps, Tensor coords,
                                                            Tensor score, Tensor entropy, Tensor logsumexp,
                                                            Tensor index, OptionalTensor grad_coords,
                                                            OptionalTensor grad_score, OptionalTensor grad_entropy,
                                                            OptionalTensor grad_logsumexp) {
    check_features(src, trg);
    const int64_t batch = src.size(0), cells = batch * trg.size(2);
    for (const Tensor& t : {score, entropy, logsumexp}) check_saved(t, accumulate_type(src), cells);
    check_saved(coords, accumulate_type(src), 2 * cells);
    check_saved(index, ScalarType::Long, cells);
    const Arguments a = {src, trg, source_mask, target_mask, grid, temperature, normalize, eps};
    std::tuple<Tensor, Tensor> by_features;
    Device::with_type(src, [&](auto type) {
      using T = decltype(type);
      using A = typename Device::template Wide<T>;
      const Gradients<A> grads = {strided<A>(grad_coords, coords), strided<A>(grad_score, score),
                                  strided<A>(grad_entropy, entropy), strided<A>(grad_logsumexp, logsumexp)};
      by_features = Device::template backward<T>(a, results_of<A>({coords, score, entropy, logsumexp, index}), grads);
    });
    return by_features;
  }

 public:
  static void implement(torch::stable::detail::StableLibrary& library) {
    library.impl("match_features", TORCH_BOX(&match_features));
    library.impl("match_features_backward", TORCH_BOX(&match_features_backward));
  }
};

}  // namespace semimatch
