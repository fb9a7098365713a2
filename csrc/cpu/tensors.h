// The element types of tensors on the CPU; what else their ops need of tensors is in ../tensors.h.
#pragma once

#include "../tensors.h"
#include "types.h"

namespace semimatch {

// Calls f(T{}) for the element type T of `corr`.
template <class F>
void with_type(const Tensor& corr, const F& f) {
  switch (corr.scalar_type()) {
    case ScalarType::Float: return f(float{});
    case ScalarType::Double: return f(double{});
    case ScalarType::Half: return f(Float16{});
    case ScalarType::BFloat16: return f(BFloat16{});
    default: STD_TORCH_CHECK(false, "semimatch: corr must be float32, float64, float16 or bfloat16");
  }
}

}  // namespace semimatch
