// What the host code of ops needs of PyTorch's tensors, on any device: views as matrices, small arguments, gradients.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <limits>
#include <optional>
#include <vector>

#include "matrices.h"

namespace semimatch {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

inline ScalarType accumulate_type(const Tensor& corr) {
  return corr.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// A tensor [batch, cells] of one number a cell, contiguous and of this type; it is copied where it is not.
inline Tensor per_cell(const Tensor& t, int64_t batch, int64_t cells, ScalarType type, const char* name) {
  STD_TORCH_CHECK(t.dim() == 2 && t.size(0) == batch && t.size(1) == cells, "semimatch: ", name, " must be [", batch,
                  ", ", cells, "]");
  return torch::stable::contiguous(t.scalar_type() == type ? t : torch::stable::to(t, type));
}

template <class T>
T* data_of(const Tensor& t) {
  return static_cast<T*>(t.data_ptr());
}

// Whether the source cells of corr [B,S,T] are the closer ones in memory: then the target cells are taken for the rows.
inline bool transposed(const Tensor& corr) { return corr.stride(1) < corr.stride(2); }

// corr [B,S,T] as matrices of [S,T], or with `swap` of [T,S].
template <class T>
Matrices<T> matrices_of(const Tensor& corr, bool swap) {
  const int row = swap ? 2 : 1, col = 3 - row;
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  STD_TORCH_CHECK(corr.size(1) <= kMost && corr.size(2) <= kMost,
                  "semimatch: a side of the correlation has 2^31 cells or more");
  return {data_of<const T>(corr), corr.size(0),     corr.size(row),  corr.size(col),
          corr.stride(0),         corr.stride(row), corr.stride(col)};
}

// As matrices whose columns are the side that is closer in memory.
template <class T>
Matrices<T> matrices_of(const Tensor& corr) {
  return matrices_of<T>(corr, transposed(corr));
}

using NewTensor = Tensor(const Tensor& like, const std::vector<int64_t>& sizes);

// An uninitialised tensor on the device of `like`. By PyTorch's op: aoti_torch_empty_strided takes a few microseconds
// less, but passes by torch.utils.deterministic.fill_uninitialized_memory, by which tests find what is never written.
inline Tensor new_tensor(const Tensor& like, const std::vector<int64_t>& sizes, ScalarType type) {
  return torch::stable::new_empty(like, sizes, type);
}
inline Tensor new_tensor(const Tensor& like, const std::vector<int64_t>& sizes) {
  return new_tensor(like, sizes, like.scalar_type());
}

// An uninitialised gradient in the layout of corr: [B,T,S] seen as [B,S,T] where the source cells are the closer ones.
inline Tensor new_grad(const Tensor& corr, NewTensor* make = new_tensor) {
  const bool swap = transposed(corr);
  const Tensor grad = make(corr, {corr.size(0), corr.size(swap ? 2 : 1), corr.size(swap ? 1 : 2)});
  return swap ? torch::stable::transpose(grad, 1, 2) : grad;
}

}  // namespace semimatch
