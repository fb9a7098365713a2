// The ops `match`, `match_backward`, `match_both` and `match_both_backward` for one device: checks what Python has
// checked already no further than memory safety needs, allocates the results, and hands the kernels a MatchJob.
#pragma once

#include <algorithm>
#include <tuple>
#include <vector>

#include "match_job.h"
#include "tensors.h"

namespace semimatch {

// One side's tensors: coords [B,N,2], score, entropy, logsumexp [B,N], index [B,N] int64; and their gradients.
struct SideTensors {
  Tensor coords, score, entropy, logsumexp, index;
};
struct SideGrads {
  OptionalTensor coords, score, entropy, logsumexp;
};

// Device supplies the element types of its kernels (Half, BFloat16), new_tensor for gradients, and forward(job) and
// backward(job).
template <class Device>
class MatchOps {
  template <class A>
  static Results<A> results_of(const SideTensors& side, ScalarType type, int64_t batch, int64_t cells) {
    const auto check = [&](const Tensor& t, ScalarType expected, int64_t numel, const char* name) {
      STD_TORCH_CHECK(t.scalar_type() == expected && t.numel() == numel && t.is_contiguous(), "semimatch: saved ", name,
                      " is not what forward returned (dtype, size or strides differ)");
    };
    check(side.coords, type, batch * cells * 2, "coords");
    check(side.score, type, batch * cells, "score");
    check(side.entropy, type, batch * cells, "entropy");
    check(side.logsumexp, type, batch * cells, "logsumexp");
    check(side.index, ScalarType::Long, batch * cells, "index");
    const auto data = [](const Tensor& t) { return static_cast<A*>(t.data_ptr()); };
    return {data(side.coords), data(side.score), data(side.entropy), data(side.logsumexp),
            static_cast<int64_t*>(side.index.data_ptr())};
  }

  template <class A>
  static Strided<A> strided(const OptionalTensor& grad, ScalarType type, int64_t batch, int64_t cells, bool pair) {
    if (!grad) return {nullptr, 0, 0, 0};
    STD_TORCH_CHECK(grad->scalar_type() == type && grad->dim() == (pair ? 3 : 2) && grad->size(0) == batch &&
                        grad->size(1) == cells && (!pair || grad->size(2) == 2),
                    "semimatch: a gradient differs from its result in dtype or shape");
    return {static_cast<const A*>(grad->data_ptr()), grad->stride(0), grad->stride(1), pair ? grad->stride(2) : 0};
  }

  // One direction of a call: the grid that is reduced over, and the tensors of the side that is kept.
  struct Direction {
    std::vector<int64_t> grid;
    SideTensors tensors;
    SideGrads grads;
  };

  template <class A>
  static Side<A> make_side(const Direction* d, ScalarType type, int64_t batch, int64_t cells, int64_t reduced) {
    if (d == nullptr) return {};
    STD_TORCH_CHECK(d->grid.size() == 2 && d->grid[0] >= 1 && d->grid[1] >= 1 && d->grid[0] * d->grid[1] == reduced,
                    "semimatch: grid must be (H, W) with H * W = ", reduced, ", the cells that are reduced over");
    Side<A> side;
    side.wanted = true;
    side.grid = {int(d->grid[0]), int(d->grid[1])};
    side.results = results_of<A>(d->tensors, type, batch, cells);
    side.grads = {strided<A>(d->grads.coords, type, batch, cells, true),
                  strided<A>(d->grads.score, type, batch, cells, false),
                  strided<A>(d->grads.entropy, type, batch, cells, false),
                  strided<A>(d->grads.logsumexp, type, batch, cells, false)};
    return side;
  }

  // over_source: one match per target cell (dim 1 is reduced); over_target: one per source cell; null if not wanted.
  template <class T, class A>
  static void run(const Tensor& corr, double temperature, const Direction* over_source, const Direction* over_target,
                  const Tensor* grad) {
    const bool swap = transposed(corr);
    const int row_dim = swap ? 2 : 1, col_dim = swap ? 1 : 2;
    MatchJob<T, A> job = {};
    job.data = static_cast<const T*>(corr.data_ptr());
    job.batch = corr.size(0);
    job.rows = corr.size(row_dim);
    job.cols = corr.size(col_dim);
    job.stride_batch = corr.stride(0);
    job.stride_row = corr.stride(row_dim);
    job.stride_col = corr.stride(col_dim);
    job.inverse_temperature = A(1 / temperature);
    job.scale = A(kLog2E / temperature);
    constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
    STD_TORCH_CHECK(job.rows <= kMost && job.cols <= kMost,
                    "semimatch: a side of the correlation has 2^31 cells or more");
    const ScalarType type = accumulate_type(corr);
    // Without swapping the source cells are the rows, so that a match per target cell is one per column.
    job.per_col = make_side<A>(swap ? over_target : over_source, type, job.batch, job.cols, job.rows);
    job.per_row = make_side<A>(swap ? over_source : over_target, type, job.batch, job.rows, job.cols);
    if (grad != nullptr) job.grad = static_cast<T*>(grad->data_ptr());
    if (job.batch == 0 || job.rows == 0 || job.cols == 0) return;
    if (grad != nullptr) {
      Device::backward(job, corr);
    } else {
      Device::forward(job, corr);
    }
  }

  static void dispatch(const Tensor& corr, double temperature, const Direction* over_source,
                       const Direction* over_target, const Tensor* grad) {
    STD_TORCH_CHECK(corr.dim() == 3, "semimatch: corr must be [B,S,T]");
    switch (corr.scalar_type()) {
      case ScalarType::Float: return run<float, float>(corr, temperature, over_source, over_target, grad);
      case ScalarType::Double: return run<double, double>(corr, temperature, over_source, over_target, grad);
      case ScalarType::Half:
        return run<typename Device::Half, float>(corr, temperature, over_source, over_target, grad);
      case ScalarType::BFloat16:
        return run<typename Device::BFloat16, float>(corr, temperature, over_source, over_target, grad);
      default: STD_TORCH_CHECK(false, "semimatch: corr must be float32, float64, float16 or bfloat16");
    }
  }

  static SideTensors new_side(const Tensor& corr, int64_t cells) {
    const int64_t batch = corr.size(0);
    const ScalarType type = accumulate_type(corr);
    const auto empty = [&](ScalarType t) { return new_tensor(corr, {batch, cells}, t); };
    return {new_tensor(corr, {batch, cells, 2}, type), empty(type), empty(type), empty(type), empty(ScalarType::Long)};
  }

  static Tensor backward(const Tensor& corr, double temperature, const Direction* over_source,
                         const Direction* over_target) {
    const Tensor grad = new_grad(corr, Device::new_tensor);
    dispatch(corr, temperature, over_source, over_target, &grad);
    return grad;
  }

 public:
  using Grid2 = std::vector<int64_t>;

  static std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> match(Tensor corr, Grid2 grid, double temperature) {
    const Direction d = {grid, new_side(corr, corr.size(2)), {}};
    dispatch(corr, temperature, &d, nullptr, nullptr);
    const SideTensors& t = d.tensors;
    return {t.coords, t.score, t.entropy, t.logsumexp, t.index};
  }

  static Tensor match_backward(Tensor corr, Grid2 grid, double temperature, Tensor coords, Tensor score, Tensor entropy,
                               Tensor logsumexp, Tensor index, OptionalTensor grad_coords, OptionalTensor grad_score,
                               OptionalTensor grad_entropy, OptionalTensor grad_logsumexp) {
    const Direction d = {
        grid, {coords, score, entropy, logsumexp, index}, {grad_coords, grad_score, grad_entropy, grad_logsumexp}};
    return backward(corr, temperature, &d, nullptr);
  }

  static std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> match_both(
      Tensor corr, Grid2 source_grid, Grid2 target_grid, double temperature) {
    const Direction target = {source_grid, new_side(corr, corr.size(2)), {}};
    const Direction source = {target_grid, new_side(corr, corr.size(1)), {}};
    dispatch(corr, temperature, &target, &source, nullptr);
    const SideTensors &t = target.tensors, &s = source.tensors;
    return {t.coords, t.score, t.entropy, t.logsumexp, t.index, s.coords, s.score, s.entropy, s.logsumexp, s.index};
  }

  static Tensor match_both_backward(Tensor corr, Grid2 source_grid, Grid2 target_grid, double temperature,
                                    Tensor t_coords, Tensor t_score, Tensor t_entropy, Tensor t_logsumexp,
                                    Tensor t_index, Tensor s_coords, Tensor s_score, Tensor s_entropy,
                                    Tensor s_logsumexp, Tensor s_index, OptionalTensor grad_t_coords,
                                    OptionalTensor grad_t_score, OptionalTensor grad_t_entropy,
                                    OptionalTensor grad_t_logsumexp, OptionalTensor grad_s_coords,
                                    OptionalTensor grad_s_score, OptionalTensor grad_s_entropy,
                                    OptionalTensor grad_s_logsumexp) {
    const Direction target = {source_grid,
                              {t_coords, t_score, t_entropy, t_logsumexp, t_index},
                              {grad_t_coords, grad_t_score, grad_t_entropy, grad_t_logsumexp}};
    const Direction source = {target_grid,
                              {s_coords, s_score, s_entropy, s_logsumexp, s_index},
                              {grad_s_coords, grad_s_score, grad_s_entropy, grad_s_logsumexp}};
    return backward(corr, temperature, &target, &source);
  }

  static void implement(torch::stable::detail::StableLibrary& library) {
    library.impl("match", TORCH_BOX(&match));
    library.impl("match_backward", TORCH_BOX(&match_backward));
    library.impl("match_both", TORCH_BOX(&match_both));
    library.impl("match_both_backward", TORCH_BOX(&match_both_backward));
  }
};

}  // namespace semimatch
