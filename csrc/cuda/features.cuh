// What the ops from features share on CUDA: features made ready for products, tiles of the correlation that never leave
// a block, and the chain rule of the normalisation. Memory is O((S + T) C).
//
// vectors_ready makes features of any strides ready for products: normalised, zero where they are not there, channels
// next to each other. form_tile puts 64 x 64 entries of the correlation into shared memory. features_chain takes the
// gradient by ready vectors, which feature_gradient.cuh sums, to that by the features.
//
// Products of halves are formed in tensor cores, sums in float. float is multiplied on the ordinary cores, with all of
// its digits, whatever PyTorch's setting for products allows; so is double. The gradient multiplies slopes, which have
// the range of float, with features: for halves in tf32, which holds every half exactly and rounds a slope to 11 bits,
// or for float16, which has as many, the slope as a sum of two such numbers.
#pragma once

#include <cmath>
#include <limits>

#include "../feature_tensors.h"
#include "ptx.cuh"
#include "tensors.h"

namespace semimatch {

// 16 bytes, which are read and written at once.
struct alignas(16) Words {
  uint32_t word[4];
};
template <class T>
constexpr int kWide = sizeof(Words) / sizeof(T);

// Whether products are formed in tensor cores.
template <class T>
constexpr bool kInTensorCores = sizeof(T) == 2;

// Features of one side as they are given.
template <class T>
struct FeatureMap {
  const T* data;
  int64_t batch, channels, cells;
  int64_t stride_batch, stride_channel, stride_cell;
  Cells<bool> there;  // null: all cells
  Normalizer<Wide<T>> normalizer;

  SEMIMATCH_FN bool valid(int64_t b, int64_t cell) const { return there.data == nullptr || there.at(b, cell); }
  // Whether neighbouring channels are closer in memory than neighbouring cells.
  SEMIMATCH_FN bool channels_first() const { return stride_channel < stride_cell; }
};

// The same made ready: normalised, multiplied by the normalizer's scale, rounded to T as the definition has them,
// `width` channels of which the last may be zeros. Rows are whole Words.
template <class T>
struct Vectors {
  const T* data;  // [batch, cells, width]
  int64_t cells, width;
  Cells<bool> there;

  SEMIMATCH_FN const T* at(int64_t b, int64_t cell) const { return data + (b * cells + cell) * width; }
  SEMIMATCH_FN bool valid(int64_t b, int64_t cell) const {
    return cell < cells && (there.data == nullptr || there.at(b, cell));
  }
};

// --- normalisation, and its chain rule ---

template <class A>
using Square = A[kWarp][kWarp + 1];  // channels by cells

// The square at (channel, cell); zero outside. Neighbouring lanes read neighbours.
template <class T, class A>
__device__ __forceinline__ void load_square(Square<A>& to, const FeatureMap<T>& from, int64_t b, int64_t channel,
                                            int64_t cell) {
  const int lane = threadIdx.x % kWarp;
  const bool turned = from.channels_first();
  const T* const first = from.data + b * from.stride_batch;
#pragma unroll
  for (int i = threadIdx.x / kWarp; i < kWarp; i += kVectorWarps) {
    const int c = turned ? lane : i, n = turned ? i : lane;
    const bool exists = channel + c < from.channels && cell + n < from.cells;
    to[c][n] = exists ? widen<A>(first[(channel + c) * from.stride_channel + (cell + n) * from.stride_cell]) : A(0);
  }
}

// The sum over the warps of what the threads of one cell have.
template <class A>
__device__ __forceinline__ A over_warps(A mine, A (&parts)[kVectorWarps][kWarp]) {
  const int lane = threadIdx.x % kWarp;
  parts[threadIdx.x / kWarp][lane] = mine;
  __syncthreads();
  A sum = 0;
#pragma unroll
  for (int w = 0; w < kVectorWarps; ++w) sum += parts[w][lane];
  return sum;
}

// factors, slopes [batch, cells]: those of the Normalizer, kept for the gradient; null: not wanted.
template <class T>
__global__ void __launch_bounds__(kWarp* kVectorWarps, 1)
    vectors_ready(FeatureMap<T> from, T* to, int64_t width, Wide<T>* factors, Wide<T>* slopes) {
  using A = Wide<T>;
  const Tiling::Place at = vector_tiling(from.batch, from.cells).place(blockIdx.x);
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t b = at.b, cell0 = at.col, cell = cell0 + lane;
  SEMIMATCH_SHARED(square, Square<A>);
  SEMIMATCH_SHARED(parts, A[kVectorWarps][kWarp]);
  A squares = 0;
  for (int64_t c0 = 0; c0 < from.channels && from.normalizer.how != Normalize::kNone; c0 += kWarp) {
    load_square(square, from, b, c0, cell0);
    __syncthreads();
    A part = 0;
    for (int c = warp; c < kWarp; c += kVectorWarps) part += square[c][lane] * square[c][lane];
    squares += part;
    __syncthreads();
  }
  squares = over_warps(squares, parts);
  const A factor = from.normalizer.factor(squares);
  if (factors != nullptr && warp == 0 && cell < from.cells) {
    factors[b * from.cells + cell] = factor;
    slopes[b * from.cells + cell] = from.normalizer.slope(squares);
  }
  const A by = factor * from.normalizer.scale;
  const bool keep = cell < from.cells && from.valid(b, cell);
  for (int64_t c0 = 0; c0 < width; c0 += kWarp) {
    load_square(square, from, b, c0, cell0);
    __syncthreads();
    for (int c = warp; c < kWarp; c += kVectorWarps) square[c][lane] = keep ? square[c][lane] * by : A(0);
    __syncthreads();
    for (int n = warp; n < kWarp; n += kVectorWarps)
      if (cell0 + n < from.cells && c0 + lane < width)
        to[(b * from.cells + cell0 + n) * width + c0 + lane] = narrow<T>(square[lane][n]);
    __syncthreads();
  }
}

// by_vectors [batch, cells, width], the gradient by what vectors_ready made; grad contiguous [batch, channels, cells].
template <class T>
__global__ void __launch_bounds__(kWarp* kVectorWarps, 1)
    features_chain(FeatureMap<T> map, const Wide<T>* by_vectors, int64_t width, const Wide<T>* factors,
                   const Wide<T>* slopes, T* grad) {
  using A = Wide<T>;
  const Tiling::Place at = vector_tiling(map.batch, map.cells).place(blockIdx.x);
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t b = at.b, cell0 = at.col, cell = cell0 + lane;
  const bool exists = cell < map.cells, keep = exists && map.valid(b, cell);
  const bool changes = map.normalizer.how != Normalize::kNone;
  const A factor = exists ? factors[b * map.cells + cell] : A(0), slope = exists ? slopes[b * map.cells + cell] : A(0);
  SEMIMATCH_SHARED(x, Square<A>);
  SEMIMATCH_SHARED(g, Square<A>);
  SEMIMATCH_SHARED(parts, A[kVectorWarps][kWarp]);
  const auto load = [&](int64_t c0) {
    if (changes) load_square(x, map, b, c0, cell0);
    for (int n = warp; n < kWarp; n += kVectorWarps)
      g[lane][n] = cell0 + n < map.cells && c0 + lane < width
                       ? by_vectors[(b * map.cells + cell0 + n) * width + c0 + lane] * map.normalizer.scale
                       : A(0);
    __syncthreads();
  };
  A along = 0;
  for (int64_t c0 = 0; c0 < map.channels && changes; c0 += kWarp) {
    load(c0);
    A part = 0;
    for (int c = warp; c < kWarp; c += kVectorWarps) part += g[c][lane] * (x[c][lane] * factor);
    along += part;
    __syncthreads();
  }
  along = over_warps(along, parts);
  for (int64_t c0 = 0; c0 < map.channels; c0 += kWarp) {
    load(c0);
    for (int c = warp; c < kWarp; c += kVectorWarps) {
      if (!exists || c0 + c >= map.channels) continue;
      const A result = changes ? factor * (g[c][lane] - along * (x[c][lane] * slope)) : g[c][lane];
      grad[(b * map.channels + c0 + c) * map.cells + cell] = narrow<T>(keep ? result : A(0));
    }
    __syncthreads();
  }
}

// One side of a call, made ready; launches vectors_ready.
template <class T>
class FeatureSide {
  using A = Wide<T>;
  Tensor mask_, memory_, factors_;

 public:
  FeatureMap<T> map;
  Vectors<T> vectors;
  const A *factors = nullptr, *slopes = nullptr;  // [batch, cells]; with `gradient` only

  FeatureSide(const Tensor& features, const OptionalTensor& mask, const Normalizer<A>& normalizer, bool gradient,
              const OnDevice& device) {
    const int64_t batch = features.size(0), channels = features.size(1), cells = features.size(2);
    STD_TORCH_CHECK(cells <= std::numeric_limits<int32_t>::max(), "semimatch: a side has 2^31 cells or more");
    Cells<bool> there = {};
    if (mask) {
      mask_ = in_type(*mask, ScalarType::Bool);
      there = cells_of<bool>(mask_, batch, cells, "mask");
    }
    map = {data_of<const T>(features), batch, channels,  cells, features.stride(0), features.stride(1),
           features.stride(2),         there, normalizer};
    const int64_t width = ceil_div(channels, kWide<T>) * kWide<T>;
    memory_ = new_tensor(features, {batch * cells * width});
    vectors = {data_of<const T>(memory_), cells, width, there};
    if (gradient) {
      factors_ = new_tensor(features, {2 * batch * cells}, accumulate_type(features));
      factors = data_of<A>(factors_);
      slopes = factors + batch * cells;
    }
    A* const keep = gradient ? data_of<A>(factors_) : nullptr;
    launch("vectors_ready", vectors_ready<T>, vectors_geometry(batch, cells), device.stream(), map, data_of<T>(memory_),
           width, keep, gradient ? keep + batch * cells : nullptr);
  }
};

// --- tiles of the correlation ---

// Entries of kTile cells by kTile cells. The width of float lets lanes of a tensor core's operand meet no bank twice.
template <class A>
constexpr int kTileWidth = kTile + (sizeof(A) == 8 ? 0 : 4);
template <class A>
using FeatureTile = A[kTile][kTileWidth<A>];

// The channels of kTile cells of both sides that are multiplied at a time; rows of both are Words longer, for the
// banks.
template <class T>
constexpr int kDepth = (sizeof(T) == 8 ? 64 : 128) / sizeof(T);
template <class T>
using Stage = T[kTile][kDepth<T> + kWide<T>];
template <class T>
struct Stages {
  Stage<T> rows, cols;
};
struct There {
  bool rows[kTile], cols[kTile];
};

template <class T, class Side>
__device__ __forceinline__ void load_stage(Stage<T>& to, const Side& from, int64_t b, int64_t cell, int64_t k) {
  constexpr int kPerRow = kDepth<T> / kWide<T>;
#pragma unroll
  for (int i = threadIdx.x; i < kTile * kPerRow; i += kTileThreads) {
    const int n = i / kPerRow, c = i % kPerRow * kWide<T>;
    Words words = {};
    if (cell + n < from.cells && k + c < from.width)
      words = *reinterpret_cast<const Words*>(from.at(b, cell + n) + k + c);
    *reinterpret_cast<Words*>(&to[n][c]) = words;
  }
}

// Two numbers that lie next to each other.
template <class T>
__device__ __forceinline__ uint32_t pair_at(const T* at) {
  return *reinterpret_cast<const uint32_t*>(at);
}

// The products of `rows`, Vectors or alike, from row0 with `cols` from col0; -inf where either cell is not there.
// Between two calls all threads must have met after reading the tile; so must they before they read it.
template <class T, class Rows>
__device__ __forceinline__ void form_tile(FeatureTile<Wide<T>>& tile, Stages<T>& stages, There& there, const Rows& rows,
                                          const Vectors<T>& cols, int64_t b, int64_t row0, int64_t col0) {
  using A = Wide<T>;
  if (threadIdx.x < kTile) there.rows[threadIdx.x] = rows.valid(b, row0 + threadIdx.x);
  if (threadIdx.x < kTile) there.cols[threadIdx.x] = cols.valid(b, col0 + threadIdx.x);
  const auto for_stages = [&](const auto& multiply) {
    for (int64_t k = 0; k < rows.width; k += kDepth<T>) {
      load_stage(stages.rows, rows, b, row0, k);
      load_stage(stages.cols, cols, b, col0, k);
      __syncthreads();
      multiply();
      __syncthreads();
    }
  };
  const auto store = [&](int r, int c, A sum) { tile[r][c] = there.rows[r] && there.cols[c] ? sum : -A(INFINITY); };
  if constexpr (kInTensorCores<T>) {  // a warp has 16 rows and 32 columns
    const int lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
    const int row = threadIdx.x / kWarp / 2 * 16 + g, col = threadIdx.x / kWarp % 2 * 32;
    float sums[4][4] = {};
    for_stages([&] {
      float parts[4][4] = {};  // short chains of additions round less than a long one
#pragma unroll
      for (int depth = 0; depth < kDepth<T>; depth += 16) {
        const int k = depth + 2 * t;
        const uint32_t a[4] = {pair_at(&stages.rows[row][k]), pair_at(&stages.rows[row + 8][k]),
                               pair_at(&stages.rows[row][k + 8]), pair_at(&stages.rows[row + 8][k + 8])};
#pragma unroll
        for (int n = 0; n < 4; ++n) {
          const T* const right = &stages.cols[col + 8 * n + g][k];
          const uint32_t other[2] = {pair_at(right), pair_at(right + 8)};
          add_product_of_halves<T>(parts[n], a, other);
        }
      }
#pragma unroll
      for (int n = 0; n < 4; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[n][i] += parts[n][i];
    });
#pragma unroll
    for (int n = 0; n < 4; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) store(row + i / 2 * 8, col + 8 * n + 2 * t + i % 2, sums[n][i]);
  } else {  // a thread has 4 x 4 entries, 16 apart
    constexpr int kStep = 16;
    const int row = threadIdx.x / kStep, col = threadIdx.x % kStep;
    A sums[4][4] = {};
    for_stages([&] {
      A parts[4][4] = {};
#pragma unroll 2
      for (int k = 0; k < kDepth<T>; k += kWide<T>) {
        alignas(Words) T left[4][kWide<T>], right[4][kWide<T>];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          *reinterpret_cast<Words*>(left[i]) = *reinterpret_cast<const Words*>(&stages.rows[row + kStep * i][k]);
          *reinterpret_cast<Words*>(right[i]) = *reinterpret_cast<const Words*>(&stages.cols[col + kStep * i][k]);
        }
#pragma unroll
        for (int c = 0; c < kWide<T>; ++c)
#pragma unroll
          for (int i = 0; i < 4; ++i)
#pragma unroll
            for (int j = 0; j < 4; ++j) parts[i][j] = std::fma(left[i][c], right[j][c], parts[i][j]);
      }
#pragma unroll
      for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) sums[i][j] += parts[i][j];
    });
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j) store(row + kStep * i, col + kStep * j, sums[i][j]);
  }
}

}  // namespace semimatch
