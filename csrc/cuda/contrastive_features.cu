// `masked_contrastive_loss_features` on CUDA: forward 6 launches, backward 8; one more where labels are smoothed. The
// cells that have a loss are the target cells, the columns of the tiles of features.cuh.
#include <string>
#include <tuple>

#include "contrastive_goals.cuh"
#include "feature_gradient.cuh"
#include "feature_reduce.cuh"

namespace semimatch {

// Whether each target cell counts: kept [batch, cells].
template <class A>
__global__ void __launch_bounds__(kItemThreads, 1) counted_cells(Goals<A> goals, bool* kept) {
  const int64_t i = int64_t(blockIdx.x) * kItemThreads + threadIdx.x;
  if (i < goals.batch * goals.cells) kept[i] = goals.count(i / goals.cells, i % goals.cells);
}

// The part of a target cell's column that has been read so far.
template <class A>
struct LossState {
  Mass<A> mass;
  A positive;      // the entry of the label, 0 until it came
  A goal, weight;  // of a smoothed label: sums of w c and of w, over what is not excluded
  A broken;        // NaN after a NaN, else 0: `mass` cannot tell it from +inf
};

template <class A>
struct LossReducer {
  using State = LossState<A>;
  struct Line {
    int64_t label;  // negative: the cell does not count
  };
  Goals<A> goals;

  SEMIMATCH_FN State none() const { return {no_mass<A>(), A(0), A(0), A(0), A(0)}; }
  SEMIMATCH_FN Line line(int64_t b, int64_t i) const { return {goals.count(b, i) ? goals.nearest(b, i) : -1}; }
  template <int n>
  SEMIMATCH_FN void add(State& s, const A* c, int64_t, Run run, Line of) const {
    if (of.label < 0) return;
    semimatch::add<n>(s.mass, c, n, goals.scale);
#pragma unroll
    for (int i = 0; i < n; ++i) {
      s.positive = run.index(i) == of.label ? c[i] : s.positive;
      s.broken = c[i] == c[i] ? s.broken : c[i];
    }
    if (!goals.smoothing.on()) return;
#pragma unroll
    for (int i = 0; i < n; ++i) {
      const A w = goal_of(goals.smoothing, of.label, run.index(i), c[i], A(1));
      if (w == A(0)) continue;  // has no say, even if it is not finite
      s.goal += w * c[i];
      s.weight += w;
    }
  }
  SEMIMATCH_FN void merge(State& s, const State& other) const {
    semimatch::merge(s.mass, other.mass, goals.scale);
    s.positive += other.positive;
    s.goal += other.goal;
    s.weight += other.weight;
    s.broken += other.broken;
  }
};

template <class A>
struct FeatureLosses {
  LossReducer<A> reducer;
  A *loss, *logsumexp;

  SEMIMATCH_FN void finish(int64_t b, int64_t cell, LossState<A> s) const {
    const Goals<A>& goals = reducer.goals;
    const int64_t i = b * goals.cells + cell;
    if (!goals.count(b, cell)) {
      loss[i] = logsumexp[i] = A(0);
      return;
    }
    if (s.mass.top == A(INFINITY)) s.mass.mass = A(1) + s.broken;
    A positive = s.positive;
    if (goals.smoothing.on() && positive != A(-INFINITY))  // excluded: whatever its neighbours
      positive = s.weight > A(0) ? s.goal / s.weight : A(0);
    const A log_mass = std::log(s.mass.mass);
    A value = loss_of(s.mass, log_mass, positive, positive - s.mass.top, goals.inverse_temperature);
    if (goals.labels.at(b, cell) >= goals.reduced) value = A(NAN);  // must not pass as a number
    loss[i] = value * goals.weight_of(b, cell);
    logsumexp[i] = logsumexp_of(s.mass, log_mass, goals.inverse_temperature);
  }
};

// The gradient by entries, for features_gradient. Which entries a smoothed label finds excluded is what the source mask
// says: an entry of -inf that features of infinite size make is still counted to the weights that its goal is divided
// by.
template <class A>
struct ContrastiveSlopes {
  using Line = Goal<A>;
  struct Place {};
  const Line* lines;  // [batch, targets]
  Goals<A> goals;

  SEMIMATCH_FN bool needs_entries() const { return true; }
  SEMIMATCH_FN Line line(int64_t b, int64_t t) const { return lines[b * goals.cells + t]; }
  SEMIMATCH_FN Line none() const { return no_goal<A>(); }
  SEMIMATCH_FN Place place(int64_t) const { return {}; }
  SEMIMATCH_FN A value(A c, const Line& line, int64_t s, Place) const { return goals.entry_gradient(c, s, line); }
};

template <class T>
__global__ void __launch_bounds__(kItemThreads, 1)
    contrastive_features_goals(Vectors<T> src, Goals<Wide<T>> goals, LossGradient<Wide<T>> upstream,
                               Goal<Wide<T>>* lines) {
  using A = Wide<T>;
  const int64_t i = int64_t(blockIdx.x) * kItemThreads + threadIdx.x;
  if (i >= goals.batch * goals.cells) return;
  const int64_t b = i / goals.cells;
  lines[i] =
      goals.goal_at(b, i % goals.cells, upstream, [&](int64_t s) { return src.valid(b, s) ? A(0) : A(-INFINITY); });
}

namespace {

struct Arguments {
  Tensor src, trg;
  LossArguments loss;
  OptionalTensor source_mask;
  std::string normalize;
  double eps;
};

template <class A>
Tensor counted(const Goals<A>& goals, const Tensor& like, const OnDevice& device) {
  const Tensor kept = new_tensor(like, {like.size(0), like.size(2)}, ScalarType::Bool);
  launch("counted_cells", counted_cells<A>, items_geometry(goals.batch * goals.cells), device.stream(), goals,
         data_of<bool>(kept));
  return kept;
}

// Both sides of a call. Target cells that do not count are not there.
template <class T>
struct Sides {
  using A = Wide<T>;
  const FeatureSide<T> src, trg;

  Sides(const Arguments& a, const Goals<A>& goals, bool gradient, const OnDevice& device)
      : src(a.src, a.source_mask, normalizer_of<A>(a.normalize, a.eps), gradient, device),
        trg(a.trg, counted(goals, a.trg, device), normalizer_of<A>(a.normalize, a.eps), gradient, device) {}
};

template <class T>
void cell_losses(const Arguments& a, const Goals<Wide<T>>& goals, const LossResults& results, const OnDevice& device) {
  using A = Wide<T>;
  if (goals.batch == 0) return;
  const Sides<T> sides(a, goals, false, device);
  const FeatureLosses<A> job = {{goals}, data_of<A>(results.losses), data_of<A>(results.logsumexp)};
  reduce_sources(job, sides.src, sides.trg, a.src, device);
}

template <class T>
void backward(const Arguments& a, const Tensor& logsumexp, const Tensor& count, const Tensor& grad,
              const Tensor& grad_src, const Tensor& grad_trg) {
  using A = Wide<T>;
  const OnDevice device(a.src);
  const GoalsOfCall<A> call(a.loss, a.trg, a.src.size(2), device);
  const Goals<A>& goals = call.goals;
  const auto upstream = loss_gradient_of<A>(a.loss, a.trg, logsumexp, count, grad);
  const int64_t cells = goals.batch * goals.cells;
  if (cells == 0) return;
  const Sides<T> sides(a, goals, true, device);
  Workspace memory(a.src, cells * int64_t(sizeof(Goal<A>)), 1);
  auto* const lines = memory.take<Goal<A>>(cells);
  launch("contrastive_features_goals", contrastive_features_goals<T>, items_geometry(cells), device.stream(),
         sides.src.vectors, goals, upstream, lines);
  const ContrastiveSlopes<A> slopes = {lines, goals};
  gradient_of_side<true>(slopes, sides.src, sides.trg, grad_src, device);
  gradient_of_side<false>(slopes, sides.trg, sides.src, grad_trg, device);
}

std::tuple<Tensor, Tensor, Tensor> masked_contrastive_loss_features(Tensor src, Tensor trg, Tensor labels,
                                                                    OptionalTensor weight, OptionalTensor mask,
                                                                    OptionalTensor source_mask, double temperature,
                                                                    std::string reduction, int64_t width, double sigma,
                                                                    int64_t radius, std::string normalize, double eps) {
  check_features(src, trg);
  const LossArguments loss = {labels, weight, mask, temperature, reduction, width, sigma, radius};
  const Arguments a = {src, trg, loss, source_mask, normalize, eps};
  const LossResults results(trg, reduction);
  with_cuda_type(src, [&](auto type) {
    using T = decltype(type);
    const OnDevice device(src);
    const GoalsOfCall<Wide<T>> call(loss, trg, src.size(2), device);
    cell_losses<T>(a, call.goals, results, device);
    results.total(call.goals, reduction, device);
  });
  return results.all();
}

std::tuple<Tensor, Tensor> masked_contrastive_loss_features_backward(Tensor src, Tensor trg, Tensor labels,
                                                                     OptionalTensor weight, OptionalTensor mask,
                                                                     OptionalTensor source_mask, double temperature,
                                                                     std::string reduction, int64_t width, double sigma,
                                                                     int64_t radius, std::string normalize, double eps,
                                                                     Tensor logsumexp, Tensor count, Tensor grad) {
  check_features(src, trg);
  const Tensor grad_src = new_contiguous(src), grad_trg = new_contiguous(trg);
  const LossArguments loss = {labels, weight, mask, temperature, reduction, width, sigma, radius};
  const Arguments a = {src, trg, loss, source_mask, normalize, eps};
  with_cuda_type(src, [&](auto type) { backward<decltype(type)>(a, logsumexp, count, grad, grad_src, grad_trg); });
  return {grad_src, grad_trg};
}

}  // namespace

SEMIMATCH_CUDA_IMPL(library) {
  library.impl("masked_contrastive_loss_features", TORCH_BOX(&masked_contrastive_loss_features));
  library.impl("masked_contrastive_loss_features_backward", TORCH_BOX(&masked_contrastive_loss_features_backward));
}

}  // namespace semimatch
