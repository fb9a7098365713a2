// What semimatch_kernels._C_cuda was built from, for `ctypes`: that library is no Python module, so that one file
// serves every Python version.
#include "op_schemas.h"  // made by setup.py from semimatch_kernels/schemas.py

#define SEMIMATCH_EXPORT extern "C" __attribute__((visibility("default")))

// "name(arguments) -> results" a line.
SEMIMATCH_EXPORT const char* semimatch_cuda_op_schemas() { return SEMIMATCH_OP_SCHEMAS; }

// "key: value" a line.
SEMIMATCH_EXPORT const char* semimatch_cuda_build_info() {
  return "nvcc: " SEMIMATCH_NVCC "\nflags: " SEMIMATCH_FLAGS "\narchs: " SEMIMATCH_CUDA_ARCHS
         "\ntorch: " SEMIMATCH_TORCH "\ntorch_target: " SEMIMATCH_TORCH_TARGET;
}
