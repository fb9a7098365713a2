// `correlation` on the CPU: tiles of each level's product, finished where they lie and written once.
#include <cmath>
#include <tuple>
#include <type_traits>
#include <vector>

#include "../correlation_ops.h"
#include "correlation_kernels.h"
#include "features.h"
#include "memory.h"

namespace semimatch {
namespace {

bool is_double(ScalarType type) { return type == ScalarType::Double; }

// In float64 throughout where the features or the result are.
Tensor widened(const Tensor& t, bool wide) {
  return wide && !is_double(t.scalar_type()) ? torch::stable::to(t, ScalarType::Double) : t;
}

// The tiles of one level. Features are rounded to their dtype once they are normalised where the result has it too.
template <class T>
FeatureTiles<T> tiles_of(const Tensor& src, const Tensor& trg, const CorrelationArguments& a) {
  using A = typename CpuFeatures<T>::A;
  const double root = std::sqrt(double(src.size(1)));
  const double by_src = a.scale == "none" ? 1 : 1 / root, by_trg = a.scale == "channels" ? 1 / root : 1;
  const bool rounded = a.out_type == src.scalar_type();
  return {feature_map<T>(src, nullptr, normalizer_of<A>(a.normalize, a.eps, by_src), rounded),
          feature_map<T>(trg, nullptr, normalizer_of<A>(a.normalize, a.eps, by_trg), rounded), src.size(0)};
}

// Calls f(O{}) for the element type O of `result`, which is float64 where T is and not else.
template <class T, class F>
void with_result_type(const Tensor& result, const F& f) {
  if constexpr (std::is_same_v<T, double>) {
    f(double{});
  } else {
    switch (result.scalar_type()) {
      case ScalarType::Float: return f(float{});
      case ScalarType::Half: return f(Float16{});
      case ScalarType::BFloat16: return f(BFloat16{});
      default: STD_TORCH_CHECK(false, "semimatch: out_dtype must be float32, float64, float16 or bfloat16");
    }
  }
}

// Level l of out [B,L,S,T].
template <class T, class O>
void forward(const Tensor& src, const Tensor& trg, const CorrelationArguments& a, int64_t l, const Tensor& out) {
  using A = typename CpuFeatures<T>::A;
  const CorrelationKernels<O> kernels = SEMIMATCH_BEST(correlation_kernels<O>());
  const int64_t sources = src.size(2), targets = trg.size(2), levels = out.size(1);
  O* const data = data_of<O>(out);
  tiles_of<T>(src, trg, a).forward([&](const Columns<A>& columns) {
    O* const to = data + (columns.b * levels + l) * sources * targets + columns.first;
    kernels.write(columns, sources, a.epilogue, to, targets);
  });
}

template <class T, class O>
std::tuple<Tensor, Tensor> backward(const Tensor& src, const Tensor& trg, const CorrelationArguments& a, int64_t l,
                                    const Tensor& grad) {
  using A = typename CpuFeatures<T>::A;
  const CorrelationKernels<O> kernels = SEMIMATCH_BEST(correlation_kernels<O>());
  const Matrices<O> by_result = {data_of<const O>(grad) + l * grad.stride(1),
                                 grad.size(0),
                                 grad.size(2),
                                 grad.size(3),
                                 grad.stride(0),
                                 grad.stride(2),
                                 grad.stride(3)};
  const auto by_entry = [&](const Columns<A>& columns) { kernels.gradient(columns, a.epilogue, by_result); };
  return tiles_of<T>(src, trg, a).backward(a.epilogue.any(), by_entry, src, trg);
}

Tensor correlation(Levels src, Levels trg, std::string normalize, double eps, std::string scale, bool relu,
                   int64_t power, ScalarType out_dtype) {
  const CorrelationArguments a = {normalize, eps, scale, {relu, power}, out_dtype};
  check_levels(src, trg, a);
  const bool wide = is_double(src[0].scalar_type()) || is_double(out_dtype);
  const int64_t levels = int64_t(src.size());
  const Tensor out = new_large_of(src[0], {src[0].size(0), levels, src[0].size(2), trg[0].size(2)},
                                  wide ? ScalarType::Double : out_dtype);
  for (int64_t l = 0; l < levels; ++l) {
    const Tensor s = widened(src[l], wide), t = widened(trg[l], wide);
    with_type(s, [&](auto type) {
      using T = decltype(type);
      with_result_type<T>(out, [&](auto out_type) { forward<T, decltype(out_type)>(s, t, a, l, out); });
    });
  }
  return wide && !is_double(out_dtype) ? torch::stable::to(out, out_dtype) : out;
}

std::tuple<Levels, Levels> correlation_backward(Levels src, Levels trg, std::string normalize, double eps,
                                                std::string scale, bool relu, int64_t power, ScalarType out_dtype,
                                                Tensor grad) {
  const CorrelationArguments a = {normalize, eps, scale, {relu, power}, out_dtype};
  check_levels(src, trg, a);
  const ScalarType type = src[0].scalar_type();
  const bool wide = is_double(type) || is_double(out_dtype), narrow = wide && !is_double(type);
  STD_TORCH_CHECK(grad.scalar_type() == out_dtype && grad.dim() == 4 && grad.size(0) == src[0].size(0) &&
                      grad.size(1) == int64_t(src.size()) && grad.size(2) == src[0].size(2) &&
                      grad.size(3) == trg[0].size(2),
                  "semimatch: the gradient differs from the result in dtype or shape");
  const Tensor upstream = widened(grad, wide);
  Levels grads_src, grads_trg;
  for (int64_t l = 0; l < int64_t(src.size()); ++l) {
    const Tensor s = widened(src[l], wide), t = widened(trg[l], wide);
    std::tuple<Tensor, Tensor> grads;
    with_type(s, [&](auto type) {
      using T = decltype(type);
      with_result_type<T>(upstream,
                          [&](auto out_type) { grads = backward<T, decltype(out_type)>(s, t, a, l, upstream); });
    });
    const auto& [grad_src, grad_trg] = grads;
    grads_src.push_back(narrow ? torch::stable::to(grad_src, type) : grad_src);
    grads_trg.push_back(narrow ? torch::stable::to(grad_trg, type) : grad_trg);
  }
  return {grads_src, grads_trg};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(semimatch_kernels, CPU, library) {
  library.impl("correlation", TORCH_BOX(&correlation));
  library.impl("correlation_backward", TORCH_BOX(&correlation_backward));
}

}  // namespace semimatch
