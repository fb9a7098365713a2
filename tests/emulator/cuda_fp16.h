// A stand-in for CUDA's header of this name: the type, and its conversions.
#pragma once

struct __half {
  _Float16 value;
  __half() = default;
  template <class T>
  explicit __half(T v) : value(static_cast<_Float16>(v)) {}
  explicit operator float() const { return static_cast<float>(value); }
};
