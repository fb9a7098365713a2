// PyTorch's matrix product for `correlation` on the CPU, by its C function, which takes part in no dispatch (autocast
// would take it for one of the user's). Where several tasks of `parallel` call it, each runs on its thread.
//
// The order of its sums is its own affair, and may be another one for another number of threads; it follows
// torch.set_float32_matmul_precision, as that of the definition does. Where that matters there is product.h.
#pragma once

#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>

#include <type_traits>

#include "../tensors.h"

namespace semimatch {

// A matrix of numbers that lie somewhere else, as a tensor.
template <class A>
Tensor view_of(const A* data, int64_t rows, int64_t cols, int64_t row, int64_t col) {
  static_assert(std::is_same_v<A, float> || std::is_same_v<A, double>);
  const int64_t sizes[] = {rows, cols}, strides[] = {row, col};
  AtenTensorHandle result;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_create_tensor_from_blob(
      const_cast<A*>(data), 2, sizes, strides, 0,
      std::is_same_v<A, float> ? aoti_torch_dtype_float32() : aoti_torch_dtype_float64(), aoti_torch_device_type_cpu(),
      0, &result));
  return Tensor(result);
}

// out [rows, width] = left [rows, depth] x right [depth, width]; rows of out are out_step apart.
template <class A>
void gemm(int64_t rows, int64_t width, int64_t depth, const Factor<A>& left, const Factor<A>& right, A* out,
          int64_t out_step) {
  const Tensor result = view_of<A>(out, rows, width, out_step, 1);
  const Tensor a = view_of<A>(left.data, rows, depth, left.row, left.col);
  const Tensor b = view_of<A>(right.data, depth, width, right.row, right.col);
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_mm_out(result.get(), a.get(), b.get()));
}

}  // namespace semimatch
