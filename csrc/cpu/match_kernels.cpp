// Loops of `match` on the CPU. Compiled once for each instruction set, with SEMIMATCH_CPU naming it; no function of
// this file may be seen by another translation unit under a name without that.
#include "match_kernels.h"

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

  // Walks down a column from row `first`; x, y are the same for all lanes.
  struct DownRows {
    int64_t first;
    const A *xs, *ys;
    SEMIMATCH_FN int64_t index(int i) const { return first + i; }
    SEMIMATCH_FN A x() const { return *xs; }
    SEMIMATCH_FN A y() const { return *ys; }
    SEMIMATCH_FN void next() { ++xs, ++ys; }
  };

  // Walks along a row from column `first`, a vector at a time; the index is that of lane 0.
  struct AlongRow {
    int64_t first;
    const A *xs, *ys;
    SEMIMATCH_FN int64_t index(int i) const { return first + kLanes * i; }
    SEMIMATCH_FN V x() const { return load_scalars(xs); }
    SEMIMATCH_FN V y() const { return load_scalars(ys); }
    SEMIMATCH_FN void next() { xs += kLanes, ys += kLanes; }
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

  // Adds n vectors of `lanes` lanes each, `step` elements apart.
  template <class At>
  static SEMIMATCH_FN void add_vectors(Stats<V>& s, const Job& job, const T* from, int64_t step, int n, int lanes,
                                       At walk) {
    if (job.stride_col == 1 && lanes == kLanes) {
      const auto each = [&](int i) __attribute__((always_inline)) {
        __builtin_prefetch(from + i * step +
                           kLanes);  // the next group: rows far apart, which hardware does not foresee
        return load<true>(from + i * step, 1, lanes);
      };
      add<kRows>(s, each, n, job.scale, walk);
    } else {
      const auto each = [&](int i) __attribute__((always_inline)) {
        return load<false>(from + i * step, job.stride_col, lanes);
      };
      add<kRows>(s, each, n, job.scale, walk);
    }
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

  static void rows(const Job& job, const Positions& at, int64_t b, int64_t r0, int64_t r1) {
    for (int64_t r = r0; r < r1; ++r) {
      Stats<V> s = no_stats<V>();
      const int64_t whole = job.cols / kLanes;
      for (int64_t g = 0; g < whole; g += kRows) {
        const int n = int(whole - g < kRows ? whole - g : kRows);
        const AlongRow walk = {g * kLanes, at.col_x + g * kLanes, at.col_y + g * kLanes};
        add_vectors(s, job, job.at(b, r, g * kLanes), job.stride_col * kLanes, n, kLanes, walk);
      }
      if (const int rest = int(job.cols - whole * kLanes)) {
        const AlongRow walk = {whole * kLanes, at.col_x + whole * kLanes, at.col_y + whole * kLanes};
        add_vectors(s, job, job.at(b, r, whole * kLanes), 0, 1, rest, walk);
      }
      finish(over_lanes(s, job.scale), b * job.rows + r, job.per_row.grid, job.inverse_temperature,
             job.per_row.results);
    }
  }

  static void columns(const Job& job, const Positions& at, int64_t b, int64_t r0, int64_t r1, int64_t g0, int64_t g1,
                      void* out) {
    Stats<V>* stats = static_cast<Stats<V>*>(out);
    for (int64_t g = g0; g < g1; ++g) stats[g - g0] = no_stats<V>();
    for (int64_t r = r0; r < r1; r += kRows) {
      const int n = int(r1 - r < kRows ? r1 - r : kRows);
      for (int64_t g = g0; g < g1; ++g) {
        Stats<V> s = stats[g - g0];
        add_vectors(s, job, job.at(b, r, g * kLanes), job.stride_row, n, width(job, g),
                    DownRows{r, at.row_x + r, at.row_y + r});
        stats[g - g0] = s;
      }
    }
  }

  static void finish_columns(const Job& job, int64_t b, int64_t g0, int64_t g1, const void* in, int64_t panels,
                             int64_t step) {
    const Stats<V>* stats = static_cast<const Stats<V>*>(in);
    for (int64_t g = g0; g < g1; ++g) {
      Stats<V> s = stats[g - g0];
      for (int64_t p = 1; p < panels; ++p) merge(s, stats[p * step + g - g0], job.scale);
      for (int i = 0; i < width(job, g); ++i) {
        const Stats<A> lane = {s.index[i], s.top[i], s.mass[i], s.x[i], s.y[i], s.t[i]};
        finish(lane, b * job.cols + g * kLanes + i, job.per_col.grid, job.inverse_temperature, job.per_col.results);
      }
    }
  }

  static SEMIMATCH_FN A entry(const Job& job, int64_t b, int64_t row, int64_t col) {
    return load<false>(job.at(b, row, col), 0, 1)[0];
  }

  static void column_slopes(const Job& job, int64_t b, int64_t g0, int64_t g1, void* out) {
    Slope<V>* slopes = static_cast<Slope<V>*>(out);
    const Side<A>& side = job.per_col;
    for (int64_t g = g0; g < g1; ++g) {
      Slope<V> s = {};
      for (int i = 0; i < width(job, g); ++i) {
        const int64_t col = g * kLanes + i;
        const A top = entry(job, b, side.results.index[b * job.cols + col], col);
        const Slope<A> one =
            slope_of(side.results, side.grads, b, col, job.cols, top, side.grid, job.inverse_temperature);
        s.index[i] = one.index;
        s.top[i] = one.top;
        s.weight[i] = one.weight;
        s.constant[i] = one.constant;
        s.x[i] = one.x;
        s.y[i] = one.y;
        s.t[i] = one.t;
        s.constant_at_index[i] = one.constant_at_index;
      }
      slopes[g - g0] = s;
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
      const Slope<A> one = slope_of(side.results, side.grads, b, r, job.rows, top, side.grid, job.inverse_temperature);
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
