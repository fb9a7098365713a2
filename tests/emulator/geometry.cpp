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

// The launches of `match`: every entry is in one strip and range, every part of a result in one cluster.
template <class A>
const char* covers_strips(int64_t batch, int64_t rows, int64_t cols, int strip_cols, bool per_row, bool clusters) {
  const Strips s = strips_of<A>(batch, rows, cols, strip_cols, per_row, clusters);
  if (!clusters && s.cluster() != 1) return "clusters on a GPU that has none";
  if (per_row && s.run > kMostStripTiles<A>) return "a range's rows do not fit shared memory";
  if (!per_row && clusters && s.col_pieces() > 1) return "columns alone need a second launch";
  const int64_t tiles = ceil_div(rows, kStripRows), strips = ceil_div(cols, strip_cols);
  if (s.ranges * s.run < tiles || (s.ranges - 1) * s.run >= tiles) return "ranges leave rows out, or are empty";
  Marks marks(batch * tiles * strips), row_parts(batch * tiles * s.row_pieces() * s.across),
      col_parts(batch * strips * s.col_pieces() * s.down);
  for (int64_t block = 0; block < s.blocks(); ++block) {
    const Strips::Place at = s.place(block);
    if (block % s.cluster() != at.down * s.across + at.across) return "a block has another rank than its place says";
    if (at.b >= batch) return "a block beyond the batch";
    for (int64_t t = at.range * s.run; t < (at.range + 1) * s.run && t < tiles; ++t) {
      row_parts.mark(((at.b * tiles + t) * s.row_pieces() + at.strip / s.across) * s.across + at.across);
      if (at.strip < strips) marks.mark((at.b * tiles + t) * strips + at.strip);
    }
    if (at.strip < strips)
      col_parts.mark(((at.b * strips + at.strip) * s.col_pieces() + at.range / s.down) * s.down + at.down);
  }
  return marks.once() && row_parts.once() && col_parts.once() ? nullptr : "not every part of a strip is covered once";
}

// Calls check(strip_cols, per_row, clusters) for all that there is, until one says why not.
template <class Check>
const char* each_kind_of_strips(const Check& check) {
  for (const int strip_cols : {kStripCols<1>, kStripCols<2>, kStripCols<4>, kStripCols<8>})
    for (const bool per_row : {false, true})
      for (const bool clusters : {false, true})
        if (const char* why = check(strip_cols, per_row, clusters)) return why;
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
  if (!why)
    why = covers(product_tiling(batch, cells, channels), product_geometry(batch, cells, channels), cells, channels);
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
                          product_geometry(batch, rows, cols),
                          vectors_geometry(batch, rows),
                          line_geometry(batch, rows),
                          strip_tiles_geometry<1>(batch, rows, cols),
                          strip_tiles_geometry<2>(batch, rows, cols),
                          strip_tiles_geometry<8>(batch, rows, cols),
                          fits_cluster(rows, cols) ? cluster_geometry(batch, rows) : labels_geometry(batch, rows)};
  for (const Geometry& g : all)
    if (const char* why = why_not(g)) return why;
  return each_kind_of_strips([&](int strip_cols, bool per_row, bool clusters) {
    return why_not(strips_geometry(strips_of<float>(batch, rows, cols, strip_cols, per_row, clusters)));
  });
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
  if (!why)
    why = each_kind_of_strips([&](int strip_cols, bool per_row, bool clusters) {
      const char* const wide = covers_strips<double>(batch, rows, cols, strip_cols, per_row, clusters);
      return wide ? wide : covers_strips<float>(batch, rows, cols, strip_cols, per_row, clusters);
    });
  if (!why)
    why = covers_tiling(strip_tiling<4>(batch, rows, cols), strip_tiles_geometry<4>(batch, rows, cols), batch, rows,
                        cols);
  if (!why) why = covers_ranges(rows);
  if (!why && fits_cluster(rows, cols)) why = covers_cluster(rows);
  if (!why && rows_geometry(batch, rows).blocks * kRowWarps < batch * rows) why = "rows are left out";
  return why;
}
