// The windowed `soft_argmax_features` on CUDA: forward 6 launches, backward 8. A sweep of tiles for the best cells, one
// for the sums round them; backward takes the latter again, and the gradient by features.
#include <string>
#include <tuple>
#include <vector>

#include "feature_gradient.cuh"
#include "feature_reduce.cuh"
#include "soft_argmax.cuh"

namespace semimatch {
namespace {

template <class A>
struct BestSources {
  Tops<A> reducer;
  int64_t cells;
  int64_t* index;

  SEMIMATCH_FN void finish(int64_t b, int64_t cell, Best<A> s) const { index[b * cells + cell] = s.index; }
};

template <class A>
struct WindowCoordinates {
  MomentsReducer<A> reducer;
  A* coords;

  SEMIMATCH_FN void finish(int64_t b, int64_t cell, Moments<A> s) const {
    reducer.w.coordinates(s, coords + 2 * (b * reducer.lines + cell));
  }
};

template <class A>
struct WindowLines {
  MomentsReducer<A> reducer;
  Strided<A> grad;
  A inverse_temperature;
  WindowSlope<A>* lines;

  SEMIMATCH_FN void finish(int64_t b, int64_t cell, Moments<A> s) const {
    lines[b * reducer.lines + cell] = reducer.slope(s, b, cell, grad, inverse_temperature);
  }
};

// The gradient by entries, for features_gradient.
template <class A>
struct WindowSlopes {
  using Line = WindowSlope<A>;
  struct Place {};
  Windowing<A> w;
  const Line* lines;  // [batch, targets]
  int64_t targets;

  SEMIMATCH_FN bool needs_entries() const { return true; }
  SEMIMATCH_FN Line line(int64_t b, int64_t t) const { return lines[b * targets + t]; }
  SEMIMATCH_FN Line none() const { return {}; }
  SEMIMATCH_FN Place place(int64_t) const { return {}; }
  SEMIMATCH_FN A value(A c, const Line& line, int64_t s, Place) const { return w.entry_gradient(c, int(s), line); }
};

// --- host ---

struct Arguments {
  Tensor src, trg;
  OptionalTensor source_mask, target_mask;
  WindowArguments window;
  std::string normalize;
  double eps;
};

template <class T>
struct Sides {
  using A = Wide<T>;
  const FeatureSide<T> src, trg;

  Sides(const Arguments& a, bool gradient, const OnDevice& device)
      : src(a.src, a.source_mask, normalizer_of<A>(a.normalize, a.eps), gradient, device),
        trg(a.trg, a.target_mask, normalizer_of<A>(a.normalize, a.eps), gradient, device) {}
};

template <class T>
void forward(const Arguments& a, const Tensor& coords, const Tensor& index) {
  using A = Wide<T>;
  const int64_t targets = a.trg.size(2);
  const Windowing<A> w = windowing_of<A>(a.window, a.src.size(2));
  if (a.src.size(0) == 0) return;
  const OnDevice device(a.src);
  const Sides<T> sides(a, false, device);
  const BestSources<A> best = {{}, targets, data_of<int64_t>(index)};
  reduce_sources(best, sides.src, sides.trg, a.src, device);
  const MomentsReducer<A> reducer = {w, data_of<const int64_t>(index), targets, 0, true};
  const WindowCoordinates<A> job = {reducer, data_of<A>(coords)};
  reduce_sources(job, sides.src, sides.trg, a.src, device);
}

template <class T>
void backward(const Arguments& a, const Tensor& index, const Tensor& grad, const Tensor& grad_src,
              const Tensor& grad_trg) {
  using A = Wide<T>;
  const int64_t batch = a.src.size(0), targets = a.trg.size(2);
  const Windowing<A> w = windowing_of<A>(a.window, a.src.size(2));
  const Strided<A> by_coords = coordinates_gradient<A>(grad, accumulate_type(a.src), batch, targets);
  if (batch == 0) return;
  const OnDevice device(a.src);
  const Sides<T> sides(a, true, device);
  Workspace memory(a.src, batch * targets * int64_t(sizeof(WindowSlope<A>)), 1);
  auto* const lines = memory.take<WindowSlope<A>>(batch * targets);
  const MomentsReducer<A> reducer = {w, data_of<const int64_t>(index), targets, 0, false};
  const WindowLines<A> job = {reducer, by_coords, A(1 / a.window.temperature), lines};
  reduce_sources(job, sides.src, sides.trg, a.src, device);
  const WindowSlopes<A> slopes = {w, lines, targets};
  gradient_of_side<true>(slopes, sides.src, sides.trg, grad_src, device);
  gradient_of_side<false>(slopes, sides.trg, sides.src, grad_trg, device);
}

std::tuple<Tensor, Tensor> soft_argmax_features(Tensor src, Tensor trg, OptionalTensor source_mask,
                                                OptionalTensor target_mask, std::vector<int64_t> grid,
                                                double temperature, std::string window, double width,
                                                std::string normalize, double eps) {
  check_features(src, trg);
  const int64_t batch = src.size(0), cells = trg.size(2);
  const Tensor coords = new_tensor(src, {batch, cells, 2}, accumulate_type(src));
  const Tensor index = new_tensor(src, {batch, cells}, ScalarType::Long);
  const WindowArguments of_window = {grid, temperature, window, width};
  const Arguments a = {src, trg, source_mask, target_mask, of_window, normalize, eps};
  with_cuda_type(src, [&](auto type) { forward<decltype(type)>(a, coords, index); });
  return {coords, index};
}

std::tuple<Tensor, Tensor> soft_argmax_features_backward(Tensor src, Tensor trg, OptionalTensor source_mask,
                                                         OptionalTensor target_mask, std::vector<int64_t> grid,
                                                         double temperature, std::string window, double width,
                                                         std::string normalize, double eps, Tensor, Tensor index,
                                                         Tensor grad) {
  check_features(src, trg);
  const Tensor grad_src = new_contiguous(src), grad_trg = new_contiguous(trg);
  const Tensor best = per_cell(index, src.size(0), trg.size(2), ScalarType::Long, "index");
  const WindowArguments of_window = {grid, temperature, window, width};
  const Arguments a = {src, trg, source_mask, target_mask, of_window, normalize, eps};
  with_cuda_type(src, [&](auto type) { backward<decltype(type)>(a, best, grad, grad_src, grad_trg); });
  return {grad_src, grad_trg};
}

}  // namespace

SEMIMATCH_CUDA_IMPL(library) {
  library.impl("soft_argmax_features", TORCH_BOX(&soft_argmax_features));
  library.impl("soft_argmax_features_backward", TORCH_BOX(&soft_argmax_features_backward));
}

}  // namespace semimatch
