// What every op on CUDA needs of the runtime: device, stream, launch, shared arrays. With SEMIMATCH_EMULATOR it comes
// from tests/emulator, and kernels run on the CPU.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#ifdef SEMIMATCH_EMULATOR
#include <emulator.h>
#else
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/shim_utils.h>

#include <type_traits>

#include "geometry.h"

#define SEMIMATCH_CUDA_IMPL(library) STABLE_TORCH_LIBRARY_IMPL(semimatch_kernels, CUDA, library)
// A shared array: SEMIMATCH_SHARED(tile, float[4][5]).
#define SEMIMATCH_SHARED(name, ...) alignas(16) __shared__ std::type_identity_t<__VA_ARGS__> name

namespace semimatch {

// Makes the device of a tensor the current one while this lives, and knows PyTorch's current stream on it.
class OnDevice {
  torch::stable::accelerator::DeviceGuard guard_;
  int device_;
  void* stream_ = nullptr;

 public:
  explicit OnDevice(const torch::stable::Tensor& like)
      : guard_(like.get_device_index()), device_(like.get_device_index()) {
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device_, &stream_));
  }
  cudaStream_t stream() const { return static_cast<cudaStream_t>(stream_); }
  // Whether blocks of `kernel` can form clusters: the GPU must have them, and so must the architecture that the code it
  // runs was compiled for, which may be an older one.
  template <class... P>
  bool has_clusters(void (*kernel)(P...)) const {
    cudaFuncAttributes attributes;
    return cudaFuncGetAttributes(&attributes, kernel) == cudaSuccess && attributes.ptxVersion >= 90;
  }
};

template <class... P, class... Args>
void launch(const char* name, void (*kernel)(P...), const Geometry& g, cudaStream_t stream, const Args&... args) {
  const char* const why = why_not(g);
  STD_TORCH_CHECK(why == nullptr, "semimatch: launch of ", name, " with ", g.blocks, " blocks: ", why);
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(g.blocks));
  config.blockDim = dim3(g.threads);
  config.stream = stream;
  cudaLaunchAttribute cluster = {};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {static_cast<unsigned>(g.cluster), 1, 1};
  config.attrs = &cluster;
  config.numAttrs = g.cluster > 1 ? 1 : 0;
  cudaError_t error = cudaLaunchKernelEx(&config, kernel, P(args)...);
  const cudaError_t last = cudaGetLastError();
  if (error == cudaSuccess) error = last;
  STD_TORCH_CHECK(error == cudaSuccess, "semimatch: launch of ", name, ": ", cudaGetErrorString(error));
}

}  // namespace semimatch
#endif
