// Launch geometry and the blocks' share of the work: plain functions that the host, the kernels and the tests call.
//
// Blocks lie along x alone, whose limit is 2^31 - 1 (y and z end at 65535, too few for a batch), and their work follows
// from their number by 64-bit arithmetic.
#pragma once

#include <cstdint>

#include "../common.h"

namespace semimatch {

struct Geometry {
  int64_t blocks;
  int threads;
  int cluster = 1;  // blocks of one
};

constexpr int kWarp = 32;
constexpr int kMostThreads = 1024;
constexpr int kMostCluster = 8;  // what every GPU with clusters takes
constexpr int64_t kMostBlocks = 0x7fffffff;

// Why a GPU would not take this launch; null if it would.
inline const char* why_not(const Geometry& g) {
  if (g.blocks < 1 || g.blocks > kMostBlocks) return "more blocks than 2^31 - 1, or none";
  if (g.threads < 1 || g.threads > kMostThreads || g.threads % kWarp != 0)
    return "a block must have 1 to 32 whole warps";
  if (g.cluster < 1 || g.cluster > kMostCluster || g.blocks % g.cluster != 0)
    return "clusters must be whole, of 1 to 8";
  return nullptr;
}

constexpr SEMIMATCH_FN int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The tiles of a batch of matrices, one after the other along the rows of a matrix, then down, then by matrix.
struct Tiling {
  int64_t batch, down, across;  // tiles
  int tile_rows, tile_cols;

  struct Place {
    int64_t b, row, col;  // of the first entry
  };
  SEMIMATCH_FN Place place(int64_t tile) const {
    return {tile / (across * down), tile / across % down * tile_rows, tile % across * tile_cols};
  }
  SEMIMATCH_FN int64_t tiles() const { return batch * down * across; }
};

SEMIMATCH_FN Tiling tiling(int64_t batch, int64_t rows, int64_t cols, int tile_rows, int tile_cols) {
  return {batch, ceil_div(rows, tile_rows), ceil_div(cols, tile_cols), tile_rows, tile_cols};
}

// --- one thread an item ---
constexpr int kItemThreads = 256;
inline Geometry items_geometry(int64_t items) { return {ceil_div(items, kItemThreads), kItemThreads}; }

// --- a result for each column: 32 neighbouring columns a block, its warps share out the rows ---
constexpr int kColumnWarps = 16;
SEMIMATCH_FN Tiling column_tiling(int64_t batch, int64_t cols) { return tiling(batch, 1, cols, 1, kWarp); }
inline Geometry columns_geometry(int64_t batch, int64_t cols) {
  return {column_tiling(batch, cols).tiles(), kWarp * kColumnWarps};
}

// The rows [begin, end) of one warp of a block of `warps`.
struct Range {
  int64_t begin, end;
};
SEMIMATCH_FN Range range_of(int64_t which, int64_t pieces, int64_t n) {
  const int64_t run = ceil_div(n, pieces), begin = which * run;
  return {begin < n ? begin : n, begin + run < n ? begin + run : n};
}

// --- a result for each row: a warp a row ---
constexpr int kRowWarps = 8;
inline Geometry rows_geometry(int64_t batch, int64_t rows) {
  return {ceil_div(batch * rows, kRowWarps), kWarp * kRowWarps};
}

// --- results for both from one read: a block has kTile rows and a run of tiles along them ---
constexpr int kTile = 64;
constexpr int kShares = 4;  // threads to a column or a row of the tile
constexpr int kTileThreads = kTile * kShares;

struct TileRuns {
  int64_t batch, panels, tiles, run, runs;  // panels of kTile rows; `run` tiles each, `runs` of them

  struct Place {
    int64_t b, panel, run, first_tile, last_tile;  // [first, last)
  };
  SEMIMATCH_FN Place place(int64_t block) const {
    const int64_t which = block % runs, first = which * run;
    return {block / (runs * panels), block / runs % panels, which, first, first + run < tiles ? first + run : tiles};
  }
  SEMIMATCH_FN int64_t blocks() const { return batch * panels * runs; }
};

// Longer runs leave fewer parts to merge; enough blocks for any GPU come first. By shape alone: the order of the sums
// does not depend on the machine.
inline TileRuns tile_runs(int64_t batch, int64_t rows, int64_t cols) {
  constexpr int64_t kBlocks = 2048, kLongest = 8;
  const int64_t panels = ceil_div(rows, kTile), tiles = ceil_div(cols, kTile);
  const int64_t wish = batch * panels * tiles / kBlocks;
  const int64_t run = wish < 1 ? 1 : wish > kLongest ? kLongest : wish;
  return {batch, panels, tiles, run, ceil_div(tiles, run)};
}
inline Geometry tiles_geometry(const TileRuns& r) { return {r.blocks(), kTileThreads}; }

// --- entry by entry: a block has kMapRows rows and kMapCols columns ---
constexpr int kMapCols = 64;
constexpr int kMapRows = 128;
constexpr int kMapThreads = 256;
SEMIMATCH_FN Tiling map_tiling(int64_t batch, int64_t rows, int64_t cols) {
  return tiling(batch, rows, cols, kMapRows, kMapCols);
}
inline Geometry map_geometry(int64_t batch, int64_t rows, int64_t cols) {
  return {map_tiling(batch, rows, cols).tiles(), kMapThreads};
}

// --- match: a result for each column, and for each row from the same read ---
//
// A block has a strip of columns and a range of rows, and reads tiles of kStripRows rows. Its threads take packs of
// kWidth neighbouring entries: 16 bytes, the most that one load moves, so that a row of a strip is 256 bytes, two whole
// lines of the cache; or single entries where packs would not be aligned. A cluster has neighbouring strips and ranges.
constexpr int kStripThreads = 256;
constexpr int kStripRows = 64;
template <class A>
constexpr int kMostStripTiles = sizeof(A) == 8 ? 4 : 8;  // of a range whose rows' statistics wait in shared memory
template <int kWidth>
constexpr int kAcross = kWidth == 1 ? 64 : 16;  // packs of a row of the strip
template <int kWidth>
constexpr int kStripCols = kAcross<kWidth> * kWidth;

struct Strips {
  int64_t batch, strips, ranges, run;  // tiles of kStripRows rows in a range
  int across, down;                    // strips and ranges of a cluster

  struct Place {
    int64_t b, range, strip;
    int down, across;  // in the cluster
  };
  // The parts that clusters leave of a row and of a column.
  SEMIMATCH_FN int64_t row_pieces() const { return ceil_div(strips, across); }
  SEMIMATCH_FN int64_t col_pieces() const { return ceil_div(ranges, down); }
  SEMIMATCH_FN int cluster() const { return across * down; }
  SEMIMATCH_FN int64_t blocks() const { return batch * row_pieces() * col_pieces() * cluster(); }
  // Strips and ranges that fill up the last clusters lie outside the matrix.
  SEMIMATCH_FN Place place(int64_t block) const {
    const int rank = static_cast<int>(block % cluster()), a = rank % across, d = rank / across;
    const int64_t which = block / cluster(), wide = row_pieces(), high = col_pieces();
    return {which / (wide * high), which / wide % high * down + d, which % wide * across + a, d, a};
  }
};

// By shape, and by whether the GPU has clusters, alone: the order of the sums does not depend on how busy it is.
//
// What clusters do not merge goes through memory: sizeof(Stats) = 24 bytes, written and read once, for each row of a
// strip and each column of a range. Strips of one block would add 2 * 24 / 256 = 19 % to what is read of the matrix; 8
// of a cluster 2.3 %, and a range of 8 tiles of float32 2.3 %. A matrix that one cluster has wholly, and every result
// for columns alone, needs no second launch.
template <class A>
inline Strips strips_of(int64_t batch, int64_t rows, int64_t cols, int strip_cols, bool per_row, bool clusters) {
  constexpr int64_t kBlocks = 1024;  // enough for any GPU
  const int most = clusters ? kMostCluster : 1;
  const int64_t tiles = ceil_div(rows, kStripRows), strips = ceil_div(cols, strip_cols);
  int across = 1, down = 1;
  if (per_row) {
    while (across < most && across < strips) across *= 2;
    if (strips > most)  // several clusters: at most an eighth of the blocks idle
      while (across > 1 && 8 * (ceil_div(strips, across) * across - strips) > strips) across /= 2;
  }
  const int64_t longest = per_row && tiles > kMostStripTiles<A> ? kMostStripTiles<A> : tiles;
  const int64_t wish = batch * strips * tiles / kBlocks;
  int64_t run = wish < 1 ? 1 : wish > longest ? longest : wish;
  while (down < most / across && down < ceil_div(tiles, run)) down *= 2;
  // Ranges a little longer than wished for are better than a second launch.
  const int64_t in_one = ceil_div(tiles, down);
  run = clusters && in_one <= (per_row ? 2 : tiles) ? in_one : ceil_div(tiles, ceil_div(tiles, run));
  return {batch, strips, ceil_div(tiles, run), run, across, down};
}
inline Geometry strips_geometry(const Strips& s) { return {s.blocks(), kStripThreads, s.cluster()}; }

// Its gradient, entry by entry: a block has kMapRows rows of a strip.
template <int kWidth>
SEMIMATCH_FN Tiling strip_tiling(int64_t batch, int64_t rows, int64_t cols) {
  return tiling(batch, rows, cols, kMapRows, kStripCols<kWidth>);
}
template <int kWidth>
inline Geometry strip_tiles_geometry(int64_t batch, int64_t rows, int64_t cols) {
  return {strip_tiling<kWidth>(batch, rows, cols).tiles(), kMapThreads};
}

// --- pseudo labels: parts as above, then 32 target cells a block; or all of it in one launch of clusters ---
constexpr int kLabelThreads = kTileThreads;
constexpr int kLabelWarps = kLabelThreads / kWarp;
constexpr int kClusterCells = 1024;  // most cells of a side that a cluster takes: a grid of 32 x 32
constexpr int kClusterRows = ceil_div(kClusterCells, kTile* kMostCluster) * kTile;  // most rows of one of its blocks

SEMIMATCH_FN Tiling label_tiling(int64_t batch, int64_t targets) { return tiling(batch, 1, targets, 1, kWarp); }
inline Geometry labels_geometry(int64_t batch, int64_t targets) {
  return {label_tiling(batch, targets).tiles(), kLabelThreads};
}

// A cluster has one matrix, each of its blocks an equal share of the panels of rows.
struct ClusterShares {
  int blocks, rows;  // blocks of a cluster, rows of a block
};
SEMIMATCH_FN ClusterShares cluster_shares(int64_t rows) {
  const int panels = static_cast<int>(ceil_div(rows, kTile));
  int blocks = 1;
  while (blocks < panels && blocks < kMostCluster) blocks *= 2;
  return {blocks, static_cast<int>(ceil_div(panels, blocks)) * kTile};
}
inline bool fits_cluster(int64_t rows, int64_t cols) { return rows <= kClusterCells && cols <= kClusterCells; }
inline Geometry cluster_geometry(int64_t batch, int64_t rows) {
  const ClusterShares shares = cluster_shares(rows);
  return {batch * shares.blocks, kLabelThreads, shares.blocks};
}

// --- from features: a block has kTile kept cells and a run of tiles of the other side ---

// Enough blocks for any GPU come first; but no more than kMostRuns parts of a cell to merge: memory stays O(cells).
constexpr int kMostRuns = 16;
inline TileRuns feature_runs(int64_t batch, int64_t kept, int64_t reduced) {
  constexpr int64_t kBlocks = 512;
  const int64_t panels = ceil_div(kept, kTile), tiles = ceil_div(reduced, kTile);
  const int64_t least = batch * panels, runs = least * kMostRuns < kBlocks ? kMostRuns : ceil_div(kBlocks, least);
  const int64_t run = ceil_div(tiles, runs);
  return {batch, panels, tiles, run, ceil_div(tiles, run)};
}

// For the product itself a block has one tile.
SEMIMATCH_FN Tiling product_tiling(int64_t batch, int64_t rows, int64_t cols) {
  return tiling(batch, rows, cols, kTile, kTile);
}
inline Geometry product_geometry(int64_t batch, int64_t rows, int64_t cols) {
  return {product_tiling(batch, rows, cols).tiles(), kTileThreads};
}

// For the gradient by features a block has kTile kept cells and this many channels: what fits into its registers.
template <class A>
constexpr int kChannels = sizeof(A) == 8 ? 128 : 256;
template <class A>
SEMIMATCH_FN Tiling channel_tiling(int64_t batch, int64_t cells, int64_t channels) {
  return tiling(batch, cells, channels, kTile, kChannels<A>);
}
template <class A>
inline Geometry channels_geometry(int64_t batch, int64_t cells, int64_t channels) {
  return {channel_tiling<A>(batch, cells, channels).tiles(), kTileThreads};
}

// kTile kept cells alone.
SEMIMATCH_FN Tiling line_tiling(int64_t batch, int64_t kept) { return tiling(batch, 1, kept, 1, kTile); }
inline Geometry line_geometry(int64_t batch, int64_t kept) { return {line_tiling(batch, kept).tiles(), kTileThreads}; }

// Features of 32 neighbouring cells, all their channels.
constexpr int kVectorWarps = 8;
SEMIMATCH_FN Tiling vector_tiling(int64_t batch, int64_t cells) { return tiling(batch, 1, cells, 1, kWarp); }
inline Geometry vectors_geometry(int64_t batch, int64_t cells) {
  return {vector_tiling(batch, cells).tiles(), kWarp * kVectorWarps};
}

}  // namespace semimatch
