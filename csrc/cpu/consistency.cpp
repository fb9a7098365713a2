// `forward_backward_mask` on the CPU.
#include <algorithm>
#include <string>
#include <vector>

#include "../consistency.h"
#include "tensors.h"
#include "work.h"

namespace semimatch {
namespace {

using Grid2 = std::vector<int64_t>;

Grid grid_of(const Grid2& grid, int64_t cells, const char* name) {
  STD_TORCH_CHECK(grid.size() == 2 && grid[0] >= 0 && grid[1] >= 0 && grid[0] * grid[1] == cells, "semimatch: ", name,
                  " must be (H, W) with H * W = ", cells, ", the cells of that side");
  return {int(grid[0]), int(grid[1])};
}

Tensor forward_backward_mask(Tensor index_own, Tensor index_other, Grid2 own, Grid2 other, double alpha1, double alpha2,
                             std::string sampling) {
  STD_TORCH_CHECK(index_own.dim() == 2 && index_other.dim() == 2, "semimatch: matches must be [B,N] and [B,M]");
  STD_TORCH_CHECK(sampling == "gather" || sampling == "bilinear", "semimatch: sampling must be gather or bilinear");
  const int64_t batch = index_own.size(0), cells = index_own.size(1), others = index_other.size(1);
  const Consistency c = make_consistency(grid_of(own, cells, "own"), grid_of(other, others, "other"), alpha1, alpha2,
                                         sampling == "bilinear");
  const Tensor matches = per_cell(index_own, batch, cells, ScalarType::Long, "index_own");
  const Tensor back = per_cell(index_other, batch, others, ScalarType::Long, "index_other");
  const Tensor result = new_tensor(index_own, {batch, cells}, ScalarType::Bool);
  const int64_t *there = data_of<const int64_t>(matches), *here = data_of<const int64_t>(back);
  STD_TORCH_CHECK(std::all_of(there, there + batch * cells, [&](int64_t i) { return i >= 0 && i < others; }),
                  "semimatch: index_target (index_source where per is source) must name cells of the other side, 0 to ",
                  others - 1);
  constexpr int64_t kPiece = 1024;
  for_pieces(batch, cells, kPiece, [&](int64_t b, int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i)
      data_of<bool>(result)[b * cells + i] = consistent(c, i, there[b * cells + i], here + b * others);
  });
  return result;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(semimatch_kernels, CPU, library) {
  library.impl("forward_backward_mask", TORCH_BOX(&forward_backward_mask));
}

}  // namespace semimatch
