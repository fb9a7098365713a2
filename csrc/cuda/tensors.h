// The element types of tensors on CUDA, and views of them that kernels take; what else is needed is in ../tensors.h.
#pragma once

#include <type_traits>

#include "../tensors.h"
#include "launch.h"

namespace semimatch {

// The accumulate type of an element type.
template <class T>
using Wide = std::conditional_t<std::is_same_v<T, double>, double, float>;

// To and from the accumulate type.
template <class A, class T>
SEMIMATCH_FN A widen(T value) {
  return static_cast<A>(value);
}
template <class T, class A>
SEMIMATCH_FN T narrow(A value) {
  return static_cast<T>(value);
}

// Blocks of 256 threads that should fit on a multiprocessor: leaves 64 (double: 128) registers to a thread.
template <class A>
constexpr int kBlocksPerSm = sizeof(A) == 8 ? 2 : 4;

// Calls f(T{}) for the element type T of `corr`.
template <class F>
void with_cuda_type(const Tensor& corr, const F& f) {
  switch (corr.scalar_type()) {
    case ScalarType::Float: return f(float{});
#ifndef SEMIMATCH_FLOAT_ONLY  // for the emulator under the address sanitizer, which compiles slowly
    case ScalarType::Double: return f(double{});
    case ScalarType::Half: return f(__half{});
    case ScalarType::BFloat16: return f(__nv_bfloat16{});
#endif
    default: STD_TORCH_CHECK(false, "semimatch: corr must be float32, float64, float16 or bfloat16");
  }
}

// One number a cell, [batch, cells], any strides; null stands for none.
template <class X>
struct Cells {
  const X* data;
  int64_t stride_batch, stride_cell;
  SEMIMATCH_FN X at(int64_t b, int64_t i) const { return data[b * stride_batch + i * stride_cell]; }
};

// `t` in this type; a copy where it has another.
inline Tensor in_type(const Tensor& t, ScalarType type) {
  return t.scalar_type() == type ? t : torch::stable::to(t, type);
}

template <class X>
Cells<X> cells_of(const Tensor& t, int64_t batch, int64_t cells, const char* name) {
  STD_TORCH_CHECK(t.dim() == 2 && t.size(0) == batch && t.size(1) == cells, "semimatch: ", name, " must be [", batch,
                  ", ", cells, "]");
  return {data_of<const X>(t), t.stride(0), t.stride(1)};
}

// Memory for kernels, in the order of allocation of PyTorch's stream: arrays of several types from one tensor.
class Workspace {
  Tensor memory_;
  int64_t used_ = 0;

 public:
  Workspace(const Tensor& like, int64_t bytes, int arrays)
      : memory_(new_tensor(like, {bytes + 16 * arrays}, ScalarType::Byte)) {}
  template <class X>
  X* take(int64_t count) {
    X* const at = reinterpret_cast<X*>(data_of<char>(memory_) + used_);
    used_ += (count * int64_t(sizeof(X)) + 15) / 16 * 16;
    return at;
  }
};

}  // namespace semimatch
