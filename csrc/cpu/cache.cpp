#include "cache.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <mutex>
#include <vector>

namespace semimatch {
namespace {

constexpr size_t kHugePage = size_t(2) << 20;

size_t size_of_block(size_t bytes) { return (bytes + kHugePage - 1) / kHugePage * kHugePage; }

// Blocks that are not in use. A lock that is held elsewhere is not waited for, or not for long, but done without: it
// may be held for ever, by a thread that a fork has left behind.
class Cache {
  struct Block {
    void* memory;
    size_t size;
  };
  std::timed_mutex mutex_;
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
    if (const std::unique_lock lock(mutex_, std::try_to_lock); lock && size <= most_) {  // larger: all would go for it
      blocks_.push_back(gone.front());
      size_ += size;
      gone = shrink(most_);
    }
    unmap(gone);
  }

  // Frees what is kept above `most`.
  void free(size_t most) {
    std::vector<Block> gone;
    if (const std::unique_lock lock(mutex_, std::chrono::seconds(1)); lock) gone = shrink(most);
    unmap(gone);
  }

  void limit(size_t most) {
    most_ = most;
    free(most);
  }

  size_t most() const { return most_; }

  static Cache& get() {
    static Cache* const cache = new Cache;  // never destroyed: tensors may be freed after this library's statics
    return *cache;
  }
};

}  // namespace

void* map_block(size_t bytes) {
  if (cache_limit() == 0) return nullptr;
  const size_t size = size_of_block(bytes);
  void* const block = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (block == MAP_FAILED) {
    Cache::get().free(0);  // the caller asks elsewhere, where that may be enough
    return nullptr;
  }
#ifdef MADV_HUGEPAGE
  // Only advice. Ordinary pages are handed out one by one; a huge one at the end would be there as a whole.
  if (const size_t whole = bytes / kHugePage * kHugePage) madvise(block, whole, MADV_HUGEPAGE);
#endif
  return block;
}

void unmap_block(void* block, size_t bytes) { munmap(block, size_of_block(bytes)); }

void* take_block(size_t bytes) {
  void* const kept = Cache::get().take(size_of_block(bytes));
  return kept != nullptr ? kept : map_block(bytes);
}

void give_block(void* block, size_t bytes) { Cache::get().give(block, size_of_block(bytes)); }

size_t cache_limit() { return Cache::get().most(); }
void set_cache_limit(size_t bytes) { Cache::get().limit(bytes); }

}  // namespace semimatch
