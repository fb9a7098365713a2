#include "memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <mutex>

#include "cache.h"

namespace semimatch {
namespace {

// Blocks are whole huge pages, asked for as such: the kernel hands out ordinary ones one by one.
constexpr size_t kLeast = size_t(1) << 20, kHugePage = size_t(2) << 20;

// Blocks of freed tensors. A lock that is held elsewhere is not waited for, but done without: it may be held for ever,
// by a thread that a fork has left behind.
class Cache {
  struct Block {
    void* memory;
    size_t size;
  };
  std::mutex mutex_;
  std::vector<Block> blocks_;  // the longest kept first
  size_t size_ = 0;
  std::atomic<size_t> most_ = 0;

  static void unmap(const std::vector<Block>& blocks) {
    for (const Block& b : blocks) munmap(b.memory, b.size);
  }
  std::vector<Block> shrink(size_t most) {
    std::vector<Block> gone;
    while (size_ > most) {
      gone.push_back(blocks_.front());
      size_ -= blocks_.front().size;
      blocks_.erase(blocks_.begin());
    }
    return gone;
  }

 public:
  // Null where there is none of this size.
  void* take(size_t size) {
    const std::unique_lock lock(mutex_, std::try_to_lock);
    if (!lock) return nullptr;
    const auto last = std::find_if(blocks_.rbegin(), blocks_.rend(), [&](const Block& b) { return b.size == size; });
    if (last == blocks_.rend()) return nullptr;
    void* const memory = last->memory;
    blocks_.erase(std::next(last).base());
    size_ -= size;
    return memory;
  }

  void give(void* memory, size_t size) {
    std::vector<Block> gone = {{memory, size}};
    if (const std::unique_lock lock(mutex_, std::try_to_lock); lock) {
      blocks_.push_back(gone.front());
      size_ += size;
      gone = shrink(most_);
    }
    unmap(gone);
  }

  void limit(size_t most) {
    std::unique_lock lock(mutex_);
    most_ = most;
    const std::vector<Block> gone = shrink(most);
    lock.unlock();
    unmap(gone);
  }

  size_t most() const { return most_; }

  static Cache& get() {
    static Cache* const cache = new Cache;  // never destroyed: tensors may be freed after this library's statics
    return *cache;
  }
};

}  // namespace

size_t cache_limit() { return Cache::get().most(); }
void set_cache_limit(size_t bytes) { Cache::get().limit(bytes); }

Tensor new_large_of(const Tensor& like, const std::vector<int64_t>& sizes, ScalarType type) {
  size_t bytes = type == ScalarType::Double ? 8 : type == ScalarType::Float ? 4 : 2;
  for (const int64_t n : sizes) bytes *= size_t(n);
  const auto ordinary = [&] { return torch::stable::new_empty(like, sizes, type); };
  if (bytes < kLeast || Cache::get().most() == 0) return ordinary();
  const size_t size = (bytes + kHugePage - 1) / kHugePage * kHugePage;
  void* memory = Cache::get().take(size);
  if (memory == nullptr) {
    memory = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return ordinary();  // whose error says how much was asked for
#ifdef MADV_HUGEPAGE
    madvise(memory, size, MADV_HUGEPAGE);
#endif
  }
  std::vector<int64_t> strides(sizes.size(), 1);
  for (size_t i = sizes.size() - 1; i > 0; --i) strides[i - 1] = strides[i] * sizes[i];
  return torch::stable::from_blob(memory, sizes, strides, like.device(), type,
                                  [size](void* p) { Cache::get().give(p, size); });
}

Tensor new_large(const Tensor& like, const std::vector<int64_t>& sizes) {
  return new_large_of(like, sizes, like.scalar_type());
}

}  // namespace semimatch
