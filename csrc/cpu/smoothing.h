// The tables of a Smoothing (contrastive.h), for the ops that take a smoothed label.
#pragma once

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "../contrastive.h"

namespace semimatch {

class SmoothingTables {
  std::vector<double> weights_;
  Smoothing smoothing_;

 public:
  SmoothingTables(int64_t cells, int64_t width, double sigma, int64_t radius) {
    if (sigma == 0) return;
    STD_TORCH_CHECK(width > 0 && cells % width == 0 && radius >= 0, "semimatch: the cells that are reduced over (",
                    cells, ") must be whole rows of width ", width, ", and the radius at least 0");
    smoothing_.grid = {int(cells / width), int(width)};
    smoothing_.radius = int(std::min(radius, std::max(width, cells / width) - 1));
    for (int d = 0; d <= smoothing_.radius; ++d) weights_.push_back(std::exp(-(double(d) * d) / (2 * sigma * sigma)));
    smoothing_.weights = weights_.data();
  }
  const Smoothing& get() const { return smoothing_; }
};

}  // namespace semimatch
