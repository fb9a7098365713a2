// `correlation` on the CPU: a level at a time, features normalised once, their products by PyTorch's matrix product,
// a few rows at a time, finished where they lie.
#include <algorithm>
#include <cmath>
#include <optional>
#include <tuple>
#include <type_traits>
#include <vector>

#include "../correlation_ops.h"
#include "correlation_kernels.h"
#include "features.h"
#include "gemm.h"
#include "memory.h"

namespace semimatch {
namespace {

bool is_double(ScalarType type) { return type == ScalarType::Double; }

// In float64 throughout where the features or the result are.
Tensor widened(const Tensor& t, bool wide) {
  return wide && !is_double(t.scalar_type()) ? torch::stable::to(t, ScalarType::Double) : t;
}

constexpr int64_t kCells = 64;  // that are normalised at a time

// Rows of a product that are a task: each packs the other factor for itself, so they are many where there is enough to
// share out.
int64_t rows_of_task(int64_t batch, int64_t rows) {
  constexpr int64_t kFew = 64, kMany = 256;
  return std::clamp(ceil_div(batch * rows, kFew * torch::stable::get_num_threads()) * kFew, kFew, kMany);
}

// Memory that the levels of a call take in turn; it grows where one needs more.
class Work {
  Scratch::Afterwards afterwards_;
  std::optional<Scratch> memory_;
  int64_t bytes_ = 0;

 public:
  explicit Work(Scratch::Afterwards afterwards = Scratch::kKeep) : afterwards_(afterwards) {}

  template <class A>
  A* numbers(int64_t n) {
    if (const int64_t bytes = n * int64_t(sizeof(A)); !memory_ || bytes > bytes_) {
      memory_.reset();
      memory_.emplace(1, bytes_ = bytes, afterwards_);
    }
    return static_cast<A*>(memory_->at(0));
  }
};
struct Memory {
  Work src, trg, gradient, entries{Scratch::kGiveBack};  // of the size of a correlation in float32
};

// One side of a level: its features, and what they are once they are normalised, [batch, channels, step].
template <class T>
struct LevelSide {
  using A = typename CpuFeatures<T>::A;
  const FeaturesKernels<T> kernels = SEMIMATCH_BEST(features_kernels<T>());
  typename CpuFeatures<T>::Map map;
  int64_t batch, step;
  A* normalised;

  // Features are rounded to their dtype once they are normalised where the result has it too.
  LevelSide(const Tensor& features, double scale, const CorrelationArguments& a, Work& memory)
      : map(feature_map<T>(features, nullptr, normalizer_of<A>(a.normalize, a.eps, scale),
                           a.out_type == features.scalar_type())),
        batch(features.size(0)),
        step(ceil_div(map.cells, kernels.lanes) * kernels.lanes),
        normalised(memory.numbers<A>(size())) {
    for_pieces(batch, map.cells, kCells, [&](int64_t b, int64_t first, int64_t last) {
      kernels.channels_by_cells(map, b, first, last - first, of(b) + first, step);
    });
  }

  int64_t size() const { return batch * map.channels * step; }
  A* of(int64_t b) const { return normalised + b * map.channels * step; }

  // The gradient by the features; `sum` takes that by the normalised ones, size() numbers, of which add(b, c0, c1, to)
  // writes those of channels [c0, c1) of a batch element.
  template <class F>
  Tensor gradient(const Tensor& features, A* sum, const F& add) const {
    for_pieces(batch, map.channels, rows_of_task(batch, map.channels),
               [&](int64_t b, int64_t c0, int64_t c1) { add(b, c0, c1, sum + (b * map.channels + c0) * step); });
    const Tensor result = new_contiguous(features, new_large);
    for_pieces(batch, map.cells, kCells, [&](int64_t b, int64_t first, int64_t last) {
      kernels.gradient(map, b, first, last - first, {sum + b * map.channels * step + first, 1, step},
                       data_of<T>(result) + b * map.channels * map.cells);
    });
    return result;
  }
};

template <class T>
struct Level {
  using A = typename CpuFeatures<T>::A;
  LevelSide<T> src, trg;

  Level(const Tensor& s, const Tensor& t, const CorrelationArguments& a, Memory& memory)
      : src(s, a.scale == "none" ? 1 : 1 / std::sqrt(double(s.size(1))), a, memory.src),
        trg(t, a.scale == "channels" ? 1 / std::sqrt(double(s.size(1))) : 1, a, memory.trg) {}

  // Inner products of source cells [r0, r1) with all target cells, rows of trg.step: with those that pad them it is a
  // product of matrices even where there is one target cell.
  void rows(int64_t b, int64_t r0, int64_t r1, A* to) const {
    gemm<A>(r1 - r0, trg.step, src.map.channels, {src.of(b) + r0, 1, src.step}, {trg.of(b), trg.step, 1}, to, trg.step);
  }
};

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
void forward(const Level<T>& level, const CorrelationArguments& a, int64_t l, const Tensor& out) {
  using A = typename CpuFeatures<T>::A;
  const CorrelationKernels<O> kernels = SEMIMATCH_BEST(correlation_kernels<O>());
  const int64_t sources = out.size(2), targets = out.size(3), levels = out.size(1), step = level.trg.step;
  for_pieces(out.size(0), sources, rows_of_task(out.size(0), sources), [&](int64_t b, int64_t r0, int64_t r1) {
    O* const to = data_of<O>(out) + ((b * levels + l) * sources + r0) * targets;
    if constexpr (std::is_same_v<A, O>) {
      if (!a.epilogue.any() && step == targets) return level.rows(b, r0, r1, to);
    }
    const Scratch memory(r1 - r0, step * int64_t(sizeof(A)));
    A* const entries = static_cast<A*>(memory.at(0));
    level.rows(b, r0, r1, entries);
    kernels.write({entries, step, b, 0, targets}, r1 - r0, a.epilogue, to, targets);
  });
}

template <class T, class O>
std::tuple<Tensor, Tensor> backward(const Tensor& src, const Tensor& trg, const CorrelationArguments& a, int64_t l,
                                    const Tensor& grad, Memory& memory) {
  using A = typename CpuFeatures<T>::A;
  const Level<T> level(src, trg, a, memory);
  const Matrices<O> by_result = {data_of<const O>(grad) + l * grad.stride(1),
                                 grad.size(0),
                                 grad.size(2),
                                 grad.size(3),
                                 grad.stride(0),
                                 grad.stride(2),
                                 grad.stride(3)};
  // The gradient by the inner products: where there is nothing to be done to it, it is that by the result. Always in
  // rows, so that the layout is of no consequence for the order of sums.
  Matrices<A> entries;
  bool as_given = false;
  if constexpr (std::is_same_v<A, O>) {
    as_given = !a.epilogue.any() && by_result.stride_col == 1 && by_result.stride_row >= by_result.cols;
    entries = by_result;
  }
  if (!as_given) {
    const CorrelationKernels<O> kernels = SEMIMATCH_BEST(correlation_kernels<O>());
    const int64_t rows = by_result.rows, cols = by_result.cols, step = level.trg.step;
    A* const data = memory.entries.numbers<A>(by_result.batch * rows * step);
    entries = {data, by_result.batch, rows, cols, rows * step, step, 1};
    for_pieces(by_result.batch, rows, rows_of_task(by_result.batch, rows), [&](int64_t b, int64_t r0, int64_t r1) {
      A* const to = data + (b * rows + r0) * step;
      if (a.epilogue.any()) level.rows(b, r0, r1, to);
      Matrices<O> some = by_result;
      some.data += r0 * some.stride_row;
      some.rows = r1 - r0;
      kernels.gradient({to, step, b, 0, cols}, a.epilogue, some);
    });
  }
  const auto &s = level.src, &t = level.trg;
  A* const sum = memory.gradient.numbers<A>(std::max(s.size(), t.size()));
  const Tensor grad_trg = t.gradient(trg, sum, [&](int64_t b, int64_t c0, int64_t c1, A* to) {
    gemm<A>(c1 - c0, t.map.cells, s.map.cells, {s.of(b) + c0 * s.step, s.step, 1},
            {entries.at(b, 0, 0), entries.stride_row, entries.stride_col}, to, t.step);
  });
  const Tensor grad_src = s.gradient(src, sum, [&](int64_t b, int64_t c0, int64_t c1, A* to) {
    gemm<A>(c1 - c0, s.map.cells, t.map.cells, {t.of(b) + c0 * t.step, t.step, 1},
            {entries.at(b, 0, 0), entries.stride_col, entries.stride_row}, to, s.step);
  });
  return {grad_src, grad_trg};
}

Tensor correlation(Levels src, Levels trg, std::string normalize, double eps, std::string scale, bool relu,
                   int64_t power, ScalarType out_dtype) {
  const CorrelationArguments a = {normalize, eps, scale, {relu, power}, out_dtype};
  check_levels(src, trg, a);
  const bool wide = is_double(src[0].scalar_type()) || is_double(out_dtype);
  const int64_t levels = int64_t(src.size());
  const Tensor out = new_large_of(src[0], {src[0].size(0), levels, src[0].size(2), trg[0].size(2)},
                                  wide ? ScalarType::Double : out_dtype);
  Memory memory;
  for (int64_t l = 0; l < levels; ++l) {
    const Tensor s = widened(src[l], wide), t = widened(trg[l], wide);
    with_type(s, [&](auto type) {
      using T = decltype(type);
      const Level<T> level(s, t, a, memory);
      with_result_type<T>(out, [&](auto out_type) { forward<T, decltype(out_type)>(level, a, l, out); });
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
  Memory memory;
  for (int64_t l = 0; l < int64_t(src.size()); ++l) {
    const Tensor s = widened(src[l], wide), t = widened(trg[l], wide);
    std::tuple<Tensor, Tensor> grads;
    with_type(s, [&](auto type) {
      using T = decltype(type);
      with_result_type<T>(
          upstream, [&](auto out_type) { grads = backward<T, decltype(out_type)>(s, t, a, l, upstream, memory); });
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
