// Interface between the CPU ops from features (features.h: memory, threads, choice of instruction set) and the loops
// that they share (features_kernels.cpp: compiled once for each instruction set).
#pragma once

#include "../features.h"
#include "../matrices.h"
#include "types.h"

namespace semimatch {

template <class T>
struct CpuFeatures {
  using A = typename Accumulate<T>::Type;

  // Features of one side [batch, channels, cells], any strides.
  struct Map {
    const T* data;
    int64_t channels, cells;
    int64_t stride_batch, stride_channel, stride_cell;
    const bool* mask;  // [batch, cells], null where every cell is valid
    Normalizer<A> normalizer;
    bool rounded;  // normalised features are rounded to T, as the definition has them
  };

  // Numbers of cells [first, first + count) of a side: those of cell i and channel c at data[i * cell + c * channel].
  struct Numbers {
    A* data;
    int64_t cell, channel;
  };

  struct Kernels {
    int lanes;  // numbers of a vector
    // Normalised features of cells [first, first + count), channels next to each other or cells next to each other.
    // Zero where the mask is false; what is left of the last vector is zero.
    void (*cells_by_channels)(const Map&, int64_t b, int64_t first, int64_t count, A* to, int64_t step);
    void (*channels_by_cells)(const Map&, int64_t b, int64_t first, int64_t count, A* to, int64_t step);
    // The gradient of the same cells by the features, given that by the normalised ones; grad [channels, cells] is that
    // of the batch element.
    void (*gradient)(const Map&, int64_t b, int64_t first, int64_t count, const Numbers&, T* grad);
    // out [rows, width] = left [rows, depth] x right [depth, width], or added to it; width is whole vectors.
    void (*product)(int64_t rows, int64_t width, int64_t depth, const Factor<A>& left, const A* right,
                    int64_t right_step, A* out, int64_t out_step, bool add);
    // Entries become -inf where the mask of their column is false; `step` columns, whole vectors.
    void (*exclude)(A* tile, int64_t rows, int64_t step, const bool* mask);
  };
};

template <class T>
using FeaturesKernels = typename CpuFeatures<T>::Kernels;
SEMIMATCH_DECLARE_KERNELS(FeaturesKernels, features_kernels)

}  // namespace semimatch
