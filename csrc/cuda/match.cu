// `match` on CUDA: memory and launches. The kernels are in match_kernels.cuh.
#include "launch.h"

#include "../match_ops.h"
#include "match_kernels.cuh"

namespace semimatch {
namespace {

struct Cuda {
  using Half = __half;
  using BFloat16 = __nv_bfloat16;

  template <class T, class A>
  static void forward(const MatchJob<T, A>& job, const Tensor& corr) {
    const OnDevice device(corr);
    if (job.per_col.wanted && job.per_row.wanted) {
      forward_both(job, corr, device.stream());
    } else if (job.per_col.wanted) {
      const dim3 blocks = grid_of(job.batch * ceil_div(job.cols, kWarp));
      match_columns<<<blocks, dim3(kWarp, kColumnWarps), 0, device.stream()>>>(job);
      check_launch("match_columns");
    } else {
      const dim3 blocks = grid_of(ceil_div(job.batch * job.rows, kRowWarps));
      match_rows<<<blocks, dim3(kWarp, kRowWarps), 0, device.stream()>>>(job);
      check_launch("match_rows");
    }
  }

  template <class T, class A>
  static void forward_both(const MatchJob<T, A>& job, const Tensor& corr, cudaStream_t stream) {
    const int64_t panels = ceil_div(job.rows, kTile), tiles = ceil_div(job.cols, kTile);
    // Longer runs leave fewer parts to merge; enough blocks for any GPU come first. By shape alone: the order of the
    // sums does not depend on the machine.
    constexpr int64_t kBlocks = 2048, kLongest = 8;
    const int64_t run = std::min(kLongest, std::max<int64_t>(1, job.batch * panels * tiles / kBlocks));
    const int64_t runs = ceil_div(tiles, run);
    const int64_t col_count = job.batch * panels * job.cols, row_count = job.batch * runs * job.rows;
    const Tensor memory = torch::stable::new_empty(
        corr, {(col_count + row_count) * static_cast<int64_t>(sizeof(Stats<A>))}, ScalarType::Byte);
    auto* col_parts = static_cast<Stats<A>*>(memory.data_ptr());
    auto* row_parts = col_parts + col_count;
    match_tiles<<<grid_of(job.batch * panels * runs), kTileThreads, 0, stream>>>(job, run, col_parts, row_parts);
    check_launch("match_tiles");
    const auto merge_parts = [&](const Stats<A>* parts, int64_t pieces, int64_t cells, const Side<A>& side) {
      match_merge<<<grid_of(ceil_div(job.batch * cells, kMergeThreads)), kMergeThreads, 0, stream>>>(
          parts, job.batch, pieces, cells, side, job.scale, job.inverse_temperature);
      check_launch("match_merge");
    };
    merge_parts(col_parts, panels, job.cols, job.per_col);
    merge_parts(row_parts, runs, job.rows, job.per_row);
  }

  template <class T, class A>
  static void backward(const MatchJob<T, A>& job, const Tensor& corr) {
    const OnDevice device(corr);
    const bool both = job.per_col.wanted && job.per_row.wanted;
    const auto kernel = both                 ? match_gradient<T, A, true, true>
                        : job.per_col.wanted ? match_gradient<T, A, true, false>
                                             : match_gradient<T, A, false, true>;
    const int64_t blocks = job.batch * ceil_div(job.cols, kGradCols) * ceil_div(job.rows, kGradRows);
    kernel<<<grid_of(blocks), kGradThreads, 0, device.stream()>>>(job);
    check_launch("match_gradient");
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(semimatch_kernels, CUDA, library) { MatchOps<Cuda>::implement(library); }

}  // namespace semimatch
