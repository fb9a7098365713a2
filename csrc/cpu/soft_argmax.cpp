// `soft_argmax` and `soft_argmax_features` on the CPU: some columns at a time are taken from memory, or from the
// product of the features, and stay in the cache for the best cell, the sums round it, and the gradient.
#include <string>
#include <tuple>
#include <vector>

#include "features.h"
#include "memory.h"
#include "soft_argmax_kernels.h"

namespace semimatch {
namespace {

using Grid2 = std::vector<int64_t>;
using Result = std::tuple<Tensor, Tensor>;  // coords [B,T,2], index [B,T]

Window window_of(const std::string& name) {
  if (name == "gaussian") return Window::kGaussian;
  if (name == "zero") return Window::kZero;
  if (name == "exclude") return Window::kExclude;
  STD_TORCH_CHECK(name == "none", "semimatch: window must be gaussian, zero, exclude or none");
  return Window::kNone;
}

struct Arguments {
  Grid2 grid;
  double temperature;
  std::string window;
  double width;
};

Result new_result(const Tensor& like, int64_t cells) {
  const int64_t batch = like.size(0);
  return {new_tensor(like, {batch, cells, 2}, accumulate_type(like)),
          new_tensor(like, {batch, cells}, ScalarType::Long)};
}

template <class A>
SoftArgmaxJob<A> job_of(const Arguments& a, int64_t sources, const Result& result) {
  STD_TORCH_CHECK(a.grid.size() == 2 && a.grid[0] * a.grid[1] == sources,
                  "semimatch: grid must be (H, W) with H * W = ", sources, ", the source cells");
  const auto& [coords, index] = result;
  return {{int(a.grid[0]), int(a.grid[1])},
          window_of(a.window),
          A(a.width),
          A(1 / a.temperature),
          A(kLog2E / a.temperature),
          coords.size(1),
          data_of<A>(coords),
          data_of<int64_t>(index),
          {}};
}

// The job of a gradient, given what forward returned and the gradient by the coordinates, any strides.
template <class A>
SoftArgmaxJob<A> job_of(const Arguments& a, int64_t batch, int64_t sources, int64_t cells, ScalarType type,
                        const Result& result, const Tensor& grad) {
  const auto& [coords, index] = result;
  STD_TORCH_CHECK(coords.scalar_type() == type && coords.dim() == 3 && coords.numel() == batch * cells * 2 &&
                      coords.is_contiguous() && index.scalar_type() == ScalarType::Long &&
                      index.numel() == batch * cells && index.is_contiguous(),
                  "semimatch: coords or index is not what forward returned (dtype, size or strides differ)");
  STD_TORCH_CHECK(grad.scalar_type() == type && grad.dim() == 3 && grad.size(0) == batch && grad.size(1) == cells &&
                      grad.size(2) == 2,
                  "semimatch: the gradient differs from coords in dtype or shape");
  SoftArgmaxJob<A> job = job_of<A>(a, sources, result);
  job.grad = {data_of<const A>(grad), grad.stride(0), grad.stride(1), grad.stride(2)};
  return job;
}

// Room for the weights of a window.
template <class A>
Scratch weights_memory(const SoftArgmaxJob<A>& job, int group) {
  return Scratch(job.grid.width + job.grid.height, group * sizeof(A));
}

// Calls f(columns) for all columns of corr [B,S,T], read from memory.
template <class T, class F>
void for_columns(const Tensor& corr, const SoftArgmaxKernels<T>& kernels, const F& f) {
  using A = typename CpuSoftArgmax<T>::A;
  const Matrices<T> from = {data_of<const T>(corr), corr.size(0),   corr.size(1),  corr.size(2),
                            corr.stride(0),         corr.stride(1), corr.stride(2)};
  const int64_t pieces = ceil_div(from.cols, kColumns);
  parallel(0, from.batch * pieces, [&](int64_t begin, int64_t end) {
    const Scratch memory(from.rows, kColumns * sizeof(A));
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = i % pieces * kColumns, cells = std::min(kColumns, from.cols - first);
      const int64_t step = ceil_div(cells, kernels.group) * kernels.group;
      const Columns<A> columns = {static_cast<A*>(memory.at(0)), step, i / pieces, first, cells};
      kernels.read(from, columns);
      f(columns);
    }
  });
}

Result soft_argmax(Tensor corr, Grid2 grid, double temperature, std::string window, double width) {
  STD_TORCH_CHECK(corr.dim() == 3 && corr.size(1) > 0 && corr.size(2) > 0,
                  "semimatch: corr must be [B,S,T], not empty");
  const Result result = new_result(corr, corr.size(2));
  with_type(corr, [&](auto type) {
    using T = decltype(type);
    using A = typename CpuSoftArgmax<T>::A;
    const SoftArgmaxKernels<T> kernels = SEMIMATCH_BEST(soft_argmax_kernels<T>());
    const auto job = job_of<A>({grid, temperature, window, width}, corr.size(1), result);
    for_columns<T>(corr, kernels, [&](const Columns<A>& columns) {
      kernels.forward(job, columns, weights_memory<A>(job, kernels.group).at(0));
    });
  });
  return result;
}

Tensor soft_argmax_backward(Tensor corr, Grid2 grid, double temperature, std::string window, double width,
                            Tensor coords, Tensor index, Tensor grad) {
  STD_TORCH_CHECK(corr.dim() == 3 && corr.size(1) > 0 && corr.size(2) > 0,
                  "semimatch: corr must be [B,S,T], not empty");
  const Tensor result = new_grad(corr, new_large);
  with_type(corr, [&](auto type) {
    using T = decltype(type);
    using A = typename CpuSoftArgmax<T>::A;
    const SoftArgmaxKernels<T> kernels = SEMIMATCH_BEST(soft_argmax_kernels<T>());
    const int64_t sources = corr.size(1), cells = corr.size(2);
    const auto job = job_of<A>({grid, temperature, window, width}, corr.size(0), sources, cells, accumulate_type(corr),
                               {coords, index}, grad);
    const bool swap = transposed(corr);
    const int64_t stride_row = swap ? 1 : cells, stride_col = swap ? sources : 1;
    for_columns<T>(corr, kernels, [&](const Columns<A>& columns) {
      kernels.backward(job, columns, weights_memory<A>(job, kernels.group).at(0));
      T* const to = data_of<T>(result) + columns.b * sources * cells + columns.first * stride_col;
      kernels.write(columns, to, sources, stride_row, stride_col);
    });
  });
  return result;
}

// --- from features
struct Features {
  Tensor src, trg;
  OptionalTensor source_mask, target_mask;
  std::string normalize;
  double eps;
};

// Calls f(tiles, kernels) with the tiles of the features' correlation.
template <class T, class F>
void with_tiles(const Features& a, const F& f) {
  using A = typename CpuFeatures<T>::A;
  const int64_t batch = a.src.size(0);
  const Tensor source = mask_of(a.source_mask, batch, a.src.size(2), "source_mask");
  const Tensor target = mask_of(a.target_mask, batch, a.trg.size(2), "target_mask");
  const auto normalizer = normalizer_of<A>(a.normalize, a.eps);
  FeatureTiles<T> tiles(feature_map<T>(a.src, data_of_mask(a.source_mask, source), normalizer, true),
                        feature_map<T>(a.trg, data_of_mask(a.target_mask, target), normalizer, true), batch);
  f(tiles, SEMIMATCH_BEST(soft_argmax_kernels<A>()));
}

Result soft_argmax_features(Tensor src, Tensor trg, OptionalTensor source_mask, OptionalTensor target_mask, Grid2 grid,
                            double temperature, std::string window, double width, std::string normalize, double eps) {
  check_features(src, trg);
  const Result result = new_result(src, trg.size(2));
  with_type(src, [&](auto type) {
    using T = decltype(type);
    using A = typename CpuFeatures<T>::A;
    const auto job = job_of<A>({grid, temperature, window, width}, src.size(2), result);
    with_tiles<T>({src, trg, source_mask, target_mask, normalize, eps}, [&](auto& tiles, const auto& kernels) {
      tiles.forward([&](const Columns<A>& columns) {
        kernels.forward(job, columns, weights_memory<A>(job, kernels.group).at(0));
      });
    });
  });
  return result;
}

std::tuple<Tensor, Tensor> soft_argmax_features_backward(Tensor src, Tensor trg, OptionalTensor source_mask,
                                                         OptionalTensor target_mask, Grid2 grid, double temperature,
                                                         std::string window, double width, std::string normalize,
                                                         double eps, Tensor coords, Tensor index, Tensor grad) {
  check_features(src, trg);
  std::tuple<Tensor, Tensor> grads;
  with_type(src, [&](auto type) {
    using T = decltype(type);
    using A = typename CpuFeatures<T>::A;
    const auto job = job_of<A>({grid, temperature, window, width}, src.size(0), src.size(2), trg.size(2),
                               accumulate_type(src), {coords, index}, grad);
    with_tiles<T>({src, trg, source_mask, target_mask, normalize, eps}, [&](auto& tiles, const auto& kernels) {
      const auto by_entry = [&](const Columns<A>& columns) {
        kernels.backward(job, columns, weights_memory<A>(job, kernels.group).at(0));
      };
      grads = tiles.backward(true, by_entry, src, trg);
    });
  });
  return grads;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(semimatch_kernels, CPU, library) {
  library.impl("soft_argmax", TORCH_BOX(&soft_argmax));
  library.impl("soft_argmax_backward", TORCH_BOX(&soft_argmax_backward));
  library.impl("soft_argmax_features", TORCH_BOX(&soft_argmax_features));
  library.impl("soft_argmax_features_backward", TORCH_BOX(&soft_argmax_features_backward));
}

}  // namespace semimatch
