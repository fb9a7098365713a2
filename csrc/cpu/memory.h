// Memory of large results on the CPU: kept when their tensor is freed, for the next one of that size.
//
// PyTorch's CPU allocator gives large memory back to the system, which hands it out anew in zeroed pages: for a
// gradient of 33 MB that takes longer than to compute it, and a training step asks for the same sizes again and again.
#pragma once

#include "../tensors.h"

namespace semimatch {

// An uninitialised contiguous tensor on the CPU. Of 1 MiB or more, it takes the place of a freed one of its size.
Tensor new_large_of(const Tensor& like, const std::vector<int64_t>& sizes, ScalarType type);
Tensor new_large(const Tensor& like, const std::vector<int64_t>& sizes);

}  // namespace semimatch
