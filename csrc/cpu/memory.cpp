#include "memory.h"

#include "cache.h"

namespace semimatch {

Tensor new_large_of(const Tensor& like, const std::vector<int64_t>& sizes, ScalarType type) {
  size_t bytes = type == ScalarType::Double ? 8 : type == ScalarType::Float ? 4 : 2;
  for (const int64_t n : sizes) bytes *= size_t(n);
  void* const block = bytes >= kLeastBlock ? take_block(bytes) : nullptr;
  if (block == nullptr) return new_tensor(like, sizes, type);  // the error says how much was asked for
  std::vector<int64_t> strides(sizes.size(), 1);
  for (size_t i = sizes.size() - 1; i > 0; --i) strides[i - 1] = strides[i] * sizes[i];
  return torch::stable::from_blob(block, sizes, strides, like.device(), type,
                                  [bytes](void* memory) { give_block(memory, bytes); });
}

Tensor new_large(const Tensor& like, const std::vector<int64_t>& sizes) {
  return new_large_of(like, sizes, like.scalar_type());
}

}  // namespace semimatch
