// Loops of `masked_contrastive_loss` on the CPU. Compiled once for each instruction set, with SEMIMATCH_CPU naming it;
// no function of this file may be seen by another translation unit under a name without that.
#include "contrastive_kernels.h"

#include <algorithm>
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
  static constexpr int kBlock = 32;
  // Masses that are added to side by side: one alone waits for its own results.
  static constexpr int kChains = 4;
  // Rows that share the loads of what their columns need.
  static constexpr int kRows = 4;

  static SEMIMATCH_FN A entry(const Job& job, int64_t b, int64_t row, int64_t col) {
    return load<false>(job.corr.at(b, row, col), 0, 1)[0];
  }

  // The results of one cell; entry_at(s) is entry s of its column, of which there are n. log_mass is that of s, unless
  // the mass has still to be settled.
  template <class EntryAt>
  static SEMIMATCH_FN void finish(const Job& job, int64_t cell, int64_t i, int64_t n, Mass<A> s, A log_mass,
                                  EntryAt entry_at) {
    const int64_t label = job.labels[cell];
    if (label < 0) {
      job.loss[i] = job.logsumexp[i] = A(0);
      return;
    }
    if (s.top == A(INFINITY)) {
      settle(s, n, entry_at);
      log_mass = std::log(s.mass);
    }
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
    A loss = loss_of(s, log_mass, positive, below_top, job.inverse_temperature);
    if (label >= n) loss = A(NAN);  // must not pass as a number
    job.loss[i] = job.weight ? loss * job.weight[i] : loss;
    job.logsumexp[i] = logsumexp_of(s, log_mass, job.inverse_temperature);
  }

  // The mass of a row from those of its lanes, combined by halves.
  static SEMIMATCH_FN Mass<A> over_lanes(Mass<V> s, A scale) {
    const A top = largest_lane(s.top);
    raise_top(s, V{} + top, scale);
    return {top, sum_of_lanes(s.mass)};
  }

  // Adds n vectors to each of the masses s[0 .. kCount): load(i, j) is the i-th of the j-th.
  template <int kCount, class Load>
  static SEMIMATCH_FN void add_vectors(Mass<V>* s, const Load& load, int n, A scale) {
    V top[kCount], mass[kCount];
    for (int j = 0; j < kCount; ++j) top[j] = s[j].top, mass[j] = V{};
    for (int i = 0; i < n; ++i) {
#pragma GCC unroll 8
      for (int j = 0; j < kCount; ++j) top[j] = Number<V>::larger(load(i, j), top[j]);
    }
    for (int j = 0; j < kCount; ++j) raise_top(s[j], top[j], scale);
    for (int i = 0; i < n; ++i) {
#pragma GCC unroll 8
      for (int j = 0; j < kCount; ++j) mass[j] += Number<V>::exp2(exponent(load(i, j), top[j], scale));
    }
    for (int j = 0; j < kCount; ++j) s[j].mass += mass[j];
  }

  static void rows(const Job& job, int64_t b, int64_t r0, int64_t r1) {
    const auto& corr = job.corr;
    const int64_t whole = corr.cols / kLanes, stride_col = corr.stride_col;
    const int rest = int(corr.cols - whole * kLanes);
    for (int64_t r = r0; r < r1; ++r) {
      const auto entry_at = [&](int64_t at) __attribute__((always_inline)) { return entry(job, b, r, at); };
      // A row is shared out among the chains, whose masses are merged.
      Mass<V> s[kChains];
      for (int j = 0; j < kChains; ++j) s[j] = no_mass<V>();
      if (job.labels[b * job.step + r] >= 0) {
        const int64_t each = whole / kChains;
        for (int64_t g = 0; g < each; g += kBlock) {
          const int n = int(each - g < kBlock ? each - g : kBlock);
          const T* from = corr.at(b, r, g * kLanes);
          if (stride_col == 1) {
            const auto load_dense = [&](int i, int j) __attribute__((always_inline)) {
              return load<true>(from + (j * each + i) * kLanes, 1, kLanes);
            };
            add_vectors<kChains>(s, load_dense, n, job.scale);
          } else {
            const auto load_any = [&](int i, int j) __attribute__((always_inline)) {
              return load<false>(from + (j * each + i) * kLanes * stride_col, stride_col, kLanes);
            };
            add_vectors<kChains>(s, load_any, n, job.scale);
          }
        }
        for (int64_t g = each * kChains; g < whole + (rest > 0); ++g) {
          const auto load_one = [&](int, int) __attribute__((always_inline)) {
            return load<false>(corr.at(b, r, g * kLanes), stride_col, g < whole ? kLanes : rest);
          };
          add_vectors<1>(s, load_one, 1, job.scale);
        }
        for (int j = 1; j < kChains; ++j) merge(s[0], s[j], job.scale);
      }
      const Mass<A> one = over_lanes(s[0], job.scale);
      finish(job, b * job.step + r, b * corr.rows + r, corr.cols, one, std::log(one.mass), entry_at);
    }
  }

  static void columns(const Job& job, int64_t b, int64_t g0, int64_t g1, void* memory) {
    const auto& corr = job.corr;
    Mass<V>* stats = static_cast<Mass<V>*>(memory);
    for (int64_t g = g0; g < g1; ++g) stats[g - g0] = no_mass<V>();
    const uint8_t* counts = job.counts + b * (job.step / kLanes);
    const int64_t stride_row = corr.stride_row, stride_col = corr.stride_col;
    const int64_t whole = stride_col == 1 ? std::min(corr.cols / kLanes, g1) : g0;
    for (int64_t r = 0; r < corr.rows; r += kBlock) {
      const int n = int(corr.rows - r < kBlock ? corr.rows - r : kBlock);
      const auto dense = [&](auto chains, int64_t g) __attribute__((always_inline)) {
        constexpr int kCount = decltype(chains)::value;
        if (std::none_of(counts + g, counts + g + kCount, [](uint8_t any) { return any != 0; })) return;
        const T* from = corr.at(b, r, g * kLanes);
        const auto load_dense = [&](int i, int j) __attribute__((always_inline)) {
          return load<true>(from + i * stride_row + j * kLanes, 1, kLanes);
        };
        add_vectors<kCount>(stats + (g - g0), load_dense, n, job.scale);
      };
      int64_t g = g0;
      for (; g + kChains <= whole; g += kChains) dense(std::integral_constant<int, kChains>(), g);
      for (; g < whole; ++g) dense(std::integral_constant<int, 1>(), g);
      for (; g < g1; ++g) {
        if (!counts[g]) continue;
        const T* from = corr.at(b, r, g * kLanes);
        const int lanes = width(job, g);
        const auto load_any = [&](int i, int) __attribute__((always_inline)) {
          return load<false>(from + i * stride_row, stride_col, lanes);
        };
        add_vectors<1>(stats + (g - g0), load_any, n, job.scale);
      }
    }
    for (int64_t g = g0; g < g1; ++g) {
      const Mass<V> s = stats[g - g0];
      const V log_mass = Number<V>::log(s.mass);
      for (int i = 0; i < width(job, g); ++i) {
        const int64_t col = g * kLanes + i;
        const auto entry_at = [&](int64_t at) __attribute__((always_inline)) { return entry(job, b, at, col); };
        // Number::log is of masses above 0 alone; that of none is -inf.
        const A log = s.mass[i] == A(0) ? A(-INFINITY) : log_mass[i];
        finish(job, b * job.step + col, b * corr.cols + col, corr.rows, {s.top[i], s.mass[i]}, log, entry_at);
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
