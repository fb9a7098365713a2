// A stand-in for CUDA's header of this name: the type, and its conversions.
#pragma once

#include <bit>
#include <cstdint>

struct __nv_bfloat16 {
  uint16_t bits;
  __nv_bfloat16() = default;
  explicit __nv_bfloat16(float v) {
    const uint32_t b = std::bit_cast<uint32_t>(v);
    bits = v != v ? 0x7fff : static_cast<uint16_t>((b + 0x7fff + (b >> 16 & 1)) >> 16);  // to nearest, ties to even
  }
  explicit operator float() const { return std::bit_cast<float>(uint32_t(bits) << 16); }
};
