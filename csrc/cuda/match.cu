// `match` on CUDA: memory and launches. The kernels are in match_kernels.cuh.
#include "launch.h"

#include "../match_ops.h"
#include "match_kernels.cuh"

namespace semimatch {
namespace {

template <class T>
constexpr int kPack = 16 / sizeof(T);

struct Cuda {
  static constexpr NewTensor* new_tensor = semimatch::new_tensor;
  using Half = __half;
  using BFloat16 = __nv_bfloat16;

  // Whether every row consists of whole packs of kPack entries, aligned.
  template <class T, class A>
  static bool in_packs(const MatchJob<T, A>& job) {
    const auto whole = [](int64_t entries) { return entries % kPack<T> == 0; };
    return job.stride_col == 1 && whole(job.cols) && (job.rows == 1 || whole(job.stride_row)) &&
           (job.batch == 1 || whole(job.stride_batch)) && reinterpret_cast<uintptr_t>(job.data) % 16 == 0;
  }

  template <class T, class A>
  static void forward(const MatchJob<T, A>& job, const Tensor& corr) {
    const OnDevice device(corr);
    in_packs(job) ? forward_as<kPack<T>>(job, corr, device) : forward_as<1>(job, corr, device);
  }

  template <int kWidth, class T, class A>
  static void forward_as(const MatchJob<T, A>& job, const Tensor& corr, const OnDevice& device) {
    if (!job.per_col.wanted) {
      launch("match_rows", match_rows<T, A, kWidth>, rows_geometry(job.batch, job.rows), device.stream(), job);
      return;
    }
    const bool both = job.per_row.wanted;
    const auto kernel = both ? match_strips<T, A, kWidth, true> : match_strips<T, A, kWidth, false>;
    const Strips strips =
        strips_of<A>(job.batch, job.rows, job.cols, kStripCols<kWidth>, both, device.has_clusters(kernel));
    Parts<A> col_parts = {nullptr, strips.col_pieces(), job.cols, job.per_col};
    Parts<A> row_parts = {nullptr, both ? strips.row_pieces() : 1, job.rows, job.per_row};
    const int64_t col_count = col_parts.unfinished(job.batch) * col_parts.pieces;
    const int64_t row_count = row_parts.unfinished(job.batch) * row_parts.pieces;
    std::optional<Workspace> memory;
    if (col_count + row_count > 0) {
      memory.emplace(corr, (col_count + row_count) * int64_t(sizeof(Stats<A>)), 2);
      col_parts.data = memory->take<Stats<A>>(col_count);
      row_parts.data = memory->take<Stats<A>>(row_count);
    }
    launch("match_strips", kernel, strips_geometry(strips), device.stream(), job, strips, col_parts, row_parts);
    if (memory)
      launch("match_merge", match_merge<A>,
             items_geometry(col_parts.unfinished(job.batch) + row_parts.unfinished(job.batch)), device.stream(),
             col_parts, row_parts, job.batch, job.scale, job.inverse_temperature);
  }

  template <class T, class A>
  static void backward(const MatchJob<T, A>& job, const Tensor& corr) {
    const OnDevice device(corr);
    in_packs(job) ? backward_as<kPack<T>>(job, device) : backward_as<1>(job, device);
  }

  template <int kWidth, class T, class A>
  static void backward_as(const MatchJob<T, A>& job, const OnDevice& device) {
    const bool both = job.per_col.wanted && job.per_row.wanted;
    const auto kernel = both                 ? match_gradient<T, A, kWidth, true, true>
                        : job.per_col.wanted ? match_gradient<T, A, kWidth, true, false>
                                             : match_gradient<T, A, kWidth, false, true>;
    launch("match_gradient", kernel, strip_tiles_geometry<kWidth>(job.batch, job.rows, job.cols), device.stream(), job);
  }
};

}  // namespace

SEMIMATCH_CUDA_IMPL(library) { MatchOps<Cuda>::implement(library); }

}  // namespace semimatch
