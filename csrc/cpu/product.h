// Product of two matrices of one thread, for the loops that are compiled once for each instruction set. Nothing is
// packed: operands are small enough for the caches, or are streamed once.
//
// An entry is a sum in the order of k, by parts of kPart terms, each taken by itself: it does not depend on what else
// is computed, nor by how many threads. That of gemm.h promises no such thing, and will not do where scores are formed
// a second time for their gradient: exp(score - logsumexp) feels the last bit of a large score.
#pragma once

#include "../matrices.h"
#include "vec.h"

namespace semimatch {
namespace SEMIMATCH_CPU {

// kRows x kVecs vectors of the result stay in registers: 24 of the 32 of AVX-512, 12 of 16 elsewhere.
constexpr int kProductRows = kVectorBytes == 64 ? 12 : 6, kProductVecs = 2;

template <int kRows, int kVecs, class V, class A>
SEMIMATCH_FN void product_block(const A* a, const Factor<A>& left, const A* b, int64_t b_step, int64_t depth, A* out,
                                int64_t out_step, bool add) {
  constexpr int kLanes = sizeof(V) / sizeof(A);
  V sum[kRows][kVecs] = {};
  for (int64_t k = 0; k < depth; ++k) {
    V right[kVecs];
#pragma GCC unroll 4
    for (int j = 0; j < kVecs; ++j) std::memcpy(&right[j], b + k * b_step + j * kLanes, sizeof(V));
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      const V x = a[i * left.row + k * left.col] - V{};  // + would be one more addition, for the sign of 0
#pragma GCC unroll 4
      for (int j = 0; j < kVecs; ++j) sum[i][j] += x * right[j];
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < kVecs; ++j) {
      A* const to = out + i * out_step + j * kLanes;
      V before;
      if (add) {
        std::memcpy(&before, to, sizeof(V));
        sum[i][j] += before;
      }
      std::memcpy(to, &sum[i][j], sizeof(V));
    }
  }
}

template <int kRows, class V, class A>
SEMIMATCH_FN void product_rows(const A* a, const Factor<A>& left, const A* b, int64_t b_step, int64_t depth, A* out,
                               int64_t out_step, int64_t width, bool add) {
  constexpr int kLanes = sizeof(V) / sizeof(A), kStep = kProductVecs * kLanes;
  int64_t j = 0;
  for (; j + kStep <= width; j += kStep)
    product_block<kRows, kProductVecs, V>(a, left, b + j, b_step, depth, out + j, out_step, add);
  for (; j < width; j += kLanes) product_block<kRows, 1, V>(a, left, b + j, b_step, depth, out + j, out_step, add);
}

// out [rows, width] (+)= left [rows, depth] x b [depth, width]; rows of b and of out are b_step and out_step apart, and
// width is whole vectors.
template <class V, class A>
void product(int64_t rows, int64_t width, int64_t depth, const Factor<A>& left, const A* b, int64_t b_step, A* out,
             int64_t out_step, bool add) {
  constexpr int64_t kPart = 256;
  for (int64_t k = 0; k < depth; k += kPart) {
    const int64_t part = depth - k < kPart ? depth - k : kPart;
    const A* const a = left.data + k * left.col;
    const A* const from = b + k * b_step;
    const bool sum = add || k > 0;
    int64_t i = 0;
    for (; i + kProductRows <= rows; i += kProductRows)
      product_rows<kProductRows, V>(a + i * left.row, left, from, b_step, part, out + i * out_step, out_step, width,
                                    sum);
    for (; i < rows; ++i)
      product_rows<1, V>(a + i * left.row, left, from, b_step, part, out + i * out_step, out_step, width, sum);
  }
}

}  // namespace SEMIMATCH_CPU
}  // namespace semimatch
