// What one op on the CPU uses of another.
#pragma once

#include "match_kernels.h"
#include "tensors.h"

namespace semimatch {

// The results of `match` (match.cpp).
template <class T>
void match_forward(const typename CpuMatch<T>::Job& job);

// The index of the largest entry of each row [...,S] and, where asked for, of each column [...,T] of corr [...,S,T], as
// torch.argmax has them: the lowest among equals, NaN larger than anything (mutual.cpp). The indices are contiguous
// int64.
template <class T>
void largest_entries(const Tensor& corr, const Tensor& row_index, const OptionalTensor& column_index);

}  // namespace semimatch
