// Loops of `dual_softmax` on the CPU. Compiled once for each instruction set, with SEMIMATCH_CPU naming it; no function
// of this file may be seen by another translation unit under a name without that.
#include "dual_softmax_kernels.h"

#include "tiles.h"

namespace semimatch {
namespace SEMIMATCH_CPU {
namespace {

template <class T>
struct Loops : CpuDualSoftmax<T> {
  using V = typename Element<T>::V;
  using typename CpuDualSoftmax<T>::A;
  using typename CpuDualSoftmax<T>::Job;
  using typename CpuDualSoftmax<T>::Lines;
  static constexpr int kLanes = SEMIMATCH_CPU::kLanes<T>;
  // Groups of columns whose entries are held at a time, for kLanes rows.
  static constexpr int kGroups = 16;

  static SEMIMATCH_FN int at_most(int64_t left, int most) { return left < most ? int(left) : most; }
  static SEMIMATCH_FN V load_vector(const A* from) {
    V v;
    std::memcpy(&v, from, sizeof(v));
    return v;
  }
  static SEMIMATCH_FN int64_t groups(const Job& job) { return job.cols.step / kLanes; }
  static SEMIMATCH_FN int lanes_of(const Job& job, int64_t g) { return at_most(job.corr.cols - g * kLanes, kLanes); }

  template <class E>
  static SEMIMATCH_FN Plane<E> plane(const Matrices<E>& m, int64_t b) {
    return {m.data + b * m.stride_batch, m.stride_row, m.stride_col};
  }

  static SEMIMATCH_FN Line<V> column_lines(const Job& job, int64_t b, int64_t g) {
    const int64_t at = b * job.cols.step + g * kLanes;
    return {load_vector(job.cols.top + at), load_vector(job.cols.log_mass + at),
            load_vector(job.cols.inverse_mass + at)};
  }
  static SEMIMATCH_FN Line<V> row_line(const Job& job, int64_t b, int64_t r) {
    const int64_t at = b * job.rows.step + r;
    return {V{} + job.rows.top[at], V{} + job.rows.log_mass[at], V{} + job.rows.inverse_mass[at]};
  }

  static SEMIMATCH_FN void finish_line(const Job& job, const Lines& lines, int64_t b, int64_t i, int64_t cells,
                                       const Mass<A>& s) {
    const Line<A> line = line_of(s);
    const int64_t at = b * lines.step + i;
    lines.top[at] = line.top;
    lines.log_mass[at] = line.log_mass;
    lines.inverse_mass[at] = line.inverse_mass;
    if (lines.logsumexp != nullptr) lines.logsumexp[b * cells + i] = logsumexp_of_line(s, job.inverse_temperature);
  }

  static SEMIMATCH_FN Mass<A> over_lanes(Mass<V> s, A scale) {
    const A top = largest_lane(s.top);
    raise_top(s, V{} + top, scale);
    return {top, sum_of_lanes(s.mass)};
  }

  static void masses(const Job& job, int64_t b, int64_t r0, int64_t r1, void* memory) {
    Mass<V>* const cols = static_cast<Mass<V>*>(memory);
    const Plane<T> from = plane(job.corr, b);
    for (int64_t g = 0; g < groups(job); ++g) cols[g] = no_mass<V>();
    for (int64_t r = r0; r < r1; r += kLanes) {
      const int n = at_most(r1 - r, kLanes);
      Mass<V> rows[kLanes];
      for (int i = 0; i < n; ++i) rows[i] = no_mass<V>();
      for (int64_t g = 0; g < groups(job); g += kGroups) {
        const int count = at_most(groups(job) - g, kGroups);
        V c[kLanes][kGroups], column[kLanes];
        for (int j = 0; j < count; ++j) {
          load_tile<kLanes>(from, r, (g + j) * kLanes, n, lanes_of(job, g + j), column);
          for (int i = 0; i < n; ++i) c[i][j] = column[i];
          if (n == kLanes) {
            add<kLanes>(cols[g + j], column, n, job.scale);
          } else {
            add<0>(cols[g + j], column, n, job.scale);
          }
        }
        for (int i = 0; i < n; ++i) {
          if (count == kGroups) {
            add<kGroups>(rows[i], c[i], count, job.scale);
          } else {
            add<0>(rows[i], c[i], count, job.scale);
          }
        }
      }
      for (int i = 0; i < n; ++i) finish_line(job, job.rows, b, r + i, job.corr.rows, over_lanes(rows[i], job.scale));
    }
  }

  static void finish(const Job& job, int64_t b, int64_t g0, int64_t g1, const void* memory, int64_t panels,
                     int64_t step) {
    const Mass<V>* const masses = static_cast<const Mass<V>*>(memory);
    for (int64_t g = g0; g < g1; ++g) {
      Mass<V> s = masses[g - g0];
      for (int64_t p = 1; p < panels; ++p) {
        Mass<V> other = masses[p * step + g - g0];
        const V top = other.top > s.top ? other.top : s.top;
        raise_top(s, top, job.scale);
        raise_top(other, top, job.scale);
        s.mass += other.mass;
      }
      for (int i = 0; i < lanes_of(job, g); ++i)
        finish_line(job, job.cols, b, g * kLanes + i, job.corr.cols, Mass<A>{s.top[i], s.mass[i]});
    }
  }

  // Calls f(g, lanes, r, n) for blocks of n rows of group g.
  template <class F>
  static SEMIMATCH_FN void for_blocks(const Job& job, int64_t r0, int64_t r1, const F& f) {
    for (int64_t r = r0; r < r1; r += kLanes)
      for (int64_t g = 0; g < groups(job); ++g) f(g, lanes_of(job, g), r, at_most(r1 - r, kLanes));
  }

  template <class E>
  static SEMIMATCH_FN void store_lanes(E* to, const V& v, int lanes) {
    if (lanes == kLanes) {
      store<true>(to, v, lanes);
    } else {
      store<false>(to, v, lanes);
    }
  }

  static void forward(const Job& job, int64_t b, int64_t r0, int64_t r1) {
    const Plane<T> from = plane(job.corr, b);
    for_blocks(job, r0, r1, [&](int64_t g, int lanes, int64_t r, int n) __attribute__((always_inline)) {
      V c[kLanes];
      load_tile<kLanes>(from, r, g * kLanes, n, lanes, c);
      const Line<V> cols = column_lines(job, b, g);
      A* const to = job.p + (b * job.corr.rows + r) * job.corr.cols + g * kLanes;
      for (int i = 0; i < n; ++i) {
        const V log_p = log_dual(c[i], row_line(job, b, r + i), cols, job.inverse_temperature);
        store_lanes(to + i * job.corr.cols, job.log ? log_p : exp_of_log(log_p), lanes);
      }
    });
  }

  static void sums(const Job& job, int64_t b, int64_t r0, int64_t r1, void* memory) {
    V* const col_sums = static_cast<V*>(memory);
    const Plane<T> from = plane(job.corr, b);
    const Plane<A> grads = plane(job.grad, b);
    for (int64_t g = 0; g < groups(job); ++g) col_sums[g] = V{};
    for (int64_t r = r0; r < r1; r += kLanes) {
      const int n = at_most(r1 - r, kLanes);
      V row_sums[kLanes] = {};
      for_blocks(job, r, r + n, [&](int64_t g, int lanes, int64_t, int) __attribute__((always_inline)) {
        V c[kLanes], grad[kLanes];
        load_tile<kLanes>(from, r, g * kLanes, n, lanes, c);
        load_tile<kLanes>(grads, r, g * kLanes, n, lanes, grad);
        const Line<V> cols = column_lines(job, b, g);
        V sum = {};
        for (int i = 0; i < n; ++i) {
          const V h = slope(job, c[i], grad[i], row_line(job, b, r + i), cols);
          sum += h;
          row_sums[i] += h;
        }
        col_sums[g] += sum;
      });
      for (int i = 0; i < n; ++i) job.rows.sum[b * job.rows.step + r + i] = sum_of_lanes(row_sums[i]);
    }
  }

  static SEMIMATCH_FN V slope(const Job& job, V c, V grad, const Line<V>& row, const Line<V>& col) {
    if (job.log) return by_log_probability(c, grad, true, c, c);
    return by_log_probability(c, grad, false, probability_in(c, row, job.scale), probability_in(c, col, job.scale));
  }

  static void finish_sums(const Job& job, int64_t b, int64_t g0, int64_t g1, const void* memory, int64_t panels,
                          int64_t step) {
    const V* const sums = static_cast<const V*>(memory);
    for (int64_t g = g0; g < g1; ++g) {
      V sum = sums[g - g0];
      for (int64_t p = 1; p < panels; ++p) sum += sums[p * step + g - g0];
      std::memcpy(job.cols.sum + b * job.cols.step + g * kLanes, &sum, sizeof(sum));
    }
  }

  static void backward(const Job& job, int64_t b, int64_t r0, int64_t r1) {
    const Plane<T> from = plane(job.corr, b);
    const Plane<A> grads = plane(job.grad, b);
    for_blocks(job, r0, r1, [&](int64_t g, int lanes, int64_t r, int n) __attribute__((always_inline)) {
      V c[kLanes], grad[kLanes];
      load_tile<kLanes>(from, r, g * kLanes, n, lanes, c);
      load_tile<kLanes>(grads, r, g * kLanes, n, lanes, grad);
      const Line<V> cols = column_lines(job, b, g);
      const V col_sum = load_vector(job.cols.sum + b * job.cols.step + g * kLanes);
      T* const to = job.grad_out + (b * job.corr.rows + r) * job.corr.cols + g * kLanes;
      for (int i = 0; i < n; ++i) {
        const V p_row = probability_in(c[i], row_line(job, b, r + i), job.scale);
        const V p_col = probability_in(c[i], cols, job.scale);
        const V h = by_log_probability(c[i], grad[i], job.log, p_row, p_col);
        const V row_sum = V{} + job.rows.sum[b * job.rows.step + r + i];
        store_lanes(to + i * job.corr.cols, dual_gradient(h, p_row, row_sum, p_col, col_sum, job.inverse_temperature),
                    lanes);
      }
    });
  }
};

}  // namespace

template <class T>
typename CpuDualSoftmax<T>::Kernels dual_softmax_kernels() {
  using L = Loops<T>;
  return {L::kLanes,  sizeof(Mass<typename L::V>), L::masses, L::finish, L::forward, L::sums, L::finish_sums,
          L::backward};
}

template CpuDualSoftmax<float>::Kernels dual_softmax_kernels<float>();
template CpuDualSoftmax<double>::Kernels dual_softmax_kernels<double>();
template CpuDualSoftmax<BFloat16>::Kernels dual_softmax_kernels<BFloat16>();
template CpuDualSoftmax<Float16>::Kernels dual_softmax_kernels<Float16>();

}  // namespace SEMIMATCH_CPU
}  // namespace semimatch
