// What csrc/cuda/launch.h takes instead of the CUDA runtime: launches, and the device's name.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <functional>
#include <tuple>

#include "cuda_runtime.h"

// The ops are registered for CPU tensors, in a namespace of their own.
#define SEMIMATCH_CUDA_IMPL(library) STABLE_TORCH_LIBRARY_IMPL(semimatch_emulated, CPU, library)
// A shared array: SEMIMATCH_SHARED(tile, float[4][5]).
#define SEMIMATCH_SHARED(name, ...)                                 \
  auto& name = *static_cast<std::remove_reference_t<__VA_ARGS__>*>( \
      ::emulator::shared_array(sizeof(__VA_ARGS__), ::emulator::Place::current()))

#include "../../csrc/cuda/geometry.h"

namespace emulator {

void launch(const char* name, const semimatch::Geometry& geometry, const std::function<void()>& call);
int capability();

}  // namespace emulator

namespace semimatch {

class OnDevice {
 public:
  explicit OnDevice(const torch::stable::Tensor&) {}
  cudaStream_t stream() const { return nullptr; }
  template <class... P>
  bool has_clusters(void (*)(P...)) const {
    return emulator::capability() >= 90;
  }
};

template <class... P, class... Args>
void launch(const char* name, void (*kernel)(P...), const Geometry& geometry, cudaStream_t, const Args&... args) {
  if (const char* why = why_not(geometry)) throw std::runtime_error(std::string("launch of ") + name + ": " + why);
  const std::tuple<P...> copies(args...);
  emulator::launch(name, geometry, [&] { std::apply(kernel, copies); });
}

}  // namespace semimatch
