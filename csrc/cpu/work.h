// Memory for intermediate results of the CPU ops, and the pieces in which work is shared among threads.
//
// Every task writes its own results, and sums are taken in an order that depends on shapes alone: results are the same,
// bit for bit, for every number of threads. Only `correlation` leaves the order to PyTorch's matrix product (gemm.h).
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#ifdef __SANITIZE_THREAD__
#include <thread>
#include <vector>
#endif

#include "cache.h"

namespace semimatch {

// Uninitialised memory for n things of `size` bytes, aligned to 64. Where it is much beside the op's results, its block
// is not to be kept afterwards: it would come on top of them at the peak.
class Scratch {
 public:
  enum Afterwards { kKeep, kGiveBack };

  Scratch(int64_t n, int64_t size, Afterwards afterwards = kKeep)
      : memory_(allocate(size_t(n) * size_t(size), afterwards)), size_(size) {}
  void* at(int64_t i) const { return memory_.get() + i * size_; }

 private:
  static constexpr std::align_val_t kAlignment{64};
  struct Free {
    size_t block_bytes;  // 0: no block
    Afterwards afterwards;
    void operator()(std::byte* p) const {
      if (block_bytes == 0) {
        ::operator delete(p, kAlignment);
      } else if (afterwards == kKeep) {
        give_block(p, block_bytes);
      } else {
        unmap_block(p, block_bytes);
      }
    }
  };
  using Memory = std::unique_ptr<std::byte, Free>;

  static Memory allocate(size_t bytes, Afterwards afterwards) {
    void* block = nullptr;
    if (bytes >= kLeastBlock) block = afterwards == kKeep ? take_block(bytes) : map_block(bytes);
    void* const memory = block != nullptr ? block : ::operator new(bytes, kAlignment);
    return Memory(static_cast<std::byte*>(memory), {block != nullptr ? bytes : 0, afterwards});
  }

  Memory memory_;
  int64_t size_;
};

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Calls f(begin, end) for parts of [first, last), on torch's threads.
template <class F>
void parallel(int64_t first, int64_t last, const F& f) {
#ifdef __SANITIZE_THREAD__
  // The thread sanitizer does not see how torch's pool hands over work, and would take it for a race. Neighbours go to
  // different threads: that a task writes what is its neighbour's is seen.
  constexpr int64_t kThreads = 4;
  std::vector<std::thread> threads;
  for (int64_t i = first; i < std::min(first + kThreads, last); ++i) {
    threads.emplace_back([&, i] {
      for (int64_t j = i; j < last; j += kThreads) f(j, j + 1);
    });
  }
  for (std::thread& thread : threads) thread.join();
#else
  torch::stable::parallel_for(first, last, 1, f);
#endif
}

// Calls f(batch, first, last) for pieces of at most `step` out of [0, n) of every batch element, on torch's threads.
template <class F>
void for_pieces(int64_t batch, int64_t n, int64_t step, const F& f) {
  const int64_t pieces = ceil_div(n, step);
  parallel(0, batch * pieces, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = i % pieces * step;
      f(i / pieces, first, std::min(first + step, n));
    }
  });
}

// Calls f(b) for every batch element: on a thread each where there are enough, else in turn, with all threads inside f.
// A step of f finds in the cache what the one before has read.
template <class F>
void for_batch(int64_t batch, const F& f) {
  if (batch < torch::stable::get_num_threads()) {
    for (int64_t b = 0; b < batch; ++b) f(b);
  } else {
    parallel(0, batch, [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b) f(b);
    });
  }
}

// Columns that are handled at a time: many, so that rows are read in long runs, where there is enough to share out.
constexpr int64_t kNarrow = 64, kWide = 512;

inline int64_t columns_per_piece(int64_t columns) {
  return columns >= 4 * kWide * torch::stable::get_num_threads() ? kWide : kNarrow;
}

// Whole rows of `cols` entries that make a piece worth a task.
inline int64_t rows_per_piece(int64_t cols) {
  constexpr int64_t kEntriesPerPiece = 1 << 15;
  return std::max<int64_t>(1, kEntriesPerPiece / cols);
}

}  // namespace semimatch
