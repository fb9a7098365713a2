// What one op on the CPU uses of another.
#pragma once

#include <functional>

#include "match_kernels.h"
#include "tensors.h"

namespace semimatch {

// Called for rows [r0, r1) of matrix b, from any thread, once for each row.
using RowsTask = std::function<void(int64_t b, int64_t r0, int64_t r1)>;

// The results of `match` (match.cpp). Where only those of the columns are wanted, `also` may do something else with the
// rows as they come into the cache.
template <class T>
void match_forward(const typename CpuMatch<T>::Job& job, const RowsTask& also = {});

// The index of the largest entry of each row [...,S] and, where asked for, of each column [...,T] of corr [...,S,T], as
// torch.argmax has them: the lowest among equals, NaN larger than anything (mutual.cpp). The indices are contiguous
// int64.
//
// `largest_of_rows` is the same as a task, for corr [B,S,T] and its rows alone.
template <class T>
void largest_entries(const Tensor& corr, const Tensor& row_index, const OptionalTensor& column_index);
template <class T>
RowsTask largest_of_rows(const Tensor& corr, const Tensor& row_index);

}  // namespace semimatch
