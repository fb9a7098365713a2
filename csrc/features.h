// The maths of normalising feature vectors, for every op that starts from features, and its gradient.
#pragma once

#include <cmath>

#include "common.h"

namespace semimatch {

// By what a vector whose squares sum to q is multiplied: 1, 1 / sqrt(q + eps), 1 / (sqrt(q) + eps), 1 / max(sqrt(q),
// eps).
enum class Normalize { kNone, kInside, kAdded, kClamped };

template <class A>
struct Normalizer {
  Normalize how;
  A eps;
  A scale;  // what both kinds of features, normalised or not, are multiplied by on top

  SEMIMATCH_FN A factor(A squares) const {
    if (how == Normalize::kNone) return A(1);
    if (how == Normalize::kInside) return A(1) / std::sqrt(squares + eps);
    const A norm = std::sqrt(squares);
    if (how == Normalize::kAdded) return A(1) / (norm + eps);
    return A(1) / (norm < eps ? eps : norm);
  }

  // With g the gradient by the normalised vector f = factor x, that by x is factor (g - (g . f) slope x): slope x is
  // the direction in which the factor changes. The zero vector has none.
  SEMIMATCH_FN A slope(A squares) const {
    if (how == Normalize::kNone) return A(0);
    if (how == Normalize::kInside) return factor(squares);
    const A norm = std::sqrt(squares);
    if (norm == A(0) || (how == Normalize::kClamped && norm < eps)) return A(0);
    return A(1) / norm;
  }
};

}  // namespace semimatch
