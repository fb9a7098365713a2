// Jobs of `masked_contrastive_loss` for the kernels of reduce.cuh. The cells that have a loss are the columns of the
// matrices, or with kPerRow their rows.
#pragma once

#include "contrastive_goals.cuh"
#include "reduce.cuh"

namespace semimatch {

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
    const int64_t nearest = goals.nearest(b, cell);
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
    const A log_mass = std::log(s.mass);
    A value = loss_of(s, log_mass, positive, below_top, goals.inverse_temperature);
    if (goals.labels.at(b, cell) >= n) value = A(NAN);  // must not pass as a number
    loss[i] = value * goals.weight_of(b, cell);
    logsumexp[i] = logsumexp_of(s, log_mass, goals.inverse_temperature);
  }
};

template <class T, bool kPerRow>
struct ContrastiveGradient {
  using A = Wide<T>;
  Entries<T, A> corr;
  int64_t batch, rows, cols;
  Goals<A> goals;
  LossGradient<A> upstream;
  T* out;

  struct Nothing {};
  SEMIMATCH_FN Goal<A> goal_at(int64_t b, int64_t cell) const {
    const auto entries = corr.plane(b);
    return goals.goal_at(b, cell, upstream,
                         [&](int64_t at) { return kPerRow ? entries.at(cell, at) : entries.at(at, cell); });
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

  template <class Col, class Row>
  SEMIMATCH_FN T value(A c, int64_t row, int64_t col, const Col& of_col, const Row& of_row) const {
    if constexpr (kPerRow) {
      return narrow<T>(goals.entry_gradient(c, col, of_row));
    } else {
      return narrow<T>(goals.entry_gradient(c, row, of_col));
    }
  }
};

}  // namespace semimatch
