// Large memory of the CPU ops: kept when it is not needed any more, for the next of its size.
//
// PyTorch and the C library give large memory back to the system, which hands it out anew in zeroed pages: for a
// large gradient that can take as long as to compute it, and a training step asks for the same sizes again and again.
#pragma once

#include <cstddef>

namespace semimatch {

// What is smaller comes from elsewhere, where it is kept anyway.
constexpr size_t kLeastBlock = size_t(1) << 20;

// Uninitialised memory, aligned to a page: from the system, or from what is kept if there is some of this size. Null if
// there is none, or nothing is to be kept: the caller takes other memory.
void* map_block(size_t bytes);
void* take_block(size_t bytes);
// The way back, for as many bytes: to the system, or to be kept.
void unmap_block(void* block, size_t bytes);
void give_block(void* block, size_t bytes);

// The most that is kept, in bytes. Less than before: what is above it is freed.
size_t cache_limit();
void set_cache_limit(size_t bytes);

}  // namespace semimatch
