// What the host code of ops from features needs of PyTorch's tensors, on any device.
#pragma once

#include <string>

#include "features.h"
#include "tensors.h"

namespace semimatch {

template <class A>
Normalizer<A> normalizer_of(const std::string& normalize, double eps, double scale = 1) {
  const auto how = normalize == "inside"    ? Normalize::kInside
                   : normalize == "added"   ? Normalize::kAdded
                   : normalize == "clamped" ? Normalize::kClamped
                                            : Normalize::kNone;
  STD_TORCH_CHECK(how != Normalize::kNone || normalize == "none",
                  "semimatch: normalize must be none, inside, added or clamped");
  return {how, A(eps), A(scale)};
}

inline void check_features(const Tensor& src, const Tensor& trg) {
  STD_TORCH_CHECK(src.dim() == 3 && trg.dim() == 3 && src.scalar_type() == trg.scalar_type() &&
                      src.size(0) == trg.size(0) && src.size(1) == trg.size(1),
                  "semimatch: src and trg must be [B,C,S] and [B,C,T] of the same dtype");
  STD_TORCH_CHECK(src.size(1) > 0 && src.size(2) > 0 && trg.size(2) > 0, "semimatch: src and trg must not be empty");
}

// An uninitialised gradient by features.
inline Tensor new_contiguous(const Tensor& features, NewTensor* make = new_tensor) {
  return make(features, {features.size(0), features.size(1), features.size(2)});
}

}  // namespace semimatch
