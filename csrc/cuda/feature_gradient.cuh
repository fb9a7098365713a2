// The gradient by features from that by the entries of their correlation, which are formed again a tile at a time.
//
// A block has 64 cells of one side and up to 256 of the channels, whose sums stay in its registers while it goes over
// the other side in order. With more channels each block of them forms the tiles again: 256 at a time that costs about
// as much as the products with the slopes themselves, and needs neither atomics nor memory for partial sums.
#pragma once

#include "features.cuh"

namespace semimatch {

// Features of the other side by which slopes are multiplied at a time.
template <class T>
constexpr int kSlice = sizeof(T) == 2   ? 32
                       : sizeof(T) == 4 ? 16
                                        : 8;
template <class T>
using Slice = T[kSlice<T>][kChannels<Wide<T>> + kWide<T>];

// A thread's part of the sums of kTile cells and kChannels channels. In tensor cores, with g = lane / 4, t = lane % 4:
// [m][n][i] is cell 16 m + g (i >= 2: + 8), channel 8 (warp + 8 n) + 2 t + i % 2. Else [i][j] is cell y + 16 i, channel
// x + 16 j, of 16 x 16 threads.
template <class T, bool kCores = kInTensorCores<T>>
struct CellSums {
  static constexpr int kWarps = kTileThreads / kWarp, kOfCells = kTile / 16,
                       kOfChannels = kChannels<float> / 8 / kWarps;
  static constexpr bool kTwice = std::is_same_v<T, __half>;  // multiplies what rounding the slope leaves, too
  float sums[kOfCells][kOfChannels][4] = {};

  // Adds slopes [kTile, from k] x slice, of which `channels` exist.
  __device__ __forceinline__ void add(const FeatureTile<float>& slopes, int k, const Slice<T>& slice,
                                      int64_t channels) {
    const int lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4, warp = threadIdx.x / kWarp;
#pragma unroll
    for (int depth = 0; depth < kSlice<T>; depth += 8) {
      uint32_t a[kOfCells][4];
      uint32_t rest[kTwice ? kOfCells : 1][4];
#pragma unroll
      for (int m = 0; m < kOfCells; ++m)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float slope = slopes[16 * m + g + i % 2 * 8][k + depth + t + i / 2 * 4], rounded = tf32(slope);
          a[m][i] = bits_of(rounded);
          if constexpr (kTwice) rest[m][i] = bits_of(tf32(slope - rounded));
        }
#pragma unroll
      for (int n = 0; n < kOfChannels; ++n) {
        const int channel = 8 * (warp + kWarps * n);
        if (channel >= channels) break;  // the whole warp
        const uint32_t b[2] = {bits_of(widen<float>(slice[depth + t][channel + g])),
                               bits_of(widen<float>(slice[depth + t + 4][channel + g]))};
#pragma unroll
        for (int m = 0; m < kOfCells; ++m) {
          if constexpr (kTwice) add_product_of_tf32(sums[m][n], rest[m], b);
          add_product_of_tf32(sums[m][n], a[m], b);
        }
      }
    }
  }

  // Calls f(cell, channel, sum).
  template <class F>
  __device__ __forceinline__ void each(const F& f) const {
    const int lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4, warp = threadIdx.x / kWarp;
#pragma unroll
    for (int m = 0; m < kOfCells; ++m)
#pragma unroll
      for (int n = 0; n < kOfChannels; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) f(16 * m + g + i / 2 * 8, 8 * (warp + kWarps * n) + 2 * t + i % 2, sums[m][n][i]);
  }
};

template <class T>
struct CellSums<T, false> {
  static constexpr int kStep = 16, kOfCells = kTile / kStep, kOfChannels = kChannels<T> / kStep;
  T sums[kOfCells][kOfChannels] = {};

  __device__ __forceinline__ void add(const FeatureTile<T>& slopes, int k, const Slice<T>& slice, int64_t channels) {
    const int y = threadIdx.x / kStep, x = threadIdx.x % kStep;
#pragma unroll 2
    for (int depth = 0; depth < kSlice<T>; ++depth) {
      T slope[kOfCells];
#pragma unroll
      for (int i = 0; i < kOfCells; ++i) slope[i] = slopes[y + kStep * i][k + depth];
#pragma unroll
      for (int j = 0; j < kOfChannels; ++j) {
        if (kStep * j >= channels) break;  // the whole block
        const T feature = slice[depth][x + kStep * j];
#pragma unroll
        for (int i = 0; i < kOfCells; ++i) sums[i][j] += slope[i] * feature;
      }
    }
  }

  template <class F>
  __device__ __forceinline__ void each(const F& f) const {
#pragma unroll
    for (int i = 0; i < kOfCells; ++i)
#pragma unroll
      for (int j = 0; j < kOfChannels; ++j)
        f(threadIdx.x / kStep + kStep * i, threadIdx.x % kStep + kStep * j, sums[i][j]);
  }
};

// kSlice cells from `cell` and the channels from `channel` on; zero outside.
template <class T>
__device__ __forceinline__ void load_slice(Slice<T>& to, const Vectors<T>& from, int64_t b, int64_t cell,
                                           int64_t channel) {
  constexpr int kPerRow = kChannels<Wide<T>> / kWide<T>;
#pragma unroll
  for (int i = threadIdx.x; i < kSlice<T> * kPerRow; i += kTileThreads) {
    const int n = i / kPerRow, c = i % kPerRow * kWide<T>;
    Words words = {};
    if (cell + n < from.cells && channel + c < from.width)
      words = *reinterpret_cast<const Words*>(from.at(b, cell + n) + channel + c);
    *reinterpret_cast<Words*>(&to[n][c]) = words;
  }
}

// The gradient by the vectors of the kept side: out [batch, kept cells, width]. kPerSource: the source cells are kept.
// Slopes: needs_entries(), whether value looks at the entry, which else is not formed; Line, what entries of a target
// cell share; line(b, t); none(), of a cell that is not there; Place, what those of a source cell share; place(s);
// value(entry, line, s, place), the gradient by an entry: finite, with none() zero, at an entry of -inf.
template <class T, class Slopes, bool kPerSource>
__global__ void __launch_bounds__(kTileThreads, 1)
    features_gradient(Slopes slopes, Vectors<T> kept, Vectors<T> others, int64_t batch, Wide<T>* out) {
  using A = Wide<T>;
  const auto [b, kept0, channel0] = channel_tiling<A>(batch, kept.cells, kept.width).place(blockIdx.x);
  const int64_t channels = kept.width - channel0;
  union Memory {
    Stages<T> stages;
    Slice<T> slice;
  };
  SEMIMATCH_SHARED(memory, Memory);
  SEMIMATCH_SHARED(tile, FeatureTile<A>);
  SEMIMATCH_SHARED(there, There);
  SEMIMATCH_SHARED(lines, typename Slopes::Line[kTile]);
  SEMIMATCH_SHARED(places, typename Slopes::Place[kTile]);
  CellSums<T> sums;
  const int64_t targets = kPerSource ? others.cells : kept.cells;
  for (int64_t other0 = 0; other0 < others.cells; other0 += kTile) {
    const int64_t source0 = kPerSource ? kept0 : other0, target0 = kPerSource ? other0 : kept0;
    if (threadIdx.x < kTile) {
      const int64_t target = target0 + threadIdx.x;
      lines[threadIdx.x] = target < targets ? slopes.line(b, target) : slopes.none();
      places[threadIdx.x] = slopes.place(source0 + threadIdx.x);
    }
    if (slopes.needs_entries()) form_tile<T>(tile, memory.stages, there, kept, others, b, kept0, other0);
    __syncthreads();
    const int col = threadIdx.x % kTile;
#pragma unroll 4
    for (int row = threadIdx.x / kTile; row < kTile; row += kTileThreads / kTile) {
      const int s = kPerSource ? row : col, t = kPerSource ? col : row;
      tile[row][col] = slopes.value(tile[row][col], lines[t], source0 + s, places[s]);
    }
    for (int k = 0; k < kTile; k += kSlice<T>) {
      __syncthreads();
      load_slice(memory.slice, others, b, other0 + k, channel0);
      __syncthreads();
      sums.add(tile, k, memory.slice, channels);
    }
    __syncthreads();
  }
  sums.each([&](int n, int c, A sum) {
    if (kept0 + n < kept.cells && c < channels) out[(b * kept.cells + kept0 + n) * kept.width + channel0 + c] = sum;
  });
}

// The gradient by the features of the kept side.
template <bool kPerSource, class T, class Slopes>
void gradient_of_side(const Slopes& slopes, const FeatureSide<T>& kept, const FeatureSide<T>& others,
                      const Tensor& grad, const OnDevice& device) {
  using A = Wide<T>;
  const int64_t batch = kept.map.batch, cells = kept.map.cells, width = kept.vectors.width;
  const Tensor sums = new_tensor(grad, {batch * cells * width}, accumulate_type(grad));
  launch("features_gradient", features_gradient<T, Slopes, kPerSource>, channels_geometry<A>(batch, cells, width),
         device.stream(), slopes, kept.vectors, others.vectors, batch, data_of<A>(sums));
  launch("features_chain", features_chain<T>, vectors_geometry(batch, cells), device.stream(), kept.map,
         data_of<A>(sums), width, kept.factors, kept.slopes, data_of<T>(grad));
}

}  // namespace semimatch
