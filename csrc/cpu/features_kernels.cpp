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
  using typename CpuFeatures<T>::Left;
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

  // Factors of `lanes` cells, and slopes where they are wanted. Lanes beyond are not defined.
  static SEMIMATCH_FN V factors(const Map& map, const Plane<T>& from, int64_t cell, int lanes, V* slopes) {
    V sums = {}, factor = V{} + A(1);
    if (map.normalizer.how != Normalize::kNone) sums = squares(map, from, cell, lanes);
    if (slopes != nullptr) *slopes = V{};
    for (int i = 0; i < lanes; ++i) {
      factor[i] = map.normalizer.factor(sums[i]);
      if (slopes != nullptr) (*slopes)[i] = map.normalizer.slope(sums[i]);
    }
    return factor;
  }

  // Which of the lanes hold valid cells.
  static SEMIMATCH_FN VIndex valid(const Map& map, int64_t b, int64_t cell, int lanes) {
    VIndex keep = {};
    for (int i = 0; i < lanes; ++i) keep[i] = map.mask == nullptr || map.mask[b * map.cells + cell + i] ? -1 : 0;
    return keep;
  }

  template <bool kCellsFirst>
  static void normalised(const Map& map, int64_t b, int64_t first, int64_t count, A* to, int64_t step) {
    const Plane<T> from = plane(map, b);
    for (int64_t i = 0; i < count; i += kLanes) {
      const int lanes = at_most_a_vector(count - i);
      const V factor = factors(map, from, first + i, lanes, nullptr) * map.normalizer.scale;
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

  static void gradient(const Map& map, int64_t b, int64_t first, int64_t count, const Numbers& numbers, T* grad) {
    const Plane<T> from = plane(map, b);
    const Plane<A> grads = {numbers.data, numbers.channel, numbers.cell};
    for (int64_t i = 0; i < count; i += kLanes) {
      const int lanes = at_most_a_vector(count - i);
      V slope, x[kLanes], g[kLanes];
      const V factor = factors(map, from, first + i, lanes, &slope);
      const VIndex keep = valid(map, b, first + i, lanes);
      V along = {};
      for (int64_t c = 0; map.normalizer.how != Normalize::kNone && c < map.channels; c += kLanes) {
        const int n = at_most_a_vector(map.channels - c);
        load_tile<kLanes>(from, c, first + i, n, lanes, x);
        load_tile<kLanes>(grads, c, i, n, lanes, g);
        V part = {};
        for (int k = 0; k < n; ++k) part += g[k] * (x[k] * factor);
        along += part;
      }
      const V scaled = factor * map.normalizer.scale;
      for (int64_t c = 0; c < map.channels; c += kLanes) {
        const int n = at_most_a_vector(map.channels - c);
        load_tile<kLanes>(from, c, first + i, n, lanes, x);
        load_tile<kLanes>(grads, c, i, n, lanes, g);
        for (int k = 0; k < n; ++k) {
          const V result = scaled * (map.normalizer.how == Normalize::kNone ? g[k] : g[k] - along * (x[k] * slope));
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

  static void product(int64_t rows, int64_t width, int64_t depth, const Left& left, const A* right, int64_t right_step,
                      A* out, int64_t out_step, bool add) {
    SEMIMATCH_CPU::product<V>(rows, width, depth, Factor<A>{left.data, left.row, left.col}, right, right_step, out,
                              out_step, add);
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
