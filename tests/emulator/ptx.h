// Twins of the functions of csrc/cuda/ptx.cuh.
#pragma once

#include <type_traits>

#include "cuda_bf16.h"
#include "cuda_fp16.h"
#include "cuda_runtime.h"

namespace semimatch {

template <class X>
void store_16_bytes(void* to, const X& value) {
  static_assert(sizeof(X) == 16);
  if (reinterpret_cast<uintptr_t>(to) % 16 != 0) emulator::fail("16 bytes are stored where they are not aligned");
  std::memcpy(to, &value, 16);
}
template <class X>
X load_16_bytes(const void* from) {
  static_assert(sizeof(X) == 16);
  if (reinterpret_cast<uintptr_t>(from) % 16 != 0) emulator::fail("16 bytes are loaded where they are not aligned");
  X value;
  std::memcpy(&value, from, 16);
  return value;
}

inline void cluster_barrier(emulator::Place at = emulator::Place::current()) { emulator::meet_cluster(at); }
inline int cluster_rank() { return emulator::cluster_rank(); }
template <class T>
T* shared_of(T* address, int rank) {
  return static_cast<T*>(emulator::shared_of_rank(const_cast<std::remove_const_t<T>*>(address), rank));
}

// Products in tensor cores. kDepth columns of a, which are rows of b; element(word, i) is number i of a word, of which
// each holds kPerWord, at columns of a (rows of b) next to each other.
template <int kDepth, int kPerWord, class Element>
void add_product(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const Element& element,
                 emulator::Place at) {
  struct Left {
    uint32_t words[4];
  } left;
  struct Right {
    uint32_t words[2];
  } right;
  std::memcpy(left.words, a, sizeof(a));
  std::memcpy(right.words, b, sizeof(b));
  const int g = emulator::self->lane / 4, t = emulator::self->lane % 4;
  const auto lefts = emulator::exchange(0xffffffffu, left, at);
  Left rows[4];  // copied: the next exchange may overwrite what lanes hold
  for (int lane = 0; lane < 4; ++lane) rows[lane] = emulator::value_of<Left>(lefts, g * 4 + lane);
  const auto rights = emulator::exchange(0xffffffffu, right, at);
  for (int i = 0; i < 4; ++i) {
    float sum = 0;
    for (int k = 0; k < kDepth; ++k) {
      const int half = k / (kDepth / 2), lane = k % (kDepth / 2) / kPerWord;
      const Right col = emulator::value_of<Right>(rights, (2 * t + i % 2) * 4 + lane);
      sum += element(rows[lane].words[2 * half + i / 2], k % kPerWord) * element(col.words[half], k % kPerWord);
    }
    d[i] += sum;
  }
}

template <class T>
void add_product_of_halves(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                           emulator::Place at = emulator::Place::current()) {
  const auto element = [](uint32_t word, int i) {
    return static_cast<float>(std::bit_cast<T>(static_cast<uint16_t>(word >> 16 * i)));
  };
  add_product<16, 2>(d, a, b, element, at);
}

inline void add_product_of_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                                emulator::Place at = emulator::Place::current()) {
  const auto element = [](uint32_t word, int) { return std::bit_cast<float>(word & 0xffffe000u); };
  add_product<8, 1>(d, a, b, element, at);
}

inline uint32_t bits_of(float value) { return std::bit_cast<uint32_t>(value); }

// To nearest, away from zero between two.
inline float tf32(float value) {
  if (!std::isfinite(value)) return value;
  return std::bit_cast<float>((std::bit_cast<uint32_t>(value) + 0x1000u) & 0xffffe000u);
}

}  // namespace semimatch
