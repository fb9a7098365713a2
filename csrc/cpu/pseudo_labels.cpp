// `pseudo_labels` on the CPU: the statistics of `match` per target cell, the best cell per source cell, and what
// follows from them. The loop for entropies with eps is in pseudo_labels_kernels.cpp.
#include <algorithm>
#include <cmath>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "../consistency.h"
#include "dispatch.h"
#include "parts.h"
#include "pseudo_labels_kernels.h"
#include "work.h"

namespace semimatch {
namespace {

struct Arguments {
  Tensor corr;
  Grid source, target;
  double temperature, threshold, uncertainty;
  OptionalTensor src_box, trg_box;
  bool forward_backward;
  Consistency consistency;
  double entropy_eps;
  OptionalTensor cell, valid;
};

struct Outputs {
  Tensor labels, weight, mask, score, entropy;
};

// Boxes [B,4] in cells, rounded half to even; empty where there are none.
std::vector<Box> boxes_of(const OptionalTensor& boxes, int64_t batch) {
  std::vector<Box> result;
  if (!boxes) return result;
  const Tensor wide = per_cell(*boxes, batch, 4, ScalarType::Double, "a box");
  for (int64_t b = 0; b < batch; ++b) {
    const double* box = data_of<const double>(wide) + 4 * b;
    result.push_back({std::nearbyint(box[0]), std::nearbyint(box[1]), std::nearbyint(box[2]), std::nearbyint(box[3])});
  }
  return result;
}

// The statistics of every target cell, [B,T].
template <class T>
class Statistics {
  using A = typename Accumulate<T>::Type;
  const Arguments& a_;
  bool per_row_;  // the target cells are the rows of `matrices_`
  Matrices<T> matrices_;
  int64_t batch_, sources_, targets_;
  std::vector<A> coords_, logsumexp_;
  Tensor source_index_;

 public:
  std::vector<A> score, entropy;
  std::vector<int64_t> label;

  explicit Statistics(const Arguments& a)
      : a_(a),
        per_row_(transposed(a.corr)),
        matrices_(matrices_of<T>(a.corr)),
        batch_(a.corr.size(0)),
        sources_(a.corr.size(1)),
        targets_(a.corr.size(2)) {
    const int64_t n = batch_ * targets_;
    coords_.resize(2 * n);
    logsumexp_.resize(n);
    score.resize(n);
    entropy.resize(n);
    label.resize(n);
    if (a.forward_backward) source_index_ = new_tensor(a.corr, {batch_, sources_}, ScalarType::Long);
    take_match();
    if (a.entropy_eps != 0) take_entropy_with_eps();
    if (std::any_of(score.begin(), score.end(), [](A s) { return std::isnan(s); })) take_labels_with_nan();
  }

  // The best target cell of each source cell of a batch element; only for the forward-backward check.
  const int64_t* matches_of_sources(int64_t b) const {
    return a_.forward_backward ? data_of<const int64_t>(source_index_) + b * sources_ : nullptr;
  }

 private:
  void take_match() {
    const Matrices<T>& m = matrices_;
    MatchJob<T, A> job = {};
    job.data = m.data;
    job.batch = m.batch, job.rows = m.rows, job.cols = m.cols;
    job.stride_batch = m.stride_batch, job.stride_row = m.stride_row, job.stride_col = m.stride_col;
    job.inverse_temperature = A(1 / a_.temperature);
    job.scale = A(kLog2E / a_.temperature);
    Side<A>& side = per_row_ ? job.per_row : job.per_col;
    side.wanted = true;
    side.grid = a_.source;
    side.results = {coords_.data(), score.data(), entropy.data(), logsumexp_.data(), label.data()};
    if (!a_.forward_backward) {
      match_forward<T>(job);
    } else if (per_row_) {
      match_forward<T>(job);
      largest_entries<T>(a_.corr, source_index_, std::nullopt);
    } else {
      match_forward<T>(job, largest_of_rows<T>(a_.corr, source_index_));
    }
  }

  void take_entropy_with_eps() {
    const auto kernels = SEMIMATCH_BEST(pseudo_labels_kernels<T>());
    const int64_t groups = ceil_div(targets_, kernels.group), step = groups * kernels.group;
    std::vector<A> top(batch_ * step), scores(batch_ * step), entropies(batch_ * step);
    for (int64_t i = 0; i < batch_ * targets_; ++i) {
      const int64_t b = i / targets_, t = i % targets_, at = b * step + t;
      top[at] = per_row_ ? kernels.entry(matrices_, b, t, label[i]) : kernels.entry(matrices_, b, label[i], t);
      scores[at] = score[i];
    }
    const typename CpuPseudoLabels<T>::Job job = {
        matrices_, step, A(kLog2E / a_.temperature), A(a_.entropy_eps), top.data(), scores.data(), entropies.data()};
    if (per_row_) {
      for_pieces(batch_, targets_, rows_per_piece(sources_),
                 [&](int64_t b, int64_t r0, int64_t r1) { kernels.entropy_of_rows(job, b, r0, r1); });
    } else {
      for_pieces(batch_, groups, kNarrow / kernels.group,
                 [&](int64_t b, int64_t g0, int64_t g1) { kernels.entropy_of_columns(job, b, g0, g1); });
    }
    for (int64_t i = 0; i < batch_ * targets_; ++i) entropy[i] = entropies[i / targets_ * step + i % targets_];
  }

  // Labels as torch.argmax has them, which takes NaN for the largest.
  void take_labels_with_nan() {
    const Tensor index = new_tensor(a_.corr, {batch_, targets_}, ScalarType::Long);
    const Tensor sources = new_tensor(a_.corr, {batch_, sources_}, ScalarType::Long);
    largest_entries<T>(a_.corr, sources, index);
    std::copy_n(data_of<const int64_t>(index), batch_ * targets_, label.begin());
  }
};

template <class T>
void run(const Arguments& a, const Outputs& out) {
  using A = typename Accumulate<T>::Type;
  const int64_t batch = a.corr.size(0), targets = a.corr.size(2);
  const Statistics<T> stats(a);
  const std::vector<Box> src_box = boxes_of(a.src_box, batch), trg_box = boxes_of(a.trg_box, batch);
  Tensor cells, valid;
  if (a.cell) {
    cells = per_cell(*a.cell, batch, targets, ScalarType::Long, "cell");
    valid = per_cell(*a.valid, batch, targets, ScalarType::Bool, "valid");
    const int64_t* given = data_of<const int64_t>(cells);
    STD_TORCH_CHECK(std::all_of(given, given + batch * targets, [&](int64_t c) { return c >= 0 && c < targets; }),
                    "semimatch: cell must name target cells, 0 to ", targets - 1);
  }
  // Asked for here: a call into PyTorch for each number would cost more than the rest of the loop.
  const int64_t* const cell = a.cell ? data_of<const int64_t>(cells) : nullptr;
  const bool* const is_valid = a.cell ? data_of<const bool>(valid) : nullptr;
  int64_t* const labels = data_of<int64_t>(out.labels);
  bool* const mask = data_of<bool>(out.mask);
  A *const weight = data_of<A>(out.weight), *const score = data_of<A>(out.score),
           *const entropy = data_of<A>(out.entropy);
  for_pieces(batch, targets, kWide, [&](int64_t b, int64_t first, int64_t last) {
    const int64_t* matches = stats.matches_of_sources(b);
    for (int64_t i = b * targets + first; i < b * targets + last; ++i) {
      const int64_t t = cell != nullptr ? cell[i] : i - b * targets;
      const bool seen = cell == nullptr || is_valid[i];
      const int64_t at = b * targets + t, label = stats.label[at];
      // A cell with no admissible match has score 0, which a threshold of 0 would let pass.
      const bool teaches = seen && stats.score[at] > A(0) && stats.score[at] >= A(a.threshold) &&
                           (src_box.empty() || src_box[b].holds(label, a.source)) &&
                           (trg_box.empty() || trg_box[b].holds(t, a.target)) &&
                           (!a.forward_backward || consistent(a.consistency, t, label, matches));
      labels[i] = seen ? label : -1;
      weight[i] = std::exp(A(-a.uncertainty) * stats.entropy[at]);
      mask[i] = teaches;
      score[i] = stats.score[at];
      entropy[i] = stats.entropy[at];
    }
  });
}

Grid grid_of(const std::vector<int64_t>& grid, int64_t cells, const char* side) {
  STD_TORCH_CHECK(grid.size() == 2 && grid[0] >= 1 && grid[1] >= 1 && grid[0] * grid[1] == cells, "semimatch: the ",
                  side, " grid must be (H, W) with H * W = ", cells);
  return {int(grid[0]), int(grid[1])};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> pseudo_labels(
    Tensor corr, std::vector<int64_t> source_grid, std::vector<int64_t> target_grid, double temperature,
    double threshold, double uncertainty, OptionalTensor src_box, OptionalTensor trg_box, bool forward_backward,
    double alpha1, double alpha2, std::string sampling, double entropy_eps, OptionalTensor cell, OptionalTensor valid) {
  STD_TORCH_CHECK(corr.dim() == 3 && corr.size(1) > 0 && corr.size(2) > 0,
                  "semimatch: corr must be [B,S,T], not empty");
  STD_TORCH_CHECK(cell.has_value() == valid.has_value(), "semimatch: cell and valid go together");
  const Grid source = grid_of(source_grid, corr.size(1), "source"),
             target = grid_of(target_grid, corr.size(2), "target");
  const auto empty = [&](ScalarType type) { return new_tensor(corr, {corr.size(0), corr.size(2)}, type); };
  const ScalarType wide = accumulate_type(corr);
  const Outputs out = {empty(ScalarType::Long), empty(wide), empty(ScalarType::Bool), empty(wide), empty(wide)};
  const Arguments a = {corr,
                       source,
                       target,
                       temperature,
                       threshold,
                       uncertainty,
                       src_box,
                       trg_box,
                       forward_backward,
                       make_consistency(target, source, alpha1, alpha2, sampling == "bilinear"),
                       entropy_eps,
                       cell,
                       valid};
  if (corr.size(0) > 0) with_type(corr, [&](auto type) { run<decltype(type)>(a, out); });
  return {out.labels, out.weight, out.mask, out.score, out.entropy};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(semimatch_kernels, CPU, library) { library.impl("pseudo_labels", TORCH_BOX(&pseudo_labels)); }

}  // namespace semimatch
