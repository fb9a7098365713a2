// What the host code of `correlation` and its gradient shares on any device: arguments and their checks, no further
// than memory safety needs.
#pragma once

#include <string>
#include <vector>

#include "correlation.h"
#include "feature_tensors.h"

namespace semimatch {

using Levels = std::vector<Tensor>;

// Of both ops; src and trg hold one tensor [B,C,N] a level.
struct CorrelationArguments {
  std::string normalize;
  double eps;
  std::string scale;
  Epilogue epilogue;
  ScalarType out_type;
};

inline void check_levels(const Levels& src, const Levels& trg, const CorrelationArguments& a) {
  STD_TORCH_CHECK(!src.empty() && src.size() == trg.size(),
                  "semimatch: src and trg must have as many levels, at least 1");
  STD_TORCH_CHECK(a.epilogue.power >= 1, "semimatch: power must be at least 1");
  for (size_t l = 0; l < src.size(); ++l) {
    check_features(src[l], trg[l]);
    STD_TORCH_CHECK(src[l].scalar_type() == src[0].scalar_type() && src[l].size(0) == src[0].size(0) &&
                        src[l].size(2) == src[0].size(2) && trg[l].size(2) == trg[0].size(2),
                    "semimatch: levels must have one dtype, batch and number of cells");
  }
}

}  // namespace semimatch
