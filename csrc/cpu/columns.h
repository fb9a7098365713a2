// Columns of a correlation as the loops take them that need the whole of a column more than once.
#pragma once

#include <cstdint>

namespace semimatch {

// All source cells by the target cells [first, first + cells) of batch element b, in the accumulate type: entry (s,
// first + i) is data[s * step + i]. The columns from `cells` to `step`, whole vectors, are there and mean nothing.
template <class A>
struct Columns {
  A* data;
  int64_t step, b, first, cells;
};

constexpr int64_t kColumns = 64;  // that are taken at a time: four vectors of AVX-512, a tile that a core's cache holds

}  // namespace semimatch
