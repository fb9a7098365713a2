// Loops that the ops from features share on the CPU. Compiled once for each instruction set, with SEMIMATCH_CPU naming
// it; no function of this file may be seen by another translation unit under a name without that.
#include "features_kernels.h"

#include "product.h"
#include "tiles.h"

namespace semimatch {
namespace SEMIMATCH_CPU {
namespace {

template <class T>
struct Loops : CpuFeatures<T> {
  using V = typename Element<T>::V;
  using VIndex = typename Number<V>::Index;
  using typename CpuFeatures<T>::A;
  using typename CpuFeatures<T>::Map;
  using typename CpuFeatures<T>::Numbers;
  static constexpr int kLanes = SEMIMATCH_CPU::kLanes<T>;

  static SEMIMATCH_FN int at_most_a_vector(int64_t left) { return left < kLanes ? int(left) : kLanes; }

  // Channels are the rows, cells the columns.
  static SEMIMATCH_FN Plane<T> plane(const Map& map, int64_t b) {
    return {map.data + b * map.stride_batch, map.stride_channel, map.stride_cell};
  }

  // Sums of squares of `lanes` cells, by parts of a few channels.
  static SEMIMATCH_FN V squares(const Map& map, const Plane<T>& from, int64_t cell, int lanes) {
    V sum = {}, x[kLanes];
    for (int64_t c = 0; c < map.channels; c += kLanes) {
      const int n = at_most_a_vector(map.channels - c);
      load_tile<kLanes>(from, c, cell, n, lanes, x);
      V part = {};
      for (int i = 0; i < n; ++i) part += x[i] * x[i];
      sum += part;
    }
    return sum;
  }

  // Factors of `lanes` cells with these sums of squares, and slopes. Lanes beyond have those of zero.
  struct Factors {
    V factor, slope;
  };
  static SEMIMATCH_FN Factors factors(const Map& map, const V& sums, int lanes) {
    Factors f = {V{} + A(1), V{}};
    if (map.normalizer.how == Normalize::kNone) return f;
    for (int i = 0; i < lanes; ++i) {
      f.factor[i] = map.normalizer.factor(sums[i]);
      f.slope[i] = map.normalizer.slope(sums[i]);
    }
    return f;
  }

  // Which of the lanes hold valid cells.
  static SEMIMATCH_FN VIndex valid(const Map& map, int64_t b, int64_t cell, int lanes) {
    VIndex keep = {};
    for (int i = 0; i < lanes; ++i) keep[i] = map.mask == nullptr || map.mask[b * map.cells + cell + i] ? -1 : 0;
    return keep;
  }

  // Cells next to each other in memory are read in runs of several vectors: one vector a row is a cache line amid
  // others that hardware does not fetch ahead.
  static constexpr int kRun = 4;

  // Normalised features of kRun * kLanes such cells, all valid, cells next to each other.
  static void normalised_run(const Map& map, const Plane<T>& from, int64_t cell, A* to, int64_t step) {
    V sum[kRun] = {}, factor[kRun];
    for (int64_t c = 0; map.normalizer.how != Normalize::kNone && c < map.channels; c += kLanes) {
      const int n = at_most_a_vector(map.channels - c);
      V part[kRun] = {};
      for (int k = 0; k < n; ++k) {
        for (int j = 0; j < kRun; ++j) {
          const V x = load<true>(from.at(c + k, cell + j * kLanes), 1, kLanes);
          part[j] += x * x;
        }
      }
      for (int j = 0; j < kRun; ++j) sum[j] += part[j];
    }
    for (int j = 0; j < kRun; ++j) factor[j] = factors(map, sum[j], kLanes).factor * map.normalizer.scale;
    for (int64_t c = 0; c < map.channels; ++c) {
      for (int j = 0; j < kRun; ++j) {
        const V f = load<true>(from.at(c, cell + j * kLanes), 1, kLanes) * factor[j];
        const V x = map.rounded ? Element<T>::widen(Element<T>::narrow(f)) : f;
        std::memcpy(to + c * step + j * kLanes, &x, sizeof(V));
      }
    }
  }

  template <bool kCellsFirst>
  static void normalised(const Map& map, int64_t b, int64_t first, int64_t count, A* to, int64_t step) {
    const Plane<T> from = plane(map, b);
    int64_t i = 0;
    if (!kCellsFirst && map.stride_cell == 1 && map.mask == nullptr)
      for (; i + kRun * kLanes <= count; i += kRun * kLanes) normalised_run(map, from, first + i, to + i, step);
    for (; i < count; i += kLanes) {
      const int lanes = at_most_a_vector(count - i);
      const V sums = map.normalizer.how == Normalize::kNone ? V{} : squares(map, from, first + i, lanes);
      const V factor = factors(map, sums, lanes).factor * map.normalizer.scale;
      const VIndex keep = valid(map, b, first + i, lanes);
      for (int64_t c = 0; c < map.channels; c += kLanes) {
        const int n = at_most_a_vector(map.channels - c);
        V x[kLanes] = {};
        load_tile<kLanes>(from, c, first + i, n, lanes, x);
        for (int k = 0; k < n; ++k) {
          const V f = x[k] * factor;
          x[k] = keep ? (map.rounded ? Element<T>::widen(Element<T>::narrow(f)) : f) : V{};
        }
        if constexpr (kCellsFirst) {
          transpose<kLanes>(x);
          for (int k = 0; k < lanes; ++k) std::memcpy(to + (i + k) * step + c, &x[k], sizeof(V));
        } else {
          for (int k = 0; k < n; ++k) std::memcpy(to + (c + k) * step + i, &x[k], sizeof(V));
        }
      }
    }
  }

  // The gradient of as many such cells; the numbers lie as they do. Here and in `gradient`, sums along the features are
  // taken before they are normalised; without a norm the features, which may be NaN, have no part in it.
  static void gradient_run(const Map& map, const Plane<T>& from, const Plane<A>& grads, int64_t cell, int64_t i,
                           T* to) {
    const bool none = map.normalizer.how == Normalize::kNone;
    V sum[kRun] = {}, along[kRun] = {}, scaled[kRun], off[kRun];
    for (int64_t c = 0; !none && c < map.channels; c += kLanes) {
      const int n = at_most_a_vector(map.channels - c);
      V part[kRun] = {}, part_along[kRun] = {};
      for (int k = 0; k < n; ++k) {
        for (int j = 0; j < kRun; ++j) {
          const V x = load<true>(from.at(c + k, cell + j * kLanes), 1, kLanes);
          part[j] += x * x, part_along[j] += load<true>(grads.at(c + k, i + j * kLanes), 1, kLanes) * x;
        }
      }
      for (int j = 0; j < kRun; ++j) sum[j] += part[j], along[j] += part_along[j];
    }
    for (int j = 0; j < kRun; ++j) {
      const Factors f = factors(map, sum[j], kLanes);
      off[j] = along[j] * f.factor * f.slope, scaled[j] = f.factor * map.normalizer.scale;
    }
    for (int64_t c = 0; c < map.channels; ++c) {
      for (int j = 0; j < kRun; ++j) {
        const V g = load<true>(grads.at(c, i + j * kLanes), 1, kLanes);
        const V x = load<true>(from.at(c, cell + j * kLanes), 1, kLanes);
        store<true>(to + c * map.cells + j * kLanes, scaled[j] * (none ? g : g - off[j] * x), kLanes);
      }
    }
  }

  static void gradient(const Map& map, int64_t b, int64_t first, int64_t count, const Numbers& numbers, T* grad) {
    const Plane<T> from = plane(map, b);
    const Plane<A> grads = {numbers.data, numbers.channel, numbers.cell};
    int64_t i = 0;
    if (map.stride_cell == 1 && numbers.cell == 1 && map.mask == nullptr)
      for (; i + kRun * kLanes <= count; i += kRun * kLanes)
        gradient_run(map, from, grads, first + i, i, grad + first + i);
    for (; i < count; i += kLanes) {
      const int lanes = at_most_a_vector(count - i);
      const bool none = map.normalizer.how == Normalize::kNone;
      V sum = {}, along = {}, x[kLanes], g[kLanes];
      for (int64_t c = 0; !none && c < map.channels; c += kLanes) {
        const int n = at_most_a_vector(map.channels - c);
        load_tile<kLanes>(from, c, first + i, n, lanes, x);
        load_tile<kLanes>(grads, c, i, n, lanes, g);
        V part = {}, part_along = {};
        for (int k = 0; k < n; ++k) part += x[k] * x[k], part_along += g[k] * x[k];
        sum += part, along += part_along;
      }
      const Factors f = factors(map, sum, lanes);
      const V off = along * f.factor * f.slope, scaled = f.factor * map.normalizer.scale;
      const VIndex keep = valid(map, b, first + i, lanes);
      for (int64_t c = 0; c < map.channels; c += kLanes) {
        const int n = at_most_a_vector(map.channels - c);
        load_tile<kLanes>(from, c, first + i, n, lanes, x);
        load_tile<kLanes>(grads, c, i, n, lanes, g);
        for (int k = 0; k < n; ++k) {
          const V result = scaled * (none ? g[k] : g[k] - off * x[k]);
          T* const to = grad + (c + k) * map.cells + first + i;
          if (lanes == kLanes) {
            store<true>(to, keep ? result : V{}, lanes);
          } else {
            store<false>(to, keep ? result : V{}, lanes);
          }
        }
      }
    }
  }

  static void product(int64_t rows, int64_t width, int64_t depth, const Factor<A>& left, const A* right,
                      int64_t right_step, A* out, int64_t out_step, bool add) {
    SEMIMATCH_CPU::product<V>(rows, width, depth, left, right, right_step, out, out_step, add);
  }

  static void exclude(A* tile, int64_t rows, int64_t step, const bool* mask) {
    for (int64_t j = 0; j < step; j += kLanes) {
      VIndex keep;
      for (int i = 0; i < kLanes; ++i) keep[i] = mask[j + i] ? -1 : 0;
      for (int64_t r = 0; r < rows; ++r) {
        A* const at = tile + r * step + j;
        V c;
        std::memcpy(&c, at, sizeof(V));
        c = keep ? c : V{} - A(INFINITY);
        std::memcpy(at, &c, sizeof(V));
      }
    }
  }
};

}  // namespace

template <class T>
typename CpuFeatures<T>::Kernels features_kernels() {
  using L = Loops<T>;
  return {L::kLanes, L::template normalised<true>, L::template normalised<false>, L::gradient, L::product, L::exclude};
}

template CpuFeatures<float>::Kernels features_kernels<float>();
template CpuFeatures<double>::Kernels features_kernels<double>();
template CpuFeatures<BFloat16>::Kernels features_kernels<BFloat16>();
template CpuFeatures<Float16>::Kernels features_kernels<Float16>();

}  // namespace SEMIMATCH_CPU
}  // namespace semimatch
