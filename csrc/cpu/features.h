// What the CPU ops from features share: the correlation [B,S,T] is formed a tile at a time, all source cells by a few
// target cells, used where it lies, and dropped.
//
// Memory: the normalised source features, one tile a thread, and for the gradient as much again as those features.
#pragma once

#include <algorithm>
#include <tuple>
#include <vector>

#include "../feature_tensors.h"
#include "columns.h"
#include "dispatch.h"
#include "features_kernels.h"
#include "memory.h"
#include "tensors.h"
#include "work.h"

namespace semimatch {

// A view of features [B,C,N]; the mask, contiguous [B,N], may be null.
template <class T>
typename CpuFeatures<T>::Map feature_map(const Tensor& features, const bool* mask,
                                         const Normalizer<typename CpuFeatures<T>::A>& normalizer, bool rounded) {
  STD_TORCH_CHECK(features.size(2) <= std::numeric_limits<int32_t>::max(), "semimatch: a side has 2^31 cells or more");
  return {data_of<const T>(features),
          features.size(1),
          features.size(2),
          features.stride(0),
          features.stride(1),
          features.stride(2),
          mask,
          normalizer,
          rounded};
}

// A mask [B,N] as contiguous bool, undefined where there is none; and its data.
inline Tensor mask_of(const OptionalTensor& mask, int64_t batch, int64_t cells, const char* name) {
  return mask ? per_cell(*mask, batch, cells, ScalarType::Bool, name) : Tensor();
}
inline const bool* data_of_mask(const OptionalTensor& given, const Tensor& mask) {
  return given ? data_of<const bool>(mask) : nullptr;
}

template <class T>
class FeatureTiles {
 public:
  using A = typename CpuFeatures<T>::A;
  using Map = typename CpuFeatures<T>::Map;

  FeatureTiles(const Map& src, const Map& trg, int64_t batch)
      : src_(src),
        trg_(trg),
        batch_(batch),
        channels_(ceil_div(src.channels, kernels_.lanes) * kernels_.lanes),
        step_((channels_ / kernels_.lanes | 1) * kernels_.lanes),
        per_batch_(ceil_div(trg.cells, kColumns)),
        rows_(batch * src.cells, step_ * int64_t(sizeof(A)), Scratch::kGiveBack) {
    for_pieces(batch, src.cells, kColumns, [&](int64_t b, int64_t s0, int64_t s1) {
      kernels_.cells_by_channels(src_, b, s0, s1 - s0, row(rows_, b, s0), step_);
    });
  }

  // Calls f(tile) for each tile, on torch's threads.
  template <class F>
  void forward(const F& f) const {
    parallel(0, batch_ * per_batch_, [&](int64_t begin, int64_t end) {
      const Scratch memory(src_.cells, kColumns * sizeof(A), Scratch::kGiveBack);
      const Scratch columns(src_.channels, kColumns * sizeof(A));
      for (int64_t i = begin; i < end; ++i) {
        const Columns<A> tile = tile_at(i, memory.at(0));
        form(tile, columns);
        f(tile);
      }
    });
  }

  // Gradients by the features src and trg. f(tile) turns the entries of the tile, which it finds there if `formed`,
  // into the gradients by them. Once only: it gives the normalised features back.
  template <class F>
  std::tuple<Tensor, Tensor> backward(bool formed, const F& f, const Tensor& src, const Tensor& trg) {
    const Tensor grad_trg = new_contiguous(trg, new_large);
    const Scratch sums = gradients(formed, f, data_of<T>(grad_trg));
    rows_ = Scratch(0, 0);
    // Not before: it takes the place of what is not needed any more.
    const Tensor grad_src = new_contiguous(src, new_large);
    for_pieces(batch_, src_.cells, kColumns, [&](int64_t b, int64_t s0, int64_t s1) {
      kernels_.gradient(src_, b, s0, s1 - s0, {row(sums, b, s0), step_, 1},
                        data_of<T>(grad_src) + b * src_.channels * src_.cells);
    });
    return {grad_src, grad_trg};
  }

 private:
  // Writes the gradient by the target features, and returns that by the normalised source features. Tiles are taken by
  // rounds: those of a round by themselves, then source cells by themselves, to which the tiles are added in order.
  template <class F>
  Scratch gradients(bool formed, const F& f, T* grad_trg) const {
    const int64_t tiles = batch_ * per_batch_, tile_bytes = src_.cells * kColumns * int64_t(sizeof(A));
    const int64_t round = std::min(tiles, torch::stable::get_num_threads() * std::max(int64_t(1), kRound / tile_bytes));
    Scratch sums(batch_ * src_.cells, step_ * int64_t(sizeof(A)), Scratch::kGiveBack);
    const Scratch entries(round, tile_bytes, Scratch::kGiveBack);
    const Scratch goals(round, kColumns * step_ * int64_t(sizeof(A)), Scratch::kGiveBack);
    for (int64_t from = 0; from < tiles; from += round) {
      const int64_t to = std::min(from + round, tiles);
      parallel(from, to, [&](int64_t begin, int64_t end) {
        const Scratch columns(src_.channels, kColumns * sizeof(A));
        for (int64_t i = begin; i < end; ++i) {
          const Columns<A> tile = tile_at(i, entries.at(i - from));
          if (formed) form(tile, columns);
          f(tile);
          kernels_.cells_by_channels(trg_, tile.b, tile.first, tile.cells, static_cast<A*>(goals.at(i - from)), step_);
          A* const by_cell = static_cast<A*>(columns.at(0));
          kernels_.product(src_.channels, tile.step, src_.cells, {row(rows_, tile.b, 0), 1, step_}, tile.data,
                           tile.step, by_cell, tile.step, false);
          kernels_.gradient(trg_, tile.b, tile.first, tile.cells, {by_cell, 1, tile.step},
                            grad_trg + tile.b * trg_.channels * trg_.cells);
        }
      });
      const int64_t b0 = from / per_batch_, b1 = (to - 1) / per_batch_ + 1;
      for_pieces(b1 - b0, src_.cells, kRows, [&](int64_t k, int64_t s0, int64_t s1) {
        const int64_t b = b0 + k;
        for (int64_t i = std::max(from, b * per_batch_); i < std::min(to, (b + 1) * per_batch_); ++i) {
          const Columns<A> tile = tile_at(i, entries.at(i - from));
          kernels_.product(s1 - s0, channels_, tile.cells, {tile.data + s0 * tile.step, tile.step, 1},
                           static_cast<const A*>(goals.at(i - from)), step_, row(sums, b, s0), step_, tile.first > 0);
        }
      });
    }
    return sums;
  }

  static constexpr int64_t kRows = 48;            // source cells whose gradient is summed at a time
  static constexpr int64_t kRound = 1024 * 1024;  // bytes of a thread's tiles in a round, where one has less

  A* row(const Scratch& memory, int64_t b, int64_t s) const { return static_cast<A*>(memory.at(b * src_.cells + s)); }

  Columns<A> tile_at(int64_t i, void* memory) const {
    const int64_t first = i % per_batch_ * kColumns, cells = std::min(kColumns, trg_.cells - first);
    return {static_cast<A*>(memory), ceil_div(cells, kernels_.lanes) * kernels_.lanes, i / per_batch_, first, cells};
  }

  void form(const Columns<A>& tile, const Scratch& memory) const {
    A* const columns = static_cast<A*>(memory.at(0));
    kernels_.channels_by_cells(trg_, tile.b, tile.first, tile.cells, columns, tile.step);
    kernels_.product(src_.cells, tile.step, src_.channels, {row(rows_, tile.b, 0), step_, 1}, columns, tile.step,
                     tile.data, tile.step, false);
    for (int64_t s = 0; src_.mask != nullptr && s < src_.cells; ++s)
      if (!src_.mask[tile.b * src_.cells + s])
        std::fill_n(tile.data + s * tile.step, tile.step, -std::numeric_limits<A>::infinity());
    if (trg_.mask == nullptr) return;
    const bool* const mask = trg_.mask + tile.b * trg_.cells + tile.first;
    bool keep[kColumns] = {};
    std::copy_n(mask, tile.cells, keep);
    if (!std::all_of(mask, mask + tile.cells, [](bool valid) { return valid; }))
      kernels_.exclude(tile.data, src_.cells, tile.step, keep);
  }

  const FeaturesKernels<T> kernels_ = SEMIMATCH_BEST(features_kernels<T>());
  const Map src_, trg_;
  const int64_t batch_;
  // Channels in whole vectors, and from one cell to the next: an odd number of vectors, as rows that are a power of two
  // apart get into each other's way in the cache.
  const int64_t channels_, step_;
  const int64_t per_batch_;  // tiles of a batch element
  Scratch rows_;             // normalised source features, [batch, S, step_]
};

}  // namespace semimatch
