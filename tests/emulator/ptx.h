// Twins of the functions of csrc/cuda/ptx.cuh.
#pragma once

#include "cuda_runtime.h"

namespace semimatch {

inline void cluster_barrier(emulator::Place at = emulator::Place::current()) { emulator::meet_cluster(at); }
inline int cluster_rank() { return emulator::cluster_rank(); }
template <class T>
T* shared_of(T* address, int rank) {
  return static_cast<T*>(emulator::shared_of_rank(const_cast<std::remove_const_t<T>*>(address), rank));
}

}  // namespace semimatch
