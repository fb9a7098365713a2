// `forward_backward_mask` on CUDA: one thread a cell. The maths is in ../consistency.h.
#include <string>
#include <vector>

#include "../consistency.h"
#include "tensors.h"

namespace semimatch {
namespace {

using Grid2 = std::vector<int64_t>;

// index_own [batch, cells], index_other [batch, others]. A match that names no cell is not consistent.
__global__ void __launch_bounds__(kItemThreads, 1)
    forward_backward_cells(Consistency c, int64_t batch, int64_t cells, int64_t others, const int64_t* index_own,
                           const int64_t* index_other, bool* mask) {
  const int64_t i = int64_t(blockIdx.x) * kItemThreads + threadIdx.x;
  if (i >= batch * cells) return;
  const int64_t match = index_own[i];
  mask[i] = match >= 0 && match < others && consistent(c, i % cells, match, index_other + i / cells * others);
}

Grid grid_of(const Grid2& grid, const Tensor& index, const char* name) {
  STD_TORCH_CHECK(grid.size() == 2 && grid[0] >= 1 && grid[1] >= 1 && index.dim() == 2 &&
                      grid[0] * grid[1] == index.size(1) && index.scalar_type() == ScalarType::Long,
                  "semimatch: ", name, " must be [B, H * W] of int64 for its grid (H, W)");
  return {int(grid[0]), int(grid[1])};
}

Tensor forward_backward_mask(Tensor index_own, Tensor index_other, Grid2 own, Grid2 other, double alpha1, double alpha2,
                             std::string sampling) {
  const Consistency c =
      make_consistency(grid_of(own, index_own, "index_own"), grid_of(other, index_other, "index_other"), alpha1, alpha2,
                       sampling == "bilinear");
  const int64_t batch = index_own.size(0), cells = index_own.size(1), others = index_other.size(1);
  STD_TORCH_CHECK(index_other.size(0) == batch, "semimatch: index_own and index_other must have one batch size");
  const Tensor mask = new_tensor(index_own, {batch, cells}, ScalarType::Bool);
  if (batch == 0) return mask;
  const OnDevice device(index_own);
  const Tensor mine = torch::stable::contiguous(index_own), theirs = torch::stable::contiguous(index_other);
  launch("forward_backward_cells", forward_backward_cells, items_geometry(batch * cells), device.stream(), c, batch,
         cells, others, data_of<const int64_t>(mine), data_of<const int64_t>(theirs), data_of<bool>(mask));
  return mask;
}

}  // namespace

SEMIMATCH_CUDA_IMPL(library) { library.impl("forward_backward_mask", TORCH_BOX(&forward_backward_mask)); }

}  // namespace semimatch
