// Jobs of `masked_contrastive_loss` for the kernels of reduce.cuh. The cells that have a loss are the columns of the
// matrices, or with kPerRow their rows.
#pragma once

#include "reduce.cuh"

namespace semimatch {

// What a call says of each cell.
template <class A>
struct Goals {
  int64_t batch, cells, reduced;
  Cells<int64_t> labels;
  Cells<A> weight;  // null for 1
  Cells<bool> mask;
  Smoothing smoothing;  // its table lies in device memory
  A inverse_temperature, scale;

  SEMIMATCH_FN bool count(int64_t b, int64_t i) const {
    return labels.at(b, i) >= 0 && (mask.data == nullptr || mask.at(b, i));
  }
  SEMIMATCH_FN A weight_of(int64_t b, int64_t i) const { return weight.data == nullptr ? A(1) : weight.at(b, i); }
};

// The table of a Smoothing: one thread a distance.
__global__ void __launch_bounds__(kItemThreads, 1) smoothing_table(double* weights, int64_t n, double sigma) {
  const int64_t d = int64_t(blockIdx.x) * kItemThreads + threadIdx.x;
  if (d < n) weights[d] = exp(-(double(d) * double(d)) / (2 * sigma * sigma));
}

template <class T, bool kPerRow>
struct ContrastiveLosses {
  using A = Wide<T>;
  static constexpr bool kTwice = false;
  Entries<T, A> source;
  int64_t batch, rows, cols;
  Masses<A> first;
  Goals<A> goals;
  A *loss, *logsumexp;

  SEMIMATCH_FN bool wanted(int64_t b, int64_t cell) const { return goals.count(b, cell); }

  SEMIMATCH_FN void finish(int64_t b, int64_t cell, bool counts, Mass<A> s) const {
    const int64_t i = b * goals.cells + cell, n = goals.reduced;
    if (!counts) {
      loss[i] = logsumexp[i] = A(0);
      return;
    }
    const auto plane = source.plane(b);
    const auto entry_at = [&](int64_t at) { return kPerRow ? plane.at(cell, at) : plane.at(at, cell); };
    settle(s, n, entry_at);
    const int64_t label = goals.labels.at(b, cell), nearest = label < n ? label : n - 1;
    A positive = entry_at(nearest), below_top = positive - s.top;
    if (goals.smoothing.on()) {
      const bool excluded = positive == A(-INFINITY);
      positive = excluded ? positive : A(0);  // excluded: whatever its neighbours
      below_top = A(0);
      for_goal<A>(goals.smoothing, nearest, 0, n, entry_at, [&](int64_t at, A q) {
        const A c = entry_at(at);
        positive += q * c;
        below_top += q * (c - s.top);
      });
    }
    A value = loss_of(s, positive, below_top, goals.inverse_temperature);
    if (label >= n) value = A(NAN);  // must not pass as a number
    loss[i] = value * goals.weight_of(b, cell);
    logsumexp[i] = logsumexp_of(s, goals.inverse_temperature);
  }
};

// The number of cells that count, and the sum of the losses or their mean over those cells: one block, its threads
// share out the cells in a fixed order. `sum` null: the number alone.
constexpr int kTotalThreads = 1024;

template <class A>
__global__ void __launch_bounds__(kTotalThreads, 1)
    contrastive_total(Goals<A> goals, const A* losses, bool mean, A* sum, int64_t* count) {
  SEMIMATCH_SHARED(sums, double[kTotalThreads]);
  SEMIMATCH_SHARED(counts, int64_t[kTotalThreads]);
  const int t = threadIdx.x;
  double mine = 0;
  int64_t kept = 0;
  for (int64_t i = t; i < goals.batch * goals.cells; i += kTotalThreads) {
    if (!goals.count(i / goals.cells, i % goals.cells)) continue;
    ++kept;
    if (sum != nullptr) mine += double(losses[i]);
  }
  sums[t] = mine;
  counts[t] = kept;
  __syncthreads();
  for (int half = kTotalThreads / 2; half > 0; half /= 2) {
    if (t < half) {
      sums[t] += sums[t + half];
      counts[t] += counts[t + half];
    }
    __syncthreads();
  }
  if (t != 0) return;
  *count = counts[0];
  if (sum != nullptr) *sum = A(mean ? sums[0] / double(counts[0] > 0 ? counts[0] : 1) : sums[0]);
}

template <class T, bool kPerRow>
struct ContrastiveGradient {
  using A = Wide<T>;
  Entries<T, A> corr;
  int64_t batch, rows, cols;
  Goals<A> goals;
  Cells<A> logsumexp, grad;  // grad: the same number for all where the loss is reduced
  const int64_t* count;      // null: no mean was taken
  T* out;

  struct Nothing {};
  struct Goal {
    int64_t label;  // negative: the cell does not count
    A logsumexp, factor, total;
  };
  SEMIMATCH_FN Goal goal_at(int64_t b, int64_t cell) const {
    if (!goals.count(b, cell)) return {-1, A(0), A(0), A(0)};
    const int64_t label = goals.labels.at(b, cell), n = goals.reduced;
    A factor = grad.at(b, cell);
    if (count != nullptr) factor /= A(*count > 0 ? *count : 1);
    factor *= goals.weight_of(b, cell) * goals.inverse_temperature;
    if (label >= n) factor = A(NAN);
    A total = A(1);
    if (goals.smoothing.on()) {
      const auto entries = corr.plane(b);
      total = goal_total<A>(goals.smoothing, label < n ? label : n - 1,
                            [&](int64_t at) { return kPerRow ? entries.at(cell, at) : entries.at(at, cell); });
    }
    return {label, finite_logsumexp(logsumexp.at(b, cell)), factor, total};
  }
  SEMIMATCH_FN auto col_of(int64_t b, int64_t col) const {
    if constexpr (kPerRow) {
      return Nothing{};
    } else {
      return goal_at(b, col);
    }
  }
  SEMIMATCH_FN auto row_of(int64_t b, int64_t row) const {
    if constexpr (kPerRow) {
      return goal_at(b, row);
    } else {
      return Nothing{};
    }
  }
  SEMIMATCH_FN Plane<T, A> plane(int64_t b) const { return corr.plane(b); }

  SEMIMATCH_FN T gradient(A c, int64_t entry, const Goal& g) const {
    if (g.label < 0) return narrow<T>(A(0));  // not a product with 0: what does not count may be NaN
    const A p = probability(c, g.logsumexp, goals.inverse_temperature);
    const A q = goals.smoothing.on() ? goal_of(goals.smoothing, g.label, entry, c, g.total) : A(entry == g.label);
    return narrow<T>(g.factor * (p - q));
  }
  template <class Col, class Row>
  SEMIMATCH_FN T value(A c, int64_t row, int64_t col, const Col& of_col, const Row& of_row) const {
    if constexpr (kPerRow) {
      return gradient(c, col, of_row);
    } else {
      return gradient(c, row, of_col);
    }
  }
};

}  // namespace semimatch
