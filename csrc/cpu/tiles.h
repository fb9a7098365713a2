// Square tiles of a matrix in vectors of rows, whichever of its sides is contiguous in memory. For the loops that are
// compiled once for each instruction set.
#pragma once

#include <utility>

#include "../matrices.h"
#include "vec.h"

namespace semimatch {
namespace SEMIMATCH_CPU {

// Lane i of the result is lane i / 2 of `a` or `b`, in turn, from their lower or their upper halves.
template <int kFirst, class V, class VIndex, int... kLane>
SEMIMATCH_FN V interleave(const V& a, const V& b, std::integer_sequence<int, kLane...>) {
  constexpr int kCount = sizeof...(kLane);
  return __builtin_shuffle(a, b, VIndex{(kFirst + kLane / 2 + (kLane % 2) * kCount)...});
}

// Transposes the square of kCount vectors of kCount lanes: each round of interleaving moves one bit of the row number
// to the column number.
template <int kCount, class V>
SEMIMATCH_FN void transpose(V* tile) {
  using VIndex = typename Number<V>::Index;
  constexpr auto kLanes = std::make_integer_sequence<int, kCount>();
#pragma GCC unroll 4
  for (int width = 1; width < kCount; width *= 2) {
    V next[kCount];
#pragma GCC unroll 16
    for (int i = 0; i < kCount / 2; ++i) {
      next[2 * i] = interleave<0, V, VIndex>(tile[i], tile[i + kCount / 2], kLanes);
      next[2 * i + 1] = interleave<kCount / 2, V, VIndex>(tile[i], tile[i + kCount / 2], kLanes);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kCount; ++i) tile[i] = next[i];
  }
}

// One matrix of a batch.
template <class T>
struct Plane {
  const T* data;
  int64_t stride_row, stride_col;
  SEMIMATCH_FN const T* at(int64_t row, int64_t col) const { return data + row * stride_row + col * stride_col; }
};

// Loads `rows` <= kTall rows of `lanes` entries from (row, col) on; what is not loaded is -inf, or left as it was. Only
// whole squares are transposed.
template <int kTall, class T, class V>
SEMIMATCH_FN void load_tile(const Plane<T>& from, int64_t row, int64_t col, int rows, int lanes, V* tile) {
  constexpr int kCount = kLanes<T>;
  if (from.stride_col == 1 && lanes == kCount) {
    for (int i = 0; i < rows; ++i) tile[i] = load<true>(from.at(row + i, col), 1, lanes);
    return;
  }
  if constexpr (kTall == kCount) {
    if (from.stride_row == 1 && lanes == kCount && rows == kCount) {
      for (int i = 0; i < kCount; ++i) tile[i] = load<true>(from.at(row, col + i), 1, lanes);
      return transpose<kCount>(tile);
    }
  }
  for (int i = 0; i < rows; ++i) tile[i] = load<false>(from.at(row + i, col), from.stride_col, lanes);
}

}  // namespace SEMIMATCH_CPU
}  // namespace semimatch
