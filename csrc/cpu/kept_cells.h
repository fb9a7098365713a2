// Those target cells of a loss that count, next to each other: products with the others are not formed.
#pragma once

#include <algorithm>
#include <vector>

#include "tensors.h"
#include "work.h"

namespace semimatch {

class KeptCells {
 public:
  // Cells with a label that is not negative, and in the mask where there is one. `mask` may be null.
  KeptCells(const int64_t* labels, const bool* mask, int64_t batch, int64_t cells)
      : batch_(batch), cells_(cells), order_(batch) {
    for (int64_t i = 0; i < batch * cells; ++i)
      if (labels[i] >= 0 && (mask == nullptr || mask[i])) order_[i / cells].push_back(i % cells);
    for (const auto& order : order_) most_ = std::max(most_, int64_t(order.size()));
  }

  // Whether they are so few that moving them pays.
  bool few() const { return most_ < cells_ - cells_ / 8; }

  // The most that a batch element has, at least 1: places beyond an element's own count hold `fill`.
  int64_t most() const { return most_; }

  // t [B,T] or [B,C,T], any strides, -> contiguous [B,most] or [B,C,most].
  template <class E>
  Tensor gather(const Tensor& t, E fill) const {
    const bool deep = t.dim() == 3;
    const int64_t rows = deep ? t.size(1) : 1, row_stride = deep ? t.stride(1) : 0, stride = t.stride(t.dim() - 1);
    const Tensor result = deep ? new_tensor(t, {batch_, rows, most_}) : new_tensor(t, {batch_, most_});
    for_rows(rows, [&](int64_t b, int64_t r) {
      const E* const from = data_of<const E>(t) + b * t.stride(0) + r * row_stride;
      E* const to = data_of<E>(result) + (b * rows + r) * most_;
      const auto& order = order_[b];
      for (size_t k = 0; k < order.size(); ++k) to[k] = from[order[k] * stride];
      std::fill(to + order.size(), to + most_, fill);
    });
    return result;
  }

  // The way back, from contiguous; cells that do not count get zero.
  template <class E>
  Tensor scatter(const Tensor& t) const {
    const bool deep = t.dim() == 3;
    const int64_t rows = deep ? t.size(1) : 1;
    const Tensor result = deep ? new_tensor(t, {batch_, rows, cells_}) : new_tensor(t, {batch_, cells_});
    for_rows(rows, [&](int64_t b, int64_t r) {
      const E* const from = data_of<const E>(t) + (b * rows + r) * most_;
      E* const to = data_of<E>(result) + (b * rows + r) * cells_;
      const auto& order = order_[b];
      std::fill_n(to, cells_, E{});
      for (size_t k = 0; k < order.size(); ++k) to[order[k]] = from[k];
    });
    return result;
  }

 private:
  template <class F>
  void for_rows(int64_t rows, const F& f) const {
    for_pieces(batch_, rows, rows_per_piece(cells_), [&](int64_t b, int64_t r0, int64_t r1) {
      for (int64_t r = r0; r < r1; ++r) f(b, r);
    });
  }

  int64_t batch_, cells_, most_ = 1;
  std::vector<std::vector<int64_t>> order_;
};

}  // namespace semimatch
