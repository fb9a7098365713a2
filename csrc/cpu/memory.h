// Large results of CPU ops, in the memory of earlier ones.
#pragma once

#include "../tensors.h"

namespace semimatch {

// An uninitialised contiguous tensor on the CPU. Of `kLeastBlock` bytes or more, it lies in a block of cache.h, unless
// that keeps nothing.
Tensor new_large_of(const Tensor& like, const std::vector<int64_t>& sizes, ScalarType type);
Tensor new_large(const Tensor& like, const std::vector<int64_t>& sizes);

}  // namespace semimatch
