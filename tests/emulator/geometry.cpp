// For `ctypes`: what the launch geometry of csrc/cuda/geometry.h covers. No GPU and no kernel is involved.
#include "../../csrc/cuda/geometry.h"

#include <vector>

using namespace semimatch;

namespace {

// Marks cells; every one must be marked once.
struct Marks {
  std::vector<unsigned char> seen;
  explicit Marks(int64_t n) : seen(n, 0) {}
  void mark(int64_t i) { seen[i] += seen[i] < 2; }
  bool once() const {
    for (const unsigned char s : seen)
      if (s != 1) return false;
    return true;
  }
};

const char* covers_tiling(const Tiling& t, const Geometry& g, int64_t batch, int64_t rows, int64_t cols) {
  if (t.tiles() != g.blocks) return "another number of blocks than tiles";
  Marks marks(batch * rows * cols);
  for (int64_t block = 0; block < g.blocks; ++block) {
    const Tiling::Place at = t.place(block);
    for (int64_t r = at.row; r < at.row + t.tile_rows && r < rows; ++r)
      for (int64_t c = at.col; c < at.col + t.tile_cols && c < cols; ++c) marks.mark((at.b * rows + r) * cols + c);
  }
  return marks.once() ? nullptr : "not every entry is covered once";
}

const char* covers_runs(const TileRuns& runs, int64_t batch, int64_t rows, int64_t cols) {
  Marks marks(batch * runs.panels * runs.tiles);
  if (runs.panels * kTile < rows || runs.tiles * kTile < cols) return "tiles leave entries out";
  for (int64_t block = 0; block < runs.blocks(); ++block) {
    const TileRuns::Place at = runs.place(block);
    for (int64_t t = at.first_tile; t < at.last_tile; ++t) marks.mark((at.b * runs.panels + at.panel) * runs.tiles + t);
  }
  return marks.once() ? nullptr : "not every tile is covered once";
}

const char* covers_ranges(int64_t n) {
  for (const int pieces : {kColumnWarps, kLabelWarps}) {
    int64_t next = 0;
    for (int p = 0; p < pieces; ++p) {
      const Range r = range_of(p, pieces, n);
      if (r.begin != next || r.end < r.begin) return "rows of warps overlap or leave gaps";
      next = r.end;
    }
    if (next != n) return "warps leave rows out";
  }
  return nullptr;
}

const char* covers_cluster(int64_t rows) {
  const ClusterShares s = cluster_shares(rows);
  if (s.rows % kTile != 0 || s.rows > kClusterRows) return "a block's share of rows does not fit its memory";
  if (int64_t(s.blocks) * s.rows < rows) return "a cluster leaves rows out";
  return nullptr;
}

// The launches from features [batch, channels, cells].
const char* covers_features(int64_t batch, int64_t cells, int64_t channels) {
  const auto covers = [&](const Tiling& t, const Geometry& g, int64_t rows, int64_t cols) {
    return covers_tiling(t, g, batch, rows, cols);
  };
  const char* why = covers(channel_tiling<float>(batch, cells, channels),
                           channels_geometry<float>(batch, cells, channels), cells, channels);
  if (!why)
    why = covers(channel_tiling<double>(batch, cells, channels), channels_geometry<double>(batch, cells, channels),
                 cells, channels);
  if (!why) why = covers(vector_tiling(batch, cells), vectors_geometry(batch, cells), 1, cells);
  if (!why) why = covers(line_tiling(batch, cells), line_geometry(batch, cells), 1, cells);
  const TileRuns runs = feature_runs(batch, cells, channels);
  if (!why) why = covers_runs(runs, batch, cells, channels);
  if (!why && runs.runs > kMostRuns) why = "more parts of a cell than memory of its order";
  return why;
}

const char* launch_limits(int64_t batch, int64_t rows, int64_t cols) {
  const Geometry all[] = {columns_geometry(batch, cols),
                          rows_geometry(batch, rows),
                          tiles_geometry(tile_runs(batch, rows, cols)),
                          map_geometry(batch, rows, cols),
                          items_geometry(batch * (rows + cols)),
                          labels_geometry(batch, cols),
                          tiles_geometry(feature_runs(batch, rows, cols)),
                          channels_geometry<double>(batch, rows, cols),
                          vectors_geometry(batch, rows),
                          line_geometry(batch, rows),
                          fits_cluster(rows, cols) ? cluster_geometry(batch, rows) : labels_geometry(batch, rows)};
  for (const Geometry& g : all)
    if (const char* why = why_not(g)) return why;
  return nullptr;
}

}  // namespace

// Why a launch would not be taken, or would leave out or repeat part of the work; null if all is well.
extern "C" const char* geometry_limits(int64_t batch, int64_t rows, int64_t cols) {
  return launch_limits(batch, rows, cols);
}

extern "C" const char* geometry_coverage(int64_t batch, int64_t rows, int64_t cols) {
  const char* why = covers_tiling(map_tiling(batch, rows, cols), map_geometry(batch, rows, cols), batch, rows, cols);
  if (!why) why = covers_tiling(column_tiling(batch, cols), columns_geometry(batch, cols), batch, 1, cols);
  if (!why) why = covers_tiling(label_tiling(batch, cols), labels_geometry(batch, cols), batch, 1, cols);
  if (!why) why = covers_runs(tile_runs(batch, rows, cols), batch, rows, cols);
  if (!why) why = covers_features(batch, rows, cols);
  if (!why) why = covers_ranges(rows);
  if (!why && fits_cluster(rows, cols)) why = covers_cluster(rows);
  if (!why && rows_geometry(batch, rows).blocks * kRowWarps < batch * rows) why = "rows are left out";
  return why;
}
