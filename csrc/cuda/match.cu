// `match` on CUDA: memory and launches. The kernels are in match_kernels.cuh.
#include "launch.h"

#include "../match_ops.h"
#include "match_kernels.cuh"

namespace semimatch {
namespace {

struct Cuda {
  static constexpr NewTensor* new_tensor = semimatch::new_tensor;
  using Half = __half;
  using BFloat16 = __nv_bfloat16;

  template <class T, class A>
  static void forward(const MatchJob<T, A>& job, const Tensor& corr) {
    const OnDevice device(corr);
    if (job.per_col.wanted && job.per_row.wanted) {
      forward_both(job, corr, device.stream());
    } else if (job.per_col.wanted) {
      launch("match_columns", match_columns<T, A>, columns_geometry(job.batch, job.cols), device.stream(), job);
    } else {
      launch("match_rows", match_rows<T, A>, rows_geometry(job.batch, job.rows), device.stream(), job);
    }
  }

  template <class T, class A>
  static void forward_both(const MatchJob<T, A>& job, const Tensor& corr, cudaStream_t stream) {
    const TileRuns runs = tile_runs(job.batch, job.rows, job.cols);
    const int64_t col_count = job.batch * runs.panels * job.cols, row_count = job.batch * runs.runs * job.rows;
    const Tensor memory = torch::stable::new_empty(
        corr, {(col_count + row_count) * static_cast<int64_t>(sizeof(Stats<A>))}, ScalarType::Byte);
    auto* col_parts = static_cast<Stats<A>*>(memory.data_ptr());
    auto* row_parts = col_parts + col_count;
    launch("match_tiles", match_tiles<T, A>, tiles_geometry(runs), stream, job, runs, col_parts, row_parts);
    const auto merge_parts = [&](const Stats<A>* parts, int64_t pieces, int64_t cells, const Side<A>& side) {
      launch("match_merge", match_merge<A>, items_geometry(job.batch * cells), stream, parts, job.batch, pieces, cells,
             side, job.scale, job.inverse_temperature);
    };
    merge_parts(col_parts, runs.panels, job.cols, job.per_col);
    merge_parts(row_parts, runs.runs, job.rows, job.per_row);
  }

  template <class T, class A>
  static void backward(const MatchJob<T, A>& job, const Tensor& corr) {
    const OnDevice device(corr);
    const bool both = job.per_col.wanted && job.per_row.wanted;
    const auto kernel = both                 ? match_gradient<T, A, true, true>
                        : job.per_col.wanted ? match_gradient<T, A, true, false>
                                             : match_gradient<T, A, false, true>;
    launch("match_gradient", kernel, map_geometry(job.batch, job.rows, job.cols), device.stream(), job);
  }
};

}  // namespace

SEMIMATCH_CUDA_IMPL(library) { MatchOps<Cuda>::implement(library); }

}  // namespace semimatch
