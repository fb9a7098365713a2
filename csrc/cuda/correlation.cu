// `correlation` on CUDA, level by level: forward 3 launches, backward 6. Tiles of the product are those of
// features.cuh, finished where they lie and written once.
#include <cmath>
#include <tuple>
#include <vector>

#include "../correlation_ops.h"
#include "feature_gradient.cuh"

namespace semimatch {

// out: the first matrix [sources, targets] of this level; those of the batch are `stride` apart.
template <class T, class O>
__global__ void __launch_bounds__(kTileThreads, 1)
    correlation_tiles(Vectors<T> src, Vectors<T> trg, int64_t batch, Epilogue epilogue, O* out, int64_t stride) {
  const Tiling::Place at = product_tiling(batch, src.cells, trg.cells).place(blockIdx.x);
  SEMIMATCH_SHARED(tile, FeatureTile<Wide<T>>);
  SEMIMATCH_SHARED(stages, Stages<T>);
  SEMIMATCH_SHARED(there, There);
  form_tile<T>(tile, stages, there, src, trg, at.b, at.row, at.col);
  __syncthreads();
  const int col = threadIdx.x % kTile;
  if (at.col + col >= trg.cells) return;
  const int rows = static_cast<int>(src.cells - at.row < kTile ? src.cells - at.row : kTile);
  for (int row = threadIdx.x / kTile; row < rows; row += kTileThreads / kTile)
    out[at.b * stride + (at.row + row) * trg.cells + at.col + col] = narrow<O>(finished(tile[row][col], epilogue));
}

// The gradient by entries, for features_gradient: that by the result of a level, [batch, sources, targets] of any
// strides, taken back behind the epilogue.
template <class O>
struct CorrelationSlopes {
  using A = Wide<O>;
  struct Line {
    const O* grad;  // null: the target cell is not there
  };
  struct Place {};
  Matrices<O> grad;
  Epilogue epilogue;

  SEMIMATCH_FN bool needs_entries() const { return epilogue.any(); }
  SEMIMATCH_FN Line line(int64_t b, int64_t t) const { return {grad.at(b, 0, t)}; }
  SEMIMATCH_FN Line none() const { return {nullptr}; }
  SEMIMATCH_FN Place place(int64_t) const { return {}; }
  SEMIMATCH_FN A value(A c, const Line& line, int64_t s, Place) const {
    if (line.grad == nullptr || s >= grad.rows) return A(0);
    return finished_gradient(c, widen<A>(line.grad[s * grad.stride_row]), epilogue);
  }
};

namespace {

// What products of features of type `a` are formed in for a result of type `b`: the wider, as PyTorch has it.
ScalarType promoted(ScalarType a, ScalarType b) {
  if (a == b) return a;
  return a == ScalarType::Double || b == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// The type that kernels have the result in: double where products are; it is rounded afterwards.
ScalarType kernel_result(ScalarType products, ScalarType out) {
  return products == ScalarType::Double ? products : out;
}

// Calls f(T{}, O{}) for the element types of products and result.
template <class F>
void with_types(const Tensor& features, const Tensor& result, const F& f) {
  with_cuda_type(features, [&](auto type) {
    using T = decltype(type);
    if constexpr (std::is_same_v<T, float>) {
      switch (result.scalar_type()) {
        case ScalarType::Float: return f(type, float{});
        case ScalarType::Half: return f(type, __half{});
        case ScalarType::BFloat16: return f(type, __nv_bfloat16{});
        default: STD_TORCH_CHECK(false, "semimatch: out_dtype must be float32, float64, float16 or bfloat16");
      }
    } else {
      STD_TORCH_CHECK(result.scalar_type() == features.scalar_type(), "semimatch: products differ from their result");
      f(type, T{});
    }
  });
}

// Both sides of a level, of its products' type.
template <class T>
struct Sides {
  using A = Wide<T>;
  const FeatureSide<T> src, trg;

  Sides(const Tensor& s, const Tensor& t, const CorrelationArguments& a, bool gradient, const OnDevice& device)
      : src(s, {}, normalizer(a, s, a.scale != "none"), gradient, device),
        trg(t, {}, normalizer(a, t, a.scale == "channels"), gradient, device) {}

 private:
  static Normalizer<A> normalizer(const CorrelationArguments& a, const Tensor& features, bool divided) {
    return normalizer_of<A>(a.normalize, a.eps, divided ? 1 / std::sqrt(double(features.size(1))) : 1);
  }
};

Tensor correlation(Levels src, Levels trg, std::string normalize, double eps, std::string scale, bool relu,
                   int64_t power, ScalarType out_dtype) {
  const CorrelationArguments a = {normalize, eps, scale, {relu, power}, out_dtype};
  check_levels(src, trg, a);
  const ScalarType products = promoted(src[0].scalar_type(), out_dtype), type = kernel_result(products, out_dtype);
  const int64_t batch = src[0].size(0), levels = int64_t(src.size()), sources = src[0].size(2),
                targets = trg[0].size(2);
  const Tensor out = new_tensor(src[0], {batch, levels, sources, targets}, type);
  for (int64_t l = 0; l < levels && batch > 0; ++l) {
    const Tensor s = in_type(src[l], products), t = in_type(trg[l], products);
    with_types(s, out, [&](auto t_type, auto o_type) {
      using T = decltype(t_type);
      using O = decltype(o_type);
      const OnDevice device(s);
      const Sides<T> sides(s, t, a, false, device);
      launch("correlation_tiles", correlation_tiles<T, O>, product_geometry(batch, sources, targets), device.stream(),
             sides.src.vectors, sides.trg.vectors, batch, a.epilogue, data_of<O>(out) + l * sources * targets,
             levels * sources * targets);
    });
  }
  return in_type(out, out_dtype);
}

std::tuple<Levels, Levels> correlation_backward(Levels src, Levels trg, std::string normalize, double eps,
                                                std::string scale, bool relu, int64_t power, ScalarType out_dtype,
                                                Tensor grad) {
  const CorrelationArguments a = {normalize, eps, scale, {relu, power}, out_dtype};
  check_levels(src, trg, a);
  const ScalarType own = src[0].scalar_type(), products = promoted(own, out_dtype);
  const int64_t batch = src[0].size(0), levels = int64_t(src.size()), sources = src[0].size(2),
                targets = trg[0].size(2);
  STD_TORCH_CHECK(grad.scalar_type() == out_dtype && grad.dim() == 4 && grad.size(0) == batch &&
                      grad.size(1) == levels && grad.size(2) == sources && grad.size(3) == targets,
                  "semimatch: the gradient differs from the result in dtype or shape");
  const Tensor upstream = in_type(grad, kernel_result(products, out_dtype));
  Levels grads_src, grads_trg;
  for (int64_t l = 0; l < levels; ++l) {
    const Tensor s = in_type(src[l], products), t = in_type(trg[l], products);
    const Tensor grad_src = new_contiguous(s), grad_trg = new_contiguous(t);
    with_types(s, upstream, [&](auto t_type, auto o_type) {
      using T = decltype(t_type);
      using O = decltype(o_type);
      if (batch == 0) return;
      const OnDevice device(s);
      const Sides<T> sides(s, t, a, true, device);
      const Matrices<O> by_result = {data_of<const O>(upstream) + l * upstream.stride(1),
                                     batch,
                                     sources,
                                     targets,
                                     upstream.stride(0),
                                     upstream.stride(2),
                                     upstream.stride(3)};
      const CorrelationSlopes<O> slopes = {by_result, a.epilogue};
      gradient_of_side<true>(slopes, sides.src, sides.trg, grad_src, device);
      gradient_of_side<false>(slopes, sides.trg, sides.src, grad_trg, device);
    });
    grads_src.push_back(in_type(grad_src, own));
    grads_trg.push_back(in_type(grad_trg, own));
  }
  return {grads_src, grads_trg};
}

}  // namespace

SEMIMATCH_CUDA_IMPL(library) {
  library.impl("correlation", TORCH_BOX(&correlation));
  library.impl("correlation_backward", TORCH_BOX(&correlation_backward));
}

}  // namespace semimatch
