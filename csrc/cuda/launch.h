// What every launch of a CUDA kernel needs: device, stream, grid size, and a check.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/shim_utils.h>

#include <cstdint>

namespace semimatch {

// Makes the device of a tensor the current one while this lives, and knows PyTorch's current stream on it.
class OnDevice {
  torch::stable::accelerator::DeviceGuard guard_;
  void* stream_ = nullptr;

 public:
  explicit OnDevice(const torch::stable::Tensor& like) : guard_(like.get_device_index()) {
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(like.get_device_index(), &stream_));
  }
  cudaStream_t stream() const { return static_cast<cudaStream_t>(stream_); }
};

// Everything goes along x, whose limit is 2^31 - 1; y and z end at 65535.
inline dim3 grid_of(int64_t blocks) {
  STD_TORCH_CHECK(blocks <= INT32_MAX, "semimatch: a launch of ", blocks, " blocks is beyond what a GPU takes");
  return dim3(static_cast<unsigned>(blocks));
}

inline void check_launch(const char* kernel) {
  const cudaError_t error = cudaGetLastError();
  STD_TORCH_CHECK(error == cudaSuccess, "semimatch: launch of ", kernel, ": ", cudaGetErrorString(error));
}

}  // namespace semimatch
