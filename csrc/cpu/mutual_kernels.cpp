// Loops of `mutual_filter` on the CPU. Compiled once for each instruction set, with SEMIMATCH_CPU naming it; no
// function of this file may be seen by another translation unit under a name without that.
#include "mutual_kernels.h"

#include <type_traits>

#include "tiles.h"

namespace semimatch {
namespace SEMIMATCH_CPU {
namespace {

template <class T>
struct Loops : CpuMutual<T> {
  using V = typename Element<T>::V;
  using VIndex = typename Number<V>::Index;
  using typename CpuMutual<T>::A;
  using typename CpuMutual<T>::Job;
  using typename CpuMutual<T>::Batch;
  static constexpr int kLanes = SEMIMATCH_CPU::kLanes<T>;

  static SEMIMATCH_FN Plane<T> plane(const Batch& m, int64_t b) {
    return {m.first.data + m.offsets[b], m.first.stride_row, m.first.stride_col};
  }
  static SEMIMATCH_FN A entry(const Plane<T>& m, int64_t row, int64_t col) {
    return load<false>(m.at(row, col), 0, 1)[0];
  }
  static SEMIMATCH_FN int64_t groups(const Job& job) { return job.step / kLanes; }
  static SEMIMATCH_FN int at_most_a_group(int64_t left) { return left < kLanes ? int(left) : kLanes; }
  static SEMIMATCH_FN V load_numbers(const A* from) {
    V v;
    std::memcpy(&v, from, sizeof(v));
    return v;
  }

  // The largest of a row from those of its lanes; a lane's index is that of its vector's first column.
  static SEMIMATCH_FN Best<A> over_lanes(const Best<V>& s, bool any_nan, int lanes) {
    if (!any_nan) {
      const A top = largest_lane(s.top);
      return {top, lowest_lane(s.top == top ? s.index + lane_numbers<V>() : Number<V>::same(INT32_MAX))};
    }
    Best<A> best = {s.top[0], s.index[0]};
    for (int i = 1; i < lanes; ++i) {
      const Best<A> lane = {s.top[i], typename Number<A>::Index(s.index[i] + i)};
      best = better(best, lane);
    }
    return best;
  }

  // Rows at a time where they are read as they lie in memory: few, in long runs. Whole tiles where they are transposed.
  static constexpr int kFew = 4;
  static SEMIMATCH_FN bool in_rows(const Batch& m) { return m.first.stride_row != 1 || m.first.stride_col == 1; }

  // Calls f(row, n) for blocks of n = kTall rows and then the rest, and f(g, lanes) for groups of columns likewise; the
  // number is a constant for all but the last.
  template <int kTall, class F>
  static SEMIMATCH_FN void for_blocks(int64_t r0, int64_t r1, const F& f) {
    int64_t r = r0;
    for (; r + kTall <= r1; r += kTall) f(r, std::integral_constant<int, kTall>{});
    if (r < r1) f(r, int(r1 - r));
  }
  template <class F>
  static SEMIMATCH_FN void for_groups(int64_t cols, const F& f) {
    int64_t g = 0;
    for (; (g + 1) * kLanes <= cols; ++g) f(g, std::integral_constant<int, kLanes>{});
    if (g * kLanes < cols) f(g, int(cols - g * kLanes));
  }

  // Rows [r, r + n), n <= kTall: the largest of each into `rows`, and what they add to `columns`. Whether there is a
  // NaN among them, which kOrdinary takes no notice of: then they are to be taken again.
  template <bool kOrdinary, int kTall, bool kColumns, class Rows>
  static SEMIMATCH_FN bool take_rows(const Plane<T>& corr, int64_t r, Rows n, int64_t cols, Best<V>* rows,
                                     Best<V>* columns) {
    const auto take_one = [](Best<V>& s, V c, VIndex index) __attribute__((always_inline)) {
      if constexpr (kOrdinary) {
        s.index = c > s.top ? index : s.index;
        s.top = Number<V>::larger(c, s.top);
      } else {
        take(s, c, index);
      }
    };
    VIndex nan = {};
    for (int i = 0; i < n; ++i) rows[i] = no_best<V>();
    for_groups(cols, [&](int64_t g, auto lanes) __attribute__((always_inline)) {
      V tile[kTall];
      load_tile<kTall>(corr, r, g * kLanes, n, lanes, tile);
      for (int i = 0; i < n; ++i) {
        nan |= tile[i] != tile[i];
        take_one(rows[i], tile[i], Number<V>::same(g * kLanes));
      }
      if constexpr (kColumns) {
        Best<V> column = columns[g];
        for (int i = 0; i < n; ++i) take_one(column, tile[i], Number<V>::same(r + i));
        columns[g] = column;
      }
    });
    return lowest_lane(nan) != 0;
  }

  template <int kTall, bool kColumns>
  static void maxima_of(const Job& job, int64_t b, int64_t r0, int64_t r1, Best<V>* columns) {
    const Plane<T> corr = plane(job.corr, b);
    const int64_t cols = job.corr.first.cols;
    for_blocks<kTall>(r0, r1, [&](int64_t r, auto n) __attribute__((always_inline)) {
      Best<V> rows[kTall];
      const bool any_nan = take_rows<true, kTall, kColumns>(corr, r, n, cols, rows, columns);
      if (any_nan) take_rows<false, kTall, kColumns>(corr, r, n, cols, rows, columns);
      for (int i = 0; i < n; ++i) {
        const Best<A> best = over_lanes(rows[i], any_nan, at_most_a_group(cols));
        job.row_top[b * job.corr.first.rows + r + i] = best.top;
        job.row_index[b * job.corr.first.rows + r + i] = best.index;
      }
    });
  }

  static void maxima(const Job& job, int64_t b, int64_t r0, int64_t r1, void* memory) {
    Best<V>* columns = static_cast<Best<V>*>(memory);
    for (int64_t g = 0; columns != nullptr && g < groups(job); ++g) columns[g] = no_best<V>();
    const bool few = in_rows(job.corr);
    const auto run = job.column_index != nullptr ? (few ? maxima_of<kFew, true> : maxima_of<kLanes, true>)
                                                 : (few ? maxima_of<kFew, false> : maxima_of<kLanes, false>);
    run(job, b, r0, r1, columns);
  }

  static void finish_columns(const Job& job, int64_t b, const void* memory, int64_t panels) {
    const Best<V>* parts = static_cast<const Best<V>*>(memory);
    const int64_t cols = job.corr.first.cols;
    for (int64_t g = 0; g < groups(job); ++g) {
      Best<V> s = parts[g];
      for (int64_t p = 1; p < panels; ++p) take(s, parts[p * groups(job) + g].top, parts[p * groups(job) + g].index);
      for (int i = 0; i < at_most_a_group(cols - g * kLanes); ++i) {
        job.column_top[b * cols + g * kLanes + i] = s.top[i];
        job.column_index[b * cols + g * kLanes + i] = s.index[i];
      }
    }
  }

  static void look_up(const Job& job, int64_t b) {
    const Plane<T> corr = plane(job.corr, b);
    const int64_t rows = job.corr.first.rows, cols = job.corr.first.cols;
    for (int64_t i = b * rows; i < (b + 1) * rows; ++i) job.row_top[i] = entry(corr, i - b * rows, job.row_index[i]);
    for (int64_t i = b * cols; i < (b + 1) * cols; ++i)
      job.column_top[i] = entry(corr, job.column_index[i], i - b * cols);
  }

  static SEMIMATCH_FN void store_row(const Job& job, int64_t b, int64_t row, int64_t col, V v, int lanes) {
    T* to = job.out + (b * job.corr.first.rows + row) * job.corr.first.cols + col;
    if (lanes == kLanes) {
      store<true>(to, v, kLanes);
    } else {
      store<false>(to, v, lanes);
    }
  }

  template <bool kDivide, int kTall>
  static void filter_rows(const Job& job, int64_t b, int64_t r0, int64_t r1) {
    const Plane<T> corr = plane(job.corr, b);
    const A* row_by = job.row_by + b * job.corr.first.rows;
    for_blocks<kTall>(r0, r1, [&](int64_t r, auto n) __attribute__((always_inline)) {
      for_groups(job.corr.first.cols, [&](int64_t g, auto lanes) __attribute__((always_inline)) {
        const V column_by = load_numbers(job.column_by + b * job.step + g * kLanes);
        V tile[kTall];
        load_tile<kTall>(corr, r, g * kLanes, n, lanes, tile);
        for (int i = 0; i < n; ++i) {
          const V c = tile[i];
          store_row(job, b, r + i, g * kLanes, c * ratio_of<kDivide>(c, V{} + row_by[r + i], column_by), lanes);
        }
      });
    });
  }

  static void filter(const Job& job, int64_t b, int64_t r0, int64_t r1) {
    const bool few = in_rows(job.corr);
    const auto run = job.divide ? (few ? filter_rows<true, kFew> : filter_rows<true, kLanes>)
                                : (few ? filter_rows<false, kFew> : filter_rows<false, kLanes>);
    run(job, b, r0, r1);
  }

  template <bool kDivide, int kTall>
  static void gradient_rows(const Job& job, int64_t b, int64_t r0, int64_t r1, A* column_part) {
    const Plane<T> corr = plane(job.corr, b), grad = plane(job.grad, b);
    const int64_t rows = job.corr.first.rows;
    const A* row_by = job.row_by + b * rows;
    std::memset(column_part, 0, job.step * sizeof(A));
    for_blocks<kTall>(r0, r1, [&](int64_t r, auto n) __attribute__((always_inline)) {
      V sums[kTall] = {};
      for_groups(job.corr.first.cols, [&](int64_t g, auto lanes) __attribute__((always_inline)) {
        const V column_by = load_numbers(job.column_by + b * job.step + g * kLanes);
        V tile[kTall], slopes[kTall];
        load_tile<kTall>(corr, r, g * kLanes, n, lanes, tile);
        load_tile<kTall>(grad, r, g * kLanes, n, lanes, slopes);
        V column = load_numbers(column_part + g * kLanes);
        for (int i = 0; i < n; ++i) {
          const V ratio = ratio_of<kDivide>(tile[i], V{} + row_by[r + i], column_by);
          const V product = slopes[i] * (tile[i] * ratio);
          column -= divided<kDivide>(product, column_by);
          const V to_row = divided<kDivide>(product, V{} + row_by[r + i]);
          sums[i] -= lanes == kLanes ? to_row : first_lanes(to_row, lanes);
          store_row(job, b, r + i, g * kLanes, A(3) * slopes[i] * ratio, lanes);
        }
        std::memcpy(column_part + g * kLanes, &column, sizeof(column));
      });
      for (int i = 0; i < n; ++i) {
        job.row_term[b * rows + r + i] = sum_of_lanes(sums[i]);
      }
    });
  }

  // The others are 0.
  static SEMIMATCH_FN V first_lanes(V v, int lanes) {
    for (int i = lanes; i < kLanes; ++i) v[i] = A(0);
    return v;
  }

  static void gradient(const Job& job, int64_t b, int64_t r0, int64_t r1, A* column_part) {
    const bool few = in_rows(job.corr) && in_rows(job.grad);
    const auto run = job.divide ? (few ? gradient_rows<true, kFew> : gradient_rows<true, kLanes>)
                                : (few ? gradient_rows<false, kFew> : gradient_rows<false, kLanes>);
    run(job, b, r0, r1, column_part);
  }

  // Recomputed rather than added to what is stored, which is rounded to T.
  static SEMIMATCH_FN void gradient_of_top(const Job& job, int64_t b, int64_t row, int64_t col) {
    const int64_t r = b * job.corr.first.rows + row, i = b * job.corr.first.cols + col;
    const A c = entry(plane(job.corr, b), row, col), g = entry(plane(job.grad, b), row, col);
    const A row_by = job.row_by[r], column_by = job.column_by[b * job.step + col];
    const A ratio = job.divide ? ratio_of<true>(c, row_by, column_by) : ratio_of<false>(c, row_by, column_by);
    A sum = A(3) * g * ratio;
    if (job.row_index[r] == col) sum += job.row_term[r];
    if (job.column_index[i] == row) sum += job.column_term[b * job.step + col];
    store_row(job, b, row, col, V{} + sum, 1);
  }

  static void gradient_of_row_tops(const Job& job, int64_t b, int64_t r0, int64_t r1) {
    for (int64_t r = r0; r < r1; ++r) gradient_of_top(job, b, r, job.row_index[b * job.corr.first.rows + r]);
  }

  static void gradient_of_column_tops(const Job& job, int64_t b, int64_t c0, int64_t c1) {
    for (int64_t col = c0; col < c1; ++col) {
      const int64_t row = job.column_index[b * job.corr.first.cols + col];
      if (job.row_index[b * job.corr.first.rows + row] != col) gradient_of_top(job, b, row, col);
    }
  }
};

}  // namespace

template <class T>
typename CpuMutual<T>::Kernels mutual_kernels() {
  using L = Loops<T>;
  return {kLanes<T>,
          sizeof(Best<typename L::V>),
          L::maxima,
          L::finish_columns,
          L::look_up,
          L::filter,
          L::gradient,
          L::gradient_of_row_tops,
          L::gradient_of_column_tops};
}

template CpuMutual<float>::Kernels mutual_kernels<float>();
template CpuMutual<double>::Kernels mutual_kernels<double>();
template CpuMutual<BFloat16>::Kernels mutual_kernels<BFloat16>();
template CpuMutual<Float16>::Kernels mutual_kernels<Float16>();

}  // namespace SEMIMATCH_CPU
}  // namespace semimatch
