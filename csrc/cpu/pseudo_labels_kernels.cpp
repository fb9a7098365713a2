// The loop of `pseudo_labels` on the CPU. Compiled once for each instruction set, with SEMIMATCH_CPU naming it; no
// function of this file may be seen by another translation unit under a name without that.
#include "pseudo_labels_kernels.h"

#include "vec.h"

namespace semimatch {
namespace SEMIMATCH_CPU {
namespace {

template <class T>
struct Loops : CpuPseudoLabels<T> {
  using V = typename Element<T>::V;
  using typename CpuPseudoLabels<T>::A;
  using typename CpuPseudoLabels<T>::Job;
  static constexpr int kLanes = SEMIMATCH_CPU::kLanes<T>;
  // Entries that are summed by themselves before they join the rest: short chains round less.
  static constexpr int kBlock = 32;

  static A entry(const Matrices<T>& corr, int64_t b, int64_t row, int64_t col) {
    return load<false>(corr.at(b, row, col), 0, 1)[0];
  }

  static SEMIMATCH_FN V load_some(const Job& job, int64_t b, int64_t row, int64_t col, int lanes) {
    const T* from = job.corr.at(b, row, col);
    return job.corr.stride_col == 1 && lanes == kLanes ? load<true>(from, 1, lanes)
                                                       : load<false>(from, job.corr.stride_col, lanes);
  }
  static SEMIMATCH_FN int width(const Job& job, int64_t group) {
    const int64_t left = job.corr.cols - group * kLanes;
    return left < kLanes ? int(left) : kLanes;
  }

  static void entropy_of_columns(const Job& job, int64_t b, int64_t g0, int64_t g1) {
    for (int64_t g = g0; g < g1; ++g) {
      const int64_t cell = b * job.step + g * kLanes;
      V top, score, sum = {};
      std::memcpy(&top, job.top + cell, sizeof(top));
      std::memcpy(&score, job.score + cell, sizeof(score));
      for (int64_t r0 = 0; r0 < job.corr.rows; r0 += kBlock) {
        V part = {};
        for (int64_t r = r0; r < r0 + kBlock && r < job.corr.rows; ++r)
          part -= entropy_term(load_some(job, b, r, g * kLanes, width(job, g)), top, score, job.scale, job.eps);
        sum += part;
      }
      std::memcpy(job.entropy + cell, &sum, sizeof(sum));
    }
  }

  static void entropy_of_rows(const Job& job, int64_t b, int64_t r0, int64_t r1) {
    const int64_t groups = (job.corr.cols + kLanes - 1) / kLanes;
    for (int64_t r = r0; r < r1; ++r) {
      const int64_t cell = b * job.step + r;
      const V top = V{} + job.top[cell], score = V{} + job.score[cell];
      V sum = {};
      for (int64_t g = 0; g < groups; ++g) {
        V term = entropy_term(load_some(job, b, r, g * kLanes, width(job, g)), top, score, job.scale, job.eps);
        for (int i = width(job, g); i < kLanes; ++i) term[i] = A(0);
        sum -= term;
      }
      job.entropy[cell] = sum_of_lanes(sum);
    }
  }
};

}  // namespace

template <class T>
typename CpuPseudoLabels<T>::Kernels pseudo_labels_kernels() {
  using L = Loops<T>;
  return {kLanes<T>, L::entropy_of_columns, L::entropy_of_rows, L::entry};
}

template CpuPseudoLabels<float>::Kernels pseudo_labels_kernels<float>();
template CpuPseudoLabels<double>::Kernels pseudo_labels_kernels<double>();
template CpuPseudoLabels<BFloat16>::Kernels pseudo_labels_kernels<BFloat16>();
template CpuPseudoLabels<Float16>::Kernels pseudo_labels_kernels<Float16>();

}  // namespace SEMIMATCH_CPU
}  // namespace semimatch
