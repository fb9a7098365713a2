// Loops of the windowed `soft_argmax` on the CPU. Compiled once for each instruction set, with SEMIMATCH_CPU naming it;
// no function of this file may be seen by another translation unit under a name without that.
#include "soft_argmax_kernels.h"

#include "../mutual.h"
#include "tiles.h"

namespace semimatch {
namespace SEMIMATCH_CPU {
namespace {

template <class T>
struct Loops : CpuSoftArgmax<T> {
  using V = typename Element<T>::V;
  using VIndex = typename Number<V>::Index;
  using typename CpuSoftArgmax<T>::A;
  using typename CpuSoftArgmax<T>::Job;
  static constexpr int kLanes = SEMIMATCH_CPU::kLanes<T>;
  // Cells of a row of the grid that are added to the sums at a time.
  static constexpr int kBlock = 16;
  static constexpr int kBand = 8;  // rows

  static SEMIMATCH_FN V load_vector(const A* from) {
    V v;
    std::memcpy(&v, from, sizeof(v));
    return v;
  }

  static SEMIMATCH_FN int at_most(int64_t left, int most) { return left < most ? int(left) : most; }

  // Columns and rows of the grid.
  struct Cells {
    V x, y;
  };
  static SEMIMATCH_FN Cells cells_of(const Job& job, const VIndex& index) {
    Cells cells;
    for (int i = 0; i < kLanes; ++i) {
      cells.x[i] = A(index[i] % job.grid.width);
      cells.y[i] = A(index[i] / job.grid.width);
    }
    return cells;
  }

  // The window of a group of columns: a weight for each column of the grid, then one for each row.
  static SEMIMATCH_FN void make_weights(const Job& job, const Cells& best, V* weights) {
    for (int i = 0; i < job.grid.width; ++i) weights[i] = window_weight<V>(job.window, job.width, A(i) - best.x);
    for (int i = 0; i < job.grid.height; ++i)
      weights[job.grid.width + i] = window_weight<V>(job.window, job.width, A(i) - best.y);
  }

  // Positions are counted from `origin`. Rows are summed by bands, and bands then: rounding of a long sum of numbers
  // that are much alike all goes the same way.
  static SEMIMATCH_FN Moments<V> moments(const Job& job, const A* from, int64_t step, const Cells& origin,
                                         const V* weights) {
    Moments<V> s = no_moments<V>();
    for (int first = 0; first < job.grid.height; first += kBand) {
      Moments<V> band = no_moments<V>();
      for (int row = first; row < first + at_most(job.grid.height - first, kBand); ++row) {
        const V down = weights[job.grid.width + row];
        for (int col = 0; col < job.grid.width; col += kBlock) {
          const int n = at_most(job.grid.width - col, kBlock);
          V c[kBlock];
          for (int i = 0; i < n; ++i, from += step)
            c[i] = windowed(job.window, load_vector(from), weights[col + i] * down);
          add(band, c, n, A(col) - origin.x, A(row) - origin.y, job.scale);
        }
      }
      merge(s, band, job.scale);
    }
    return s;
  }

  static void forward(const Job& job, const Columns<A>& columns, void* memory) {
    V* const weights = static_cast<V*>(memory);
    const int64_t rows = int64_t(job.grid.width) * job.grid.height;
    const Cells centre = {V{} + A(0.5) * A(job.grid.width - 1), V{} + A(0.5) * A(job.grid.height - 1)};
    for (int64_t j = 0; j < columns.cells; j += kLanes) {
      const A* const from = columns.data + j;
      Best<V> best = no_best<V>();
      for (int64_t r = 0; r < rows; ++r) take(best, load_vector(from + r * columns.step), Number<V>::same(r));
      make_weights(job, cells_of(job, best.index), weights);
      const Moments<V> s = moments(job, from, columns.step, centre, weights);
      for (int i = 0; i < at_most(columns.cells - j, kLanes); ++i) {
        const int64_t cell = columns.b * job.cells + columns.first + j + i;
        job.index[cell] = best.index[i];
        job.coords[2 * cell] = coordinate(s.x[i], s.mass[i], job.grid.width);
        job.coords[2 * cell + 1] = coordinate(s.y[i], s.mass[i], job.grid.height);
      }
    }
  }

  static void backward(const Job& job, const Columns<A>& columns, void* memory) {
    V* const weights = static_cast<V*>(memory);
    for (int64_t j = 0; j < columns.cells; j += kLanes) {
      const int lanes = at_most(columns.cells - j, kLanes);
      const int64_t first = columns.first + j, cell = columns.b * job.cells + first;
      VIndex index = {};
      for (int i = 0; i < lanes; ++i) index[i] = typename Number<A>::Index(job.index[cell + i]);
      const Cells best = cells_of(job, index);
      make_weights(job, best, weights);
      // Positions from the best cell: the gradient is made of differences, which are small near it.
      const Moments<V> s = moments(job, columns.data + j, columns.step, best, weights);
      CoordsSlope<V> slope = {};
      for (int i = 0; i < lanes; ++i) {
        const Moments<A> lane = {s.top[i], s.mass[i], s.x[i], s.y[i]};
        const CoordsSlope<A> one =
            coords_slope(lane, job.grad.at(columns.b, first + i, 0), job.grad.at(columns.b, first + i, 1), job.grid,
                         job.inverse_temperature);
        slope.mean_x[i] = one.mean_x;
        slope.mean_y[i] = one.mean_y;
        slope.x[i] = one.x;
        slope.y[i] = one.y;
      }
      A* at = columns.data + j;
      for (int row = 0; row < job.grid.height; ++row) {
        const V down = weights[job.grid.width + row], by_y = slope.y * (A(row) - best.y - slope.mean_y);
        for (int col = 0; col < job.grid.width; ++col, at += columns.step) {
          const V weight = weights[col] * down;
          const V e = Number<V>::exp2(exponent(windowed(job.window, load_vector(at), weight), s.top, job.scale));
          const V grad = weight * e * (slope.x * (A(col) - best.x - slope.mean_x) + by_y);
          std::memcpy(at, &grad, sizeof(V));
        }
      }
    }
  }

  static void read(const Matrices<T>& corr, const Columns<A>& columns) {
    const Plane<T> from = {corr.at(columns.b, 0, columns.first), corr.stride_row, corr.stride_col};
    for (int64_t r = 0; r < corr.rows; r += kLanes) {
      const int n = at_most(corr.rows - r, kLanes);
      for (int64_t j = 0; j < columns.step; j += kLanes) {
        V c[kLanes];
        load_tile<kLanes>(from, r, j, n, at_most(columns.cells - j, kLanes), c);
        for (int i = 0; i < n; ++i) std::memcpy(columns.data + (r + i) * columns.step + j, &c[i], sizeof(V));
      }
    }
  }

  static void write(const Columns<A>& columns, T* to, int64_t rows, int64_t stride_row, int64_t stride_col) {
    for (int64_t r = 0; r < rows; r += kLanes) {
      const int n = at_most(rows - r, kLanes);
      for (int64_t j = 0; j < columns.step; j += kLanes) {
        const int lanes = at_most(columns.cells - j, kLanes);
        V c[kLanes] = {};
        for (int i = 0; i < n; ++i) c[i] = load_vector(columns.data + (r + i) * columns.step + j);
        if (stride_col == 1) {
          for (int i = 0; i < n; ++i) store_lanes(to + (r + i) * stride_row + j, c[i], lanes);
        } else {
          transpose<kLanes>(c);
          for (int i = 0; i < lanes; ++i) store_lanes(to + (j + i) * stride_col + r, c[i], n);
        }
      }
    }
  }

  static SEMIMATCH_FN void store_lanes(T* to, const V& v, int n) {
    if (n == kLanes) {
      store<true>(to, v, n);
    } else {
      store<false>(to, v, n);
    }
  }
};

}  // namespace

template <class T>
typename CpuSoftArgmax<T>::Kernels soft_argmax_kernels() {
  using L = Loops<T>;
  return {L::kLanes, L::forward, L::backward, L::read, L::write};
}

template CpuSoftArgmax<float>::Kernels soft_argmax_kernels<float>();
template CpuSoftArgmax<double>::Kernels soft_argmax_kernels<double>();
template CpuSoftArgmax<BFloat16>::Kernels soft_argmax_kernels<BFloat16>();
template CpuSoftArgmax<Float16>::Kernels soft_argmax_kernels<Float16>();

}  // namespace SEMIMATCH_CPU
}  // namespace semimatch
