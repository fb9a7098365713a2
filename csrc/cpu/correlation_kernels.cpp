// Loops of `correlation` on the CPU, behind the product of the features. Compiled once for each instruction set, with
// SEMIMATCH_CPU naming it; no function of this file may be seen by another translation unit under a name without that.
#include "correlation_kernels.h"

#include "tiles.h"

namespace semimatch {
namespace SEMIMATCH_CPU {
namespace {

template <class O>
struct Loops : CpuCorrelation<O> {
  using V = typename Element<O>::V;
  using typename CpuCorrelation<O>::A;
  static constexpr int kLanes = SEMIMATCH_CPU::kLanes<O>;

  static SEMIMATCH_FN int at_most_a_vector(int64_t left) { return left < kLanes ? int(left) : kLanes; }
  static SEMIMATCH_FN V load_vector(const A* from) {
    V v;
    std::memcpy(&v, from, sizeof(v));
    return v;
  }

  static void write(const Columns<A>& columns, int64_t rows, const Epilogue& epilogue, O* to, int64_t stride) {
    const bool any = epilogue.any();
    for (int64_t r = 0; r < rows; ++r) {
      const A* const from = columns.data + r * columns.step;
      for (int64_t j = 0; j < columns.cells; j += kLanes) {
        const V c = load_vector(from + j), result = any ? finished(c, epilogue) : c;
        const int lanes = at_most_a_vector(columns.cells - j);
        if (lanes == kLanes) {
          store<true>(to + r * stride + j, result, lanes);
        } else {
          store<false>(to + r * stride + j, result, lanes);
        }
      }
    }
  }

  static void gradient(const Columns<A>& columns, const Epilogue& epilogue, const Matrices<O>& grad) {
    const bool any = epilogue.any();
    const Plane<O> from = {grad.at(columns.b, 0, columns.first), grad.stride_row, grad.stride_col};
    for (int64_t r = 0; r < grad.rows; r += kLanes) {
      const int n = at_most_a_vector(grad.rows - r);
      for (int64_t j = 0; j < columns.step; j += kLanes) {
        V g[kLanes];
        load_tile<kLanes>(from, r, j, n, at_most_a_vector(columns.cells - j), g);
        for (int i = 0; i < n; ++i) {
          A* const at = columns.data + (r + i) * columns.step + j;
          const V result = any ? finished_gradient(load_vector(at), g[i], epilogue) : g[i];
          std::memcpy(at, &result, sizeof(V));
        }
      }
    }
  }
};

}  // namespace

template <class O>
typename CpuCorrelation<O>::Kernels correlation_kernels() {
  using L = Loops<O>;
  return {L::write, L::gradient};
}

template CpuCorrelation<float>::Kernels correlation_kernels<float>();
template CpuCorrelation<double>::Kernels correlation_kernels<double>();
template CpuCorrelation<BFloat16>::Kernels correlation_kernels<BFloat16>();
template CpuCorrelation<Float16>::Kernels correlation_kernels<Float16>();

}  // namespace SEMIMATCH_CPU
}  // namespace semimatch
