// Loops of `match` on the CPU. Compiled once for each instruction set, with SEMIMATCH_CPU naming it; no function of
// this file may be seen by another translation unit under a name without that.
#include "match_kernels.h"

#include <algorithm>
#include <type_traits>

#include "vec.h"

namespace semimatch {
namespace SEMIMATCH_CPU {
namespace {

template <class T>
struct Loops : CpuMatch<T> {
  using V = typename Element<T>::V;
  using typename CpuMatch<T>::A;
  using typename CpuMatch<T>::Job;
  using typename CpuMatch<T>::Positions;
  using CpuMatch<T>::kRows;
  static constexpr int kLanes = SEMIMATCH_CPU::kLanes<T>;

  // Chains of additions that run side by side: one alone waits for its own results.
  static constexpr int kChains = 4;

  // Step i of a walk down a column is row first + i, whose position is the same for all lanes.
  struct DownRows {
    int64_t first;
    const A *xs, *ys;
    SEMIMATCH_FN int64_t index(int i) const { return first + i; }
    SEMIMATCH_FN A x(int i) const { return xs[i]; }
    SEMIMATCH_FN A y(int i) const { return ys[i]; }
  };

  // Step i of a walk along a row is its i-th vector from column `first` on; the index is that of lane 0.
  struct AlongRow {
    int64_t first;
    const A *xs, *ys;
    SEMIMATCH_FN int64_t index(int i) const { return first + kLanes * i; }
    SEMIMATCH_FN V x(int i) const { return load_scalars(xs + kLanes * i); }
    SEMIMATCH_FN V y(int i) const { return load_scalars(ys + kLanes * i); }
  };

  static SEMIMATCH_FN V load_scalars(const A* from) {
    V v;
    std::memcpy(&v, from, sizeof(v));
    return v;
  }

  // Columns of a group.
  static SEMIMATCH_FN int width(const Job& job, int64_t group) {
    const int64_t left = job.cols - group * kLanes;
    return left < kLanes ? int(left) : kLanes;
  }

  struct Nothing {
    SEMIMATCH_FN void operator()(int, int) const {}
  };

  // Adds n <= kRows steps of `at` to each of the chains s[0 .. kCount): one sweep for the largest entries, one for the
  // sums, which are taken by themselves before they join the rest: two short chains of additions round less than a long
  // one. load(i, j) is step i of chain j; ahead(i, j) may fetch what comes after it.
  template <int kCount, class Load, class At, class Ahead = Nothing>
  static SEMIMATCH_FN void add_steps(Stats<V>* s, const Load& load, int n, A scale, const At& at,
                                     const Ahead& ahead = {}) {
    V top[kCount];
    typename Number<V>::Index index[kCount];
    for (int j = 0; j < kCount; ++j) top[j] = s[j].top, index[j] = s[j].index;
    for (int i = 0; i < n; ++i) {
#pragma GCC unroll 8
      for (int j = 0; j < kCount; ++j) {
        const V c = load(i, j);
        ahead(i, j);
        index[j] = c > top[j] ? Number<V>::same(at.index(i)) : index[j];
        top[j] = Number<V>::larger(c, top[j]);
      }
    }
    V mass[kCount], x[kCount], y[kCount], t[kCount];
    for (int j = 0; j < kCount; ++j) {
      raise_top(s[j], top[j], scale);
      s[j].index = index[j];
      mass[j] = x[j] = y[j] = t[j] = V{};
    }
    for (int i = 0; i < n; ++i) {
#pragma GCC unroll 8
      for (int j = 0; j < kCount; ++j) {
        const V exponent_i = exponent(load(i, j), top[j], scale);
        const V e = Number<V>::exp2(exponent_i);
        mass[j] += e;
        x[j] += e * at.x(i);
        y[j] += e * at.y(i);
        t[j] += e * exponent_i;
      }
    }
    for (int j = 0; j < kCount; ++j) s[j].mass += mass[j], s[j].x += x[j], s[j].y += y[j], s[j].t += t[j];
  }

  // Statistics of a row from those of its lanes. A lane's index is that of its vector's first column.
  static SEMIMATCH_FN Stats<A> over_lanes(Stats<V> s, A scale) {
    const A top = largest_lane(s.top);
    // A lane without the largest entry has no say in the index. The lowest one wins.
    const auto candidates = s.top == top ? s.index + lane_numbers<V>() : Number<V>::same(INT32_MAX);
    raise_top(s, V{} + top, scale);
    return {lowest_lane(candidates), top, sum_of_lanes(s.mass), sum_of_lanes(s.x), sum_of_lanes(s.y),
            sum_of_lanes(s.t)};
  }

  // Writes the results of the first n lanes, cells next to each other.
  static SEMIMATCH_FN void write(const Stats<V>& s, int64_t cell, int n, const Side<A>& side, A inverse_temperature) {
    const Finished<V> f = finished(s, side.grid, inverse_temperature);
    const Results<A>& out = side.results;
    if (n == kLanes) {
      std::memcpy(out.score + cell, &f.score, sizeof(V));
      std::memcpy(out.entropy + cell, &f.entropy, sizeof(V));
      std::memcpy(out.logsumexp + cell, &f.logsumexp, sizeof(V));
    } else {
      std::memcpy(out.score + cell, &f.score, n * sizeof(A));
      std::memcpy(out.entropy + cell, &f.entropy, n * sizeof(A));
      std::memcpy(out.logsumexp + cell, &f.logsumexp, n * sizeof(A));
    }
    for (int i = 0; i < n; ++i) {
      out.coords[2 * (cell + i)] = f.x[i];
      out.coords[2 * (cell + i) + 1] = f.y[i];
      out.index[cell + i] = s.index[i];
    }
  }

  // The statistics of one cell, or what its slope follows from, as lane i of those of several.
  static SEMIMATCH_FN void put(const Stats<A>& one, int i, Stats<V>& s) {
    s.index[i] = one.index, s.top[i] = one.top, s.mass[i] = one.mass, s.x[i] = one.x, s.y[i] = one.y, s.t[i] = one.t;
  }
  static SEMIMATCH_FN void put(const Saved<A>& one, int i, Saved<V>& s) {
    s.index[i] = one.index, s.top[i] = one.top, s.x[i] = one.x, s.y[i] = one.y, s.score[i] = one.score;
    s.entropy[i] = one.entropy, s.grad_x[i] = one.grad_x, s.grad_y[i] = one.grad_y, s.grad_score[i] = one.grad_score;
    s.grad_entropy[i] = one.grad_entropy, s.grad_logsumexp[i] = one.grad_logsumexp;
  }

  // Statistics of rows [r, r + kCount), as lanes of `all` from `lane` on.
  template <int kCount>
  static SEMIMATCH_FN void some_rows(const Job& job, const Positions& at, int64_t b, int64_t r, int lane,
                                     Stats<V>& all) {
    Stats<V> s[kCount];
    for (int j = 0; j < kCount; ++j) s[j] = no_stats<V>();
    const int64_t whole = job.cols / kLanes, stride_row = job.stride_row, stride_col = job.stride_col;
    for (int64_t g = 0; g < whole; g += kRows) {
      const int n = int(whole - g < kRows ? whole - g : kRows);
      const AlongRow walk = {g * kLanes, at.col_x + g * kLanes, at.col_y + g * kLanes};
      const T* from = job.at(b, r, g * kLanes);
      if (stride_col == 1) {
        const auto load_dense = [&](int i, int j) __attribute__((always_inline)) {
          return load<true>(from + j * stride_row + i * kLanes, 1, kLanes);
        };
        add_steps<kCount>(s, load_dense, n, job.scale, walk);
      } else {
        const auto load_any = [&](int i, int j) __attribute__((always_inline)) {
          return load<false>(from + j * stride_row + i * kLanes * stride_col, stride_col, kLanes);
        };
        add_steps<kCount>(s, load_any, n, job.scale, walk);
      }
    }
    if (const int rest = int(job.cols - whole * kLanes)) {
      const AlongRow walk = {whole * kLanes, at.col_x + whole * kLanes, at.col_y + whole * kLanes};
      const T* from = job.at(b, r, whole * kLanes);
      const auto load_rest = [&](int, int j) __attribute__((always_inline)) {
        return load<false>(from + j * stride_row, stride_col, rest);
      };
      add_steps<kCount>(s, load_rest, 1, job.scale, walk);
    }
    for (int j = 0; j < kCount; ++j) put(over_lanes(s[j], job.scale), lane + j, all);
  }

  static void rows(const Job& job, const Positions& at, int64_t b, int64_t r0, int64_t r1) {
    for (int64_t r = r0; r < r1; r += kLanes) {
      const int n = int(r1 - r < kLanes ? r1 - r : kLanes);
      Stats<V> all = no_stats<V>();
      int i = 0;
      for (; i + kChains <= n; i += kChains) some_rows<kChains>(job, at, b, r + i, i, all);
      for (; i < n; ++i) some_rows<1>(job, at, b, r + i, i, all);
      write(all, b * job.rows + r, n, job.per_row, job.inverse_temperature);
    }
  }

  static void columns(const Job& job, const Positions& at, int64_t b, int64_t r0, int64_t r1, int64_t g0, int64_t g1,
                      void* out) {
    Stats<V>* const stats = static_cast<Stats<V>*>(out);
    for (int64_t g = g0; g < g1; ++g) stats[g - g0] = no_stats<V>();
    const int64_t stride_row = job.stride_row, stride_col = job.stride_col;
    const int64_t whole = stride_col == 1 ? std::min(job.cols / kLanes, g1) : g0;
    for (int64_t r = r0; r < r1; r += kRows) {
      const int n = int(r1 - r < kRows ? r1 - r : kRows);
      const DownRows walk = {r, at.row_x + r, at.row_y + r};
      const auto dense = [&](auto chains, int64_t group) __attribute__((always_inline)) {
        const T* from = job.at(b, r, group * kLanes);
        const auto load_dense = [&](int i, int j) __attribute__((always_inline)) {
          return load<true>(from + i * stride_row + j * kLanes, 1, kLanes);
        };
        // The rows that come next lie far apart, which hardware does not foresee.
        const auto ahead = [&](int i, int j) __attribute__((always_inline)) {
          __builtin_prefetch(from + (i + kRows) * stride_row + j * kLanes, 0, 1);
        };
        add_steps<decltype(chains)::value>(stats + (group - g0), load_dense, n, job.scale, walk, ahead);
      };
      int64_t g = g0;
      for (; g + kChains <= whole; g += kChains) dense(std::integral_constant<int, kChains>(), g);
      for (; g < whole; ++g) dense(std::integral_constant<int, 1>(), g);
      for (; g < g1; ++g) {
        const T* from = job.at(b, r, g * kLanes);
        const int lanes = width(job, g);
        const auto load_any = [&](int i, int) __attribute__((always_inline)) {
          return load<false>(from + i * stride_row, stride_col, lanes);
        };
        add_steps<1>(stats + (g - g0), load_any, n, job.scale, walk);
      }
    }
  }

  static void finish_columns(const Job& job, int64_t b, int64_t g0, int64_t g1, const void* in, int64_t panels,
                             int64_t step) {
    const Stats<V>* stats = static_cast<const Stats<V>*>(in);
    for (int64_t g = g0; g < g1; ++g) {
      Stats<V> s = stats[g - g0];
      for (int64_t p = 1; p < panels; ++p) merge(s, stats[p * step + g - g0], job.scale);
      write(s, b * job.cols + g * kLanes, width(job, g), job.per_col, job.inverse_temperature);
    }
  }

  static SEMIMATCH_FN A entry(const Job& job, int64_t b, int64_t row, int64_t col) {
    return load<false>(job.at(b, row, col), 0, 1)[0];
  }

  static void column_slopes(const Job& job, int64_t b, int64_t g0, int64_t g1, void* out) {
    Slope<V>* slopes = static_cast<Slope<V>*>(out);
    const Side<A>& side = job.per_col;
    for (int64_t g = g0; g < g1; ++g) {
      Saved<V> saved = {};
      for (int i = 0; i < width(job, g); ++i) {
        const int64_t col = g * kLanes + i;
        const A top = entry(job, b, side.results.index[b * job.cols + col], col);
        put(saved_of(side.results, side.grads, b, col, job.cols, top), i, saved);
      }
      slopes[g - g0] = slope_of(saved, side.grid, job.inverse_temperature);
    }
  }

  static SEMIMATCH_FN Slope<V> same_in_all_lanes(const Slope<A>& s) {
    return {Number<V>::same(s.index),  V{} + s.top, V{} + s.weight, V{} + s.constant,
            V{} + s.constant_at_index, V{} + s.x,   V{} + s.y,      V{} + s.t};
  }

  // The gradient of rows [r, r + n) of group g.
  template <bool kDense, bool kPerCol, bool kPerRow>
  static SEMIMATCH_FN void gradient_of_group(const Job& job, const Positions& at, int64_t b, int64_t r, int n,
                                             int64_t g, int lanes, const Slope<V>* cols, const Slope<V>* rows) {
    const Slope<V> col = kPerCol ? cols[g] : Slope<V>{};
    const T* from = job.at(b, r, g * kLanes);
    T* to = job.grad + (b * job.rows + r) * job.cols + g * kLanes;
    const int64_t stride_row = job.stride_row, stride_col = job.stride_col, step = job.cols;
    const A scale = job.scale;
    const A *row_x = at.row_x + r, *row_y = at.row_y + r;
    for (int i = 0; i < n; ++i) {
      const V c = load<kDense>(from + i * stride_row, stride_col, lanes);
      V result = {};
      if constexpr (kPerCol) result += entry_gradient(c, col, r + i, row_x[i], row_y[i], scale);
      if constexpr (kPerRow) {
        const V x = load_scalars(at.col_x + g * kLanes), y = load_scalars(at.col_y + g * kLanes);
        // The lanes' own columns are first + 0, 1, ...: row.index has been lowered by as much.
        result += entry_gradient(c, rows[i], g * kLanes, x, y, scale);
      }
      store<kDense>(to + i * step, result, lanes);
    }
  }

  template <bool kPerCol, bool kPerRow>
  static void gradient_rows(const Job& job, const Positions& at, int64_t b, int64_t r0, int64_t r1,
                            const Slope<V>* slopes) {
    Slope<V> rows[kRows];
    for (int64_t r = r0; kPerRow && r < r1; ++r) {
      const Side<A>& side = job.per_row;
      const A top = entry(job, b, r, side.results.index[b * job.rows + r]);
      const Slope<A> one =
          slope_of(saved_of(side.results, side.grads, b, r, job.rows, top), side.grid, job.inverse_temperature);
      rows[r - r0] = same_in_all_lanes(one);
      rows[r - r0].index -= lane_numbers<V>();
    }
    // Rows that share the loads of the columns' slopes; few, since rows a power of two apart share places in the cache.
    constexpr int kFew = kPerCol ? 4 : 1;
    const int64_t whole = job.stride_col == 1 ? job.cols / kLanes : 0, groups = (job.cols + kLanes - 1) / kLanes;
    for (int64_t r = r0; r < r1; r += kFew) {
      const int n = int(r1 - r < kFew ? r1 - r : kFew);
      int64_t g = 0;
      for (; g < whole; ++g)
        gradient_of_group<true, kPerCol, kPerRow>(job, at, b, r, n, g, kLanes, slopes, rows + (r - r0));
      for (; g < groups; ++g)
        gradient_of_group<false, kPerCol, kPerRow>(job, at, b, r, n, g, width(job, g), slopes, rows + (r - r0));
    }
  }

  static void gradient(const Job& job, const Positions& at, int64_t b, int64_t r0, int64_t r1, const void* slopes) {
    const bool both = job.per_col.wanted && job.per_row.wanted;
    const auto run = both                 ? gradient_rows<true, true>
                     : job.per_col.wanted ? gradient_rows<true, false>
                                          : gradient_rows<false, true>;
    run(job, at, b, r0, r1, static_cast<const Slope<V>*>(slopes));
  }
};

}  // namespace

template <class T>
typename CpuMatch<T>::Kernels match_kernels() {
  using L = Loops<T>;
  return {kLanes<T>,
          sizeof(Stats<typename L::V>),
          sizeof(Slope<typename L::V>),
          L::rows,
          L::columns,
          L::finish_columns,
          L::column_slopes,
          L::gradient};
}

template CpuMatch<float>::Kernels match_kernels<float>();
template CpuMatch<double>::Kernels match_kernels<double>();
template CpuMatch<BFloat16>::Kernels match_kernels<BFloat16>();
template CpuMatch<Float16>::Kernels match_kernels<Float16>();

}  // namespace SEMIMATCH_CPU
}  // namespace semimatch
