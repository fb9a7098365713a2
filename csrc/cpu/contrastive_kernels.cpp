// Loops of `masked_contrastive_loss` on the CPU. Compiled once for each instruction set, with SEMIMATCH_CPU naming it;
// no function of this file may be seen by another translation unit under a name without that.
#include "contrastive_kernels.h"

#include <type_traits>

#include "vec.h"

namespace semimatch {
namespace SEMIMATCH_CPU {
namespace {

template <class T>
struct Loops : CpuContrastive<T> {
  using V = typename Element<T>::V;
  using VIndex = typename Number<V>::Index;
  using typename CpuContrastive<T>::A;
  using typename CpuContrastive<T>::Index;
  using typename CpuContrastive<T>::Job;
  static constexpr int kLanes = SEMIMATCH_CPU::kLanes<T>;

  // Vectors that are added to a mass at a time: their exponentials are as many, and one to refer the rest to their top.
  static constexpr int kBlock = 16;
  // Rows that share the loads of what their columns need.
  static constexpr int kRows = 4;

  static SEMIMATCH_FN A entry(const Job& job, int64_t b, int64_t row, int64_t col) {
    return load<false>(job.corr.at(b, row, col), 0, 1)[0];
  }

  // The results of one cell; entry_at(s) is entry s of its column, of which there are n.
  template <class EntryAt>
  static SEMIMATCH_FN void finish(const Job& job, int64_t cell, int64_t i, int64_t n, Mass<A> s, EntryAt entry_at) {
    const int64_t label = job.labels[cell];
    if (label < 0) {
      job.loss[i] = job.logsumexp[i] = A(0);
      return;
    }
    settle(s, n, entry_at);
    const int64_t nearest = label < n ? label : n - 1;
    A positive = A(0), below_top = A(0);
    if (job.smoothing.on()) {
      for_goal<A>(job.smoothing, nearest, 0, n, entry_at, [&](int64_t at, A q) __attribute__((always_inline)) {
        const A c = entry_at(at);
        positive += q * c;
        below_top += q * (c - s.top);
      });
      if (entry_at(nearest) == A(-INFINITY)) positive -= A(INFINITY);  // whatever its neighbours
    } else {
      positive = entry_at(nearest);
      below_top = positive - s.top;
    }
    A loss = loss_of(s, positive, below_top, job.inverse_temperature);
    if (label >= n) loss = A(NAN);  // must not pass as a number
    job.loss[i] = job.weight ? loss * job.weight[i] : loss;
    job.logsumexp[i] = logsumexp_of(s, job.inverse_temperature);
  }

  // The mass of a row from those of its lanes, combined by halves.
  static SEMIMATCH_FN Mass<A> over_lanes(Mass<V> s, A scale) {
    const A top = largest_lane(s.top);
    raise_top(s, V{} + top, scale);
    return {top, sum_of_lanes(s.mass)};
  }

  static void rows(const Job& job, int64_t b, int64_t r0, int64_t r1) {
    const auto& corr = job.corr;
    const int64_t whole = corr.cols / kLanes;
    const int rest = int(corr.cols - whole * kLanes);
    for (int64_t r = r0; r < r1; ++r) {
      const auto entry_at = [&](int64_t at) __attribute__((always_inline)) { return entry(job, b, r, at); };
      Mass<V> s = no_mass<V>();
      if (job.labels[b * job.step + r] >= 0) {
        V c[kBlock];
        for (int64_t g = 0; g < whole; g += kBlock) {
          const int n = int(whole - g < kBlock ? whole - g : kBlock);
          const T* from = corr.at(b, r, g * kLanes);
          if (corr.stride_col == 1) {
            for (int i = 0; i < n; ++i) c[i] = load<true>(from + i * kLanes, 1, kLanes);
          } else {
            for (int i = 0; i < n; ++i)
              c[i] = load<false>(from + i * kLanes * corr.stride_col, corr.stride_col, kLanes);
          }
          if (n == kBlock) {
            add<kBlock>(s, c, n, job.scale);
          } else {
            add<0>(s, c, n, job.scale);
          }
        }
        if (rest > 0) {
          c[0] = load<false>(corr.at(b, r, whole * kLanes), corr.stride_col, rest);
          add<1>(s, c, 1, job.scale);
        }
      }
      finish(job, b * job.step + r, b * corr.rows + r, corr.cols, over_lanes(s, job.scale), entry_at);
    }
  }

  static void columns(const Job& job, int64_t b, int64_t g0, int64_t g1, void* memory) {
    const auto& corr = job.corr;
    Mass<V>* stats = static_cast<Mass<V>*>(memory);
    for (int64_t g = g0; g < g1; ++g) stats[g - g0] = no_mass<V>();
    const uint8_t* counts = job.counts + b * (job.step / kLanes);
    const int64_t whole = corr.stride_col == 1 ? corr.cols / kLanes : 0;
    for (int64_t r = 0; r < corr.rows; r += kBlock) {
      const int n = int(corr.rows - r < kBlock ? corr.rows - r : kBlock);
      for (int64_t g = g0; g < g1; ++g) {
        if (!counts[g]) continue;
        const T* from = corr.at(b, r, g * kLanes);
        V c[kBlock];
        if (g < whole && n == kBlock) {
          for (int i = 0; i < kBlock; ++i) c[i] = load<true>(from + i * corr.stride_row, 1, kLanes);
          add<kBlock>(stats[g - g0], c, n, job.scale);
        } else {
          const int lanes = width(job, g);
          for (int i = 0; i < n; ++i) c[i] = load<false>(from + i * corr.stride_row, corr.stride_col, lanes);
          add<0>(stats[g - g0], c, n, job.scale);
        }
      }
    }
    for (int64_t g = g0; g < g1; ++g) {
      for (int i = 0; i < width(job, g); ++i) {
        const int64_t col = g * kLanes + i;
        const auto entry_at = [&](int64_t at) __attribute__((always_inline)) { return entry(job, b, at, col); };
        const Mass<A> lane = {stats[g - g0].top[i], stats[g - g0].mass[i]};
        finish(job, b * job.step + col, b * corr.cols + col, corr.rows, lane, entry_at);
      }
    }
  }

  static SEMIMATCH_FN int width(const Job& job, int64_t group) {
    const int64_t left = job.corr.cols - group * kLanes;
    return left < kLanes ? int(left) : kLanes;
  }

  template <class Lanes, class Scalar>
  static SEMIMATCH_FN Lanes load_lanes(const Scalar* from) {
    Lanes v;
    std::memcpy(&v, from, sizeof(v));
    return v;
  }

  // What is taken off the entries of a smoothed goal, once the gradient of their row or column is written: those of the
  // cell's entries from `first` to before `last`. grad_at(s) is the place of the gradient of entry s.
  template <class EntryAt, class GradAt>
  static SEMIMATCH_FN void subtract_goal(const Job& job, int64_t cell, int64_t n, int64_t first, int64_t last,
                                         EntryAt entry_at, GradAt grad_at) {
    const int64_t label = job.labels[cell];
    if (label < 0 || label >= n) return;
    for_goal<A>(job.smoothing, label, first, last, entry_at, [&](int64_t at, A q) __attribute__((always_inline)) {
      const A p = probability<V>(V{} + entry_at(at), V{} + job.finite_logsumexp[cell], job.inverse_temperature)[0];
      store<false>(grad_at(at), V{} + job.factor[cell] * (p - q), 1);
    });
  }

  static void gradient_of_columns(const Job& job, int64_t b, int64_t r0, int64_t r1) {
    const auto& corr = job.corr;
    const int64_t groups = job.step / kLanes, whole = corr.stride_col == 1 ? corr.cols / kLanes : 0;
    const bool one_hot = !job.smoothing.on();
    // Rows [r, r + n) of group g.
    const auto gradient = [&](auto is_dense, int64_t r, int n, int64_t g) __attribute__((always_inline)) {
      constexpr bool kDense = decltype(is_dense)::value;
      const int lanes = kDense ? kLanes : width(job, g);
      const int64_t cell = b * job.step + g * kLanes;
      T* to = job.grad + (b * corr.rows + r) * corr.cols + g * kLanes;
      if (!job.counts[b * groups + g]) {
        for (int i = 0; i < n; ++i) store<kDense, T>(to + i * corr.cols, V{}, lanes);
        return;
      }
      const VIndex label = load_lanes<VIndex>(job.labels + cell);
      const VIndex hot = one_hot ? label : VIndex{} - 1;
      const V logsumexp = load_lanes<V>(job.finite_logsumexp + cell), factor = load_lanes<V>(job.factor + cell);
      for (int i = 0; i < n; ++i) {
        const V c = load<kDense>(corr.at(b, r + i, g * kLanes), corr.stride_col, lanes);
        const V p = probability(c, logsumexp, job.inverse_temperature);
        const V goal = hot == Number<V>::same(r + i) ? V{} + A(1) : V{};
        // Chosen, not multiplied by 0: what does not count may be NaN.
        store<kDense>(to + i * corr.cols, label >= 0 ? factor * (p - goal) : V{}, lanes);
      }
    };
    for (int64_t r = r0; r < r1; r += kRows) {
      const int n = int(r1 - r < kRows ? r1 - r : kRows);
      int64_t g = 0;
      if (n == kRows)
        for (; g < whole; ++g) gradient(std::true_type{}, r, kRows, g);
      for (; g < groups; ++g) gradient(std::false_type{}, r, n, g);
    }
    for (int64_t col = 0; !one_hot && col < corr.cols; ++col) {
      const auto entry_at = [&](int64_t at) __attribute__((always_inline)) { return entry(job, b, at, col); };
      const auto grad_at = [&](int64_t at) __attribute__((always_inline)) {
        return job.grad + (b * corr.rows + at) * corr.cols + col;
      };
      subtract_goal(job, b * job.step + col, corr.rows, r0, r1, entry_at, grad_at);
    }
  }

  static void gradient_of_rows(const Job& job, int64_t b, int64_t r0, int64_t r1) {
    const auto& corr = job.corr;
    const int64_t groups = (corr.cols + kLanes - 1) / kLanes, whole = corr.stride_col == 1 ? corr.cols / kLanes : 0;
    const VIndex lane = lane_numbers<V>();
    for (int64_t r = r0; r < r1; ++r) {
      const int64_t cell = b * job.step + r;
      T* to = job.grad + (b * corr.rows + r) * corr.cols;
      if (job.labels[cell] < 0) {
        std::memset(to, 0, corr.cols * sizeof(T));
        continue;
      }
      const V logsumexp = V{} + job.finite_logsumexp[cell], factor = V{} + job.factor[cell];
      const VIndex hot = job.smoothing.on() ? VIndex{} - 1 : Number<V>::same(job.labels[cell]);
      const auto gradient = [&](auto is_dense, int64_t g) __attribute__((always_inline)) {
        constexpr bool kDense = decltype(is_dense)::value;
        const int lanes = kDense ? kLanes : width(job, g);
        const V c = load<kDense>(corr.at(b, r, g * kLanes), corr.stride_col, lanes);
        const V p = probability(c, logsumexp, job.inverse_temperature);
        const V goal = hot == Number<V>::same(g * kLanes) + lane ? V{} + A(1) : V{};
        store<kDense>(to + g * kLanes, factor * (p - goal), lanes);
      };
      for (int64_t g = 0; g < whole; ++g) gradient(std::true_type{}, g);
      for (int64_t g = whole; g < groups; ++g) gradient(std::false_type{}, g);
      if (!job.smoothing.on()) continue;
      const auto entry_at = [&](int64_t at) __attribute__((always_inline)) { return entry(job, b, r, at); };
      const auto grad_at = [&](int64_t at) __attribute__((always_inline)) { return to + at; };
      subtract_goal(job, cell, corr.cols, 0, corr.cols, entry_at, grad_at);
    }
  }
};

}  // namespace

template <class T>
typename CpuContrastive<T>::Kernels contrastive_kernels() {
  using L = Loops<T>;
  return {kLanes<T>, L::rows, L::columns, L::gradient_of_rows, L::gradient_of_columns};
}

template CpuContrastive<float>::Kernels contrastive_kernels<float>();
template CpuContrastive<double>::Kernels contrastive_kernels<double>();
template CpuContrastive<BFloat16>::Kernels contrastive_kernels<BFloat16>();
template CpuContrastive<Float16>::Kernels contrastive_kernels<Float16>();

}  // namespace SEMIMATCH_CPU
}  // namespace semimatch
