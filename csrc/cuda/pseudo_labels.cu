// `pseudo_labels` on CUDA: memory and launches, one where the GPU has clusters (sm_90 and newer) and the grids fit,
// two elsewhere. The kernels are in pseudo_labels.cuh.
#include <string>
#include <tuple>
#include <vector>

#include "pseudo_labels.cuh"

namespace semimatch {
namespace {

using Grid2 = std::vector<int64_t>;

struct Arguments {
  Tensor corr;
  Grid source, target;
  double temperature, threshold, uncertainty;
  OptionalTensor src_box, trg_box;
  bool forward_backward;
  Consistency consistency;
  double entropy_eps;
  OptionalTensor cell, valid;
};

struct Outputs {
  Tensor labels, weight, mask, score, entropy;
};

// `box` stays alive in `kept` where it had to be converted.
Boxes boxes_of(const OptionalTensor& box, int64_t batch, Tensor& kept) {
  if (!box) return {nullptr, false, 0, 0};
  STD_TORCH_CHECK(box->dim() == 2 && box->size(0) == batch && box->size(1) == 4, "semimatch: a box must be [", batch,
                  ", 4]");
  const bool narrow = box->scalar_type() == ScalarType::Float;
  kept = narrow ? *box : in_type(*box, ScalarType::Double);
  return {kept.data_ptr(), !narrow, kept.stride(0), kept.stride(1)};
}

template <class T, bool kTargetRows>
void run(const Arguments& a, const Outputs& out) {
  using A = Wide<T>;
  using Job = LabelJob<T, kTargetRows>;
  const OnDevice device(a.corr);
  const auto m = matrices_of<T>(a.corr);
  Job job = {};
  job.source = {m};
  job.batch = m.batch;
  job.rows = m.rows;
  job.cols = m.cols;
  job.scale = A(kLog2E / a.temperature);
  if constexpr (kTargetRows) {
    job.per_row.scale = job.scale;
  } else {
    job.per_col.scale = job.scale;
  }
  job.source_grid = a.source;
  job.target_grid = a.target;
  job.forward_backward = a.forward_backward;
  job.consistency = a.consistency;
  Tensor src_box, trg_box, cell, valid;
  job.source_box = boxes_of(a.src_box, m.batch, src_box);
  job.target_box = boxes_of(a.trg_box, m.batch, trg_box);
  job.threshold = A(a.threshold);
  job.uncertainty = A(a.uncertainty);
  job.eps = A(a.entropy_eps);
  const int64_t targets = job.targets();
  if (a.cell) {
    cell = in_type(*a.cell, ScalarType::Long);
    valid = in_type(*a.valid, ScalarType::Bool);
    job.cell = cells_of<int64_t>(cell, m.batch, targets, "cell");
    job.valid = cells_of<bool>(valid, m.batch, targets, "valid");
  }
  job.labels = data_of<int64_t>(out.labels);
  job.weight = data_of<A>(out.weight);
  job.mask = data_of<bool>(out.mask);
  job.score = data_of<A>(out.score);
  job.entropy = data_of<A>(out.entropy);

  if constexpr (sizeof(A) == sizeof(float)) {  // float64 does not fit the shared memory
    if (fits_cluster(m.rows, m.cols) && device.has_clusters(pseudo_labels_in_cluster<T, kTargetRows>)) {
      launch("pseudo_labels_in_cluster", pseudo_labels_in_cluster<T, kTargetRows>, cluster_geometry(m.batch, m.rows),
             device.stream(), job);
      return;
    }
  }
  using ColReducer = decltype(Job::per_col);
  using RowReducer = decltype(Job::per_row);
  using ColState = typename ColReducer::State;
  using RowState = typename RowReducer::State;
  const TileRuns runs = tile_runs(m.batch, m.rows, m.cols);
  const int64_t col_count = m.batch * runs.panels * m.cols, row_count = m.batch * runs.runs * m.rows;
  Workspace memory(a.corr, col_count * sizeof(ColState) + row_count * sizeof(RowState), 2);
  auto* col_parts = memory.take<ColState>(col_count);
  auto* row_parts = memory.take<RowState>(row_count);
  launch("pseudo_labels_parts", reduce_tiles<Job, ColState, RowState>, tiles_geometry(runs), device.stream(), job, runs,
         col_parts, row_parts);
  const PartsInMemory<ColReducer> of_col = {job.per_col, col_parts, runs.panels, m.cols};
  const PartsInMemory<RowReducer> of_row = {job.per_row, row_parts, runs.runs, m.rows};
  launch("pseudo_labels_from_parts",
         pseudo_labels_from_parts<T, kTargetRows, PartsInMemory<ColReducer>, PartsInMemory<RowReducer>>,
         labels_geometry(m.batch, targets), device.stream(), job, of_col, of_row);
}

Grid grid_of(const Grid2& grid, int64_t cells, const char* side) {
  STD_TORCH_CHECK(grid.size() == 2 && grid[0] >= 1 && grid[1] >= 1 && grid[0] * grid[1] == cells, "semimatch: the ",
                  side, " grid must be (H, W) with H * W = ", cells);
  return {int(grid[0]), int(grid[1])};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> pseudo_labels(
    Tensor corr, Grid2 source_grid, Grid2 target_grid, double temperature, double threshold, double uncertainty,
    OptionalTensor src_box, OptionalTensor trg_box, bool forward_backward, double alpha1, double alpha2,
    std::string sampling, double entropy_eps, OptionalTensor cell, OptionalTensor valid) {
  STD_TORCH_CHECK(corr.dim() == 3 && corr.size(1) > 0 && corr.size(2) > 0,
                  "semimatch: corr must be [B,S,T], not empty");
  STD_TORCH_CHECK(cell.has_value() == valid.has_value(), "semimatch: cell and valid go together");
  const Grid source = grid_of(source_grid, corr.size(1), "source"),
             target = grid_of(target_grid, corr.size(2), "target");
  const auto empty = [&](ScalarType type) { return new_tensor(corr, {corr.size(0), corr.size(2)}, type); };
  const ScalarType wide = accumulate_type(corr);
  const Outputs out = {empty(ScalarType::Long), empty(wide), empty(ScalarType::Bool), empty(wide), empty(wide)};
  const Consistency consistency = make_consistency(target, source, alpha1, alpha2, sampling == "bilinear");
  const Arguments a = {corr,    source,           target,      temperature, threshold, uncertainty, src_box,
                       trg_box, forward_backward, consistency, entropy_eps, cell,      valid};
  if (corr.size(0) > 0)
    with_cuda_type(corr, [&](auto type) {
      using T = decltype(type);
      transposed(corr) ? run<T, true>(a, out) : run<T, false>(a, out);
    });
  return {out.labels, out.weight, out.mask, out.score, out.entropy};
}

}  // namespace

SEMIMATCH_CUDA_IMPL(library) { library.impl("pseudo_labels", TORCH_BOX(&pseudo_labels)); }

}  // namespace semimatch
