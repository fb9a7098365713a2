// The maths of the forward-backward check: whether the match of a cell points back to it. In float32 and rounded step
// by step as the reference does it, since a sum that meets its bound exactly is common.
#pragma once

#include "common.h"

namespace semimatch {

struct Consistency {
  Grid own, other;         // of the cells that are checked, and of those they are matched to
  float scale_x, scale_y;  // cells of the own grid in one of the other, corner to corner
  float alpha1, alpha2;
  bool bilinear;  // the way back is sampled as the release does, else it starts in the cell that was matched
};

struct Flow {
  float x, y;
};

SEMIMATCH_FN Consistency make_consistency(Grid own, Grid other, double alpha1, double alpha2, bool bilinear) {
  const auto scale = [](int a, int b) { return b > 1 ? float(double(a - 1) / double(b - 1)) : 1.0f; };
  return {own,           other,   scale(own.width, other.width), scale(own.height, other.height), float(alpha1),
          float(alpha2), bilinear};
}

SEMIMATCH_FN Flow cell_xy(int64_t cell, Grid grid) { return {float(cell % grid.width), float(cell / grid.width)}; }

// The flow of cell `start` of the other grid, whose match is the own cell `goal`, in cells of the own grid.
SEMIMATCH_FN Flow flow_back(const Consistency& c, int64_t start, int64_t goal) {
  const Flow from = cell_xy(start, c.other), to = cell_xy(goal, c.own);
  return {to.x - product(from.x, c.scale_x), to.y - product(from.y, c.scale_y)};
}

// Where the release reads the flow of cell `at` of n: corner-aligned, but taken for cell-centred.
SEMIMATCH_FN float released_position(float at, int n) {
  const float corner = product(2.0f, at) / float(n > 1 ? n - 1 : 1) - 1.0f;
  return product(corner + 1.0f, float(n) / 2.0f) - 0.5f;
}

// The flow back from where cell `cell` of the other grid is read, with zeros outside. matches[i] is that of cell i.
template <class Matches>
SEMIMATCH_FN Flow sampled_back(const Consistency& c, int64_t cell, const Matches& matches) {
  const Flow at = cell_xy(cell, c.other);
  const float x = released_position(at.x, c.other.width), y = released_position(at.y, c.other.height);
  const float left = std::floor(x), top = std::floor(y);
  const float to_left = x - left, to_right = 1.0f - to_left, to_top = y - top, to_bottom = 1.0f - to_top;
  const float weights[4] = {to_right * to_bottom, to_left * to_bottom, to_right * to_top, to_left * to_top};
  Flow sum = {0.0f, 0.0f};
  for (int corner = 0; corner < 4; ++corner) {
    const int cx = int(left) + corner % 2, cy = int(top) + corner / 2;
    if (cx < 0 || cx >= c.other.width || cy < 0 || cy >= c.other.height) continue;
    const int64_t start = int64_t(cy) * c.other.width + cx;
    const Flow flow = flow_back(c, start, matches[start]);
    sum = {sum.x + product(flow.x, weights[corner]), sum.y + product(flow.y, weights[corner])};
  }
  return sum;
}

SEMIMATCH_FN float squared(Flow f) { return product(f.x, f.x) + product(f.y, f.y); }

// Whether the own cell `cell`, matched to `match` of the other grid, is consistent; matches[i] is the match of cell i
// of the other grid.
template <class Matches>
SEMIMATCH_FN bool consistent(const Consistency& c, int64_t cell, int64_t match, const Matches& matches) {
  const Flow here = cell_xy(cell, c.own), there = cell_xy(match, c.other);
  const Flow flow = {product(there.x, c.scale_x) - here.x, product(there.y, c.scale_y) - here.y};
  const Flow back = c.bilinear ? sampled_back(c, match, matches) : flow_back(c, match, matches[match]);
  const float sizes = squared(flow) + squared(back);
  return squared({flow.x + back.x, flow.y + back.y}) <= product(c.alpha1, sizes) + c.alpha2;
}

}  // namespace semimatch
