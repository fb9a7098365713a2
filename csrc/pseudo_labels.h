// The maths of `pseudo_labels` beside those of `match` and of the forward-backward check.
#pragma once

#include "match.h"

namespace semimatch {

// What an entry adds to minus the entropy of its column where eps is added to each probability: (p + eps) ln(p + eps).
// `top` is the column's largest entry and `score` its probability, 0 where every entry is excluded.
template <class V>
SEMIMATCH_FN V entropy_term(V c, V top, V score, typename Number<V>::Scalar scale, typename Number<V>::Scalar eps) {
  const V p = Number<V>::exp2(exponent(c, top, scale)) * score + eps;
  return p * Number<V>::log(p);
}

// Cells (x1, y1) to (x2, y2), both included.
struct Box {
  double x1, y1, x2, y2;
  SEMIMATCH_FN bool holds(int64_t cell, Grid grid) const {
    const double x = double(cell % grid.width), y = double(cell / grid.width);
    return x >= x1 && x <= x2 && y >= y1 && y <= y2;
  }
};

}  // namespace semimatch
