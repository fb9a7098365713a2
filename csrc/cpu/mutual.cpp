// `mutual_filter` on the CPU: memory, threads and the order of the work. The loops are in mutual_kernels.cpp.
#include <algorithm>
#include <memory>
#include <optional>
#include <tuple>
#include <vector>

#include "dispatch.h"
#include "memory.h"
#include "mutual_kernels.h"
#include "parts.h"
#include "tensors.h"
#include "work.h"

namespace semimatch {
namespace {

using Eps = std::optional<double>;

// Where the matrices of a tensor [...,S,T] begin.
std::vector<int64_t> offsets_of(const Tensor& t) {
  std::vector<int64_t> offsets = {0};
  for (int64_t d = 0; d + 2 < t.dim(); ++d) {
    std::vector<int64_t> next;
    next.reserve(offsets.size() * t.size(d));
    for (const int64_t offset : offsets)
      for (int64_t i = 0; i < t.size(d); ++i) next.push_back(offset + i * t.stride(d));
    offsets = std::move(next);
  }
  return offsets;
}

// The job of one call, and the memory of its tables.
template <class T>
struct Call {
  using A = typename CpuMutual<T>::A;
  const MutualKernels<T> kernels = SEMIMATCH_BEST(mutual_kernels<T>());
  std::vector<int64_t> offsets;
  int64_t batch, rows, cols, panel, panels;
  std::vector<A> row_top, column_top, row_by, column_by;
  typename CpuMutual<T>::Job job = {};

  Call(const Tensor& corr, const Tensor& row_index, const OptionalTensor& column_index)
      : offsets(offsets_of(corr)), batch(offsets.size()), rows(corr.size(-2)), cols(corr.size(-1)) {
    // Panels of whole tiles.
    panel = ceil_div(rows_per_piece(cols), kernels.group) * kernels.group;
    panels = ceil_div(rows, panel);
    job.corr = batch_of(corr, offsets);
    job.step = ceil_div(cols, kernels.group) * kernels.group;
    const auto index = [&](const Tensor& t, int64_t n) {
      STD_TORCH_CHECK(t.scalar_type() == ScalarType::Long && t.numel() == batch * n && t.is_contiguous(),
                      "semimatch: saved indices are not what forward returned (dtype, size or strides differ)");
      return data_of<int64_t>(t);
    };
    job.row_index = index(row_index, rows);
    if (column_index) job.column_index = index(*column_index, cols);
    row_top.resize(batch * rows);
    column_top.resize(batch * cols);
    row_by.resize(batch * rows);
    column_by.assign(batch * job.step, A(1));
    job.row_top = row_top.data();
    job.column_top = column_top.data();
    job.row_by = row_by.data();
    job.column_by = column_by.data();
  }

  void find_largest(int64_t b) const {
    const int64_t groups = job.step / kernels.group;
    const Scratch best(panels * groups, kernels.best_bytes);
    for_pieces(1, rows, panel,
               [&](int64_t, int64_t r0, int64_t r1) { kernels.maxima(job, b, r0, r1, best.at(r0 / panel * groups)); });
    if (job.column_index != nullptr) kernels.finish_columns(job, b, best.at(0), panels);
  }

  static typename CpuMutual<T>::Batch batch_of(const Tensor& t, const std::vector<int64_t>& offsets) {
    return {{data_of<const T>(t), 1, t.size(-2), t.size(-1), 0, t.stride(-2), t.stride(-1)}, offsets.data()};
  }

  // The job for batch element b, from its largest entries to what is divided by.
  typename CpuMutual<T>::Job with_dividers(int64_t b, const Eps& eps) {
    typename CpuMutual<T>::Job item = job;
    const Divisor<A> divisor = {eps.has_value(), A(eps.value_or(0))};
    const auto ordinary = [&](A largest) { return has_inverse(divisor.of(largest)); };
    const A *const row = job.row_top + b * rows, *const column = job.column_top + b * cols;
    item.divide = !std::all_of(row, row + rows, ordinary) || !std::all_of(column, column + cols, ordinary);
    for (int64_t i = 0; i < rows; ++i) row_by[b * rows + i] = divider_of(item.divide, divisor.of(row[i]));
    for (int64_t i = 0; i < cols; ++i) column_by[b * job.step + i] = divider_of(item.divide, divisor.of(column[i]));
    return item;
  }
};

}  // namespace

template <class T>
void largest_entries(const Tensor& corr, const Tensor& row_index, const OptionalTensor& column_index) {
  const Call<T> call(corr, row_index, column_index);
  for_batch(call.batch, [&](int64_t b) { call.find_largest(b); });
}
template <class T>
RowsTask largest_of_rows(const Tensor& corr, const Tensor& row_index) {
  const auto call = std::make_shared<const Call<T>>(corr, row_index, std::nullopt);
  return [call](int64_t b, int64_t r0, int64_t r1) { call->kernels.maxima(call->job, b, r0, r1, nullptr); };
}
template void largest_entries<float>(const Tensor&, const Tensor&, const OptionalTensor&);
template RowsTask largest_of_rows<float>(const Tensor&, const Tensor&);
template void largest_entries<double>(const Tensor&, const Tensor&, const OptionalTensor&);
template RowsTask largest_of_rows<double>(const Tensor&, const Tensor&);
template void largest_entries<BFloat16>(const Tensor&, const Tensor&, const OptionalTensor&);
template RowsTask largest_of_rows<BFloat16>(const Tensor&, const Tensor&);
template void largest_entries<Float16>(const Tensor&, const Tensor&, const OptionalTensor&);
template RowsTask largest_of_rows<Float16>(const Tensor&, const Tensor&);

namespace {

template <class T>
void forward(const Tensor& corr, const Eps& eps, const Tensor& out, const Tensor& row_index,
             const Tensor& column_index) {
  Call<T> call(corr, row_index, column_index);
  const auto& kernels = call.kernels;
  call.job.out = data_of<T>(out);
  for_batch(call.batch, [&](int64_t b) {
    call.find_largest(b);
    const auto item = call.with_dividers(b, eps);
    for_pieces(1, call.rows, call.panel, [&](int64_t, int64_t r0, int64_t r1) { kernels.filter(item, b, r0, r1); });
  });
}

template <class T>
void backward(const Tensor& corr, const Eps& eps, const Tensor& row_index, const Tensor& column_index,
              const Tensor& grad, const Tensor& out) {
  using A = typename CpuMutual<T>::A;
  Call<T> call(corr, row_index, column_index);
  call.job.out = data_of<T>(out);
  auto& job = call.job;
  const auto& kernels = call.kernels;
  const int64_t batch = call.batch, rows = call.rows, cols = call.cols;
  const auto inside = [](const int64_t* index, int64_t n, int64_t below) {
    return std::all_of(index, index + n, [&](int64_t i) { return i >= 0 && i < below; });
  };
  STD_TORCH_CHECK(inside(job.row_index, batch * rows, cols) && inside(job.column_index, batch * cols, rows),
                  "semimatch: a saved index names no cell");
  const std::vector<int64_t> grad_offsets = offsets_of(grad);
  job.grad = Call<T>::batch_of(grad, grad_offsets);
  std::vector<A> row_term(batch * rows), column_term(batch * job.step);
  job.row_term = row_term.data();
  job.column_term = column_term.data();
  for_batch(batch, [&](int64_t b) {
    kernels.look_up(job, b);
    const auto item = call.with_dividers(b, eps);
    const Scratch parts(call.panels * job.step, sizeof(A));
    for_pieces(1, rows, call.panel, [&](int64_t, int64_t r0, int64_t r1) {
      kernels.gradient(item, b, r0, r1, static_cast<A*>(parts.at(r0 / call.panel * job.step)));
    });
    for (int64_t p = 0; p < call.panels; ++p)
      for (int64_t col = 0; col < cols; ++col)
        column_term[b * job.step + col] += *static_cast<const A*>(parts.at(p * job.step + col));
    // Each entry by one of the two.
    for_pieces(1, rows, kWide, [&](int64_t, int64_t r0, int64_t r1) { kernels.gradient_of_row_tops(item, b, r0, r1); });
    for_pieces(1, cols, kWide,
               [&](int64_t, int64_t c0, int64_t c1) { kernels.gradient_of_column_tops(item, b, c0, c1); });
  });
}

void check(const Tensor& corr) {
  STD_TORCH_CHECK(corr.dim() >= 2 && corr.size(-1) > 0 && corr.size(-2) > 0,
                  "semimatch: corr must be [...,S,T], at least one cell on each side");
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  STD_TORCH_CHECK(corr.size(-2) <= kMost && corr.size(-1) <= kMost,
                  "semimatch: a side of the correlation has 2^31 cells or more");
}

std::tuple<Tensor, Tensor, Tensor> mutual_filter(Tensor corr, Eps eps) {
  check(corr);
  std::vector<int64_t> shape(corr.sizes().begin(), corr.sizes().end());
  const Tensor out = new_large(corr, shape);
  const int64_t cols = shape.back();
  shape.pop_back();
  const Tensor row_index = new_tensor(corr, shape, ScalarType::Long);
  shape.back() = cols;
  const Tensor column_index = new_tensor(corr, shape, ScalarType::Long);
  if (out.numel() > 0)
    with_type(corr, [&](auto type) { forward<decltype(type)>(corr, eps, out, row_index, column_index); });
  return {out, row_index, column_index};
}

Tensor mutual_filter_backward(Tensor corr, Eps eps, Tensor row_index, Tensor column_index, Tensor grad) {
  check(corr);
  const std::vector<int64_t> shape(corr.sizes().begin(), corr.sizes().end());
  const auto size = grad.sizes();
  STD_TORCH_CHECK(
      grad.scalar_type() == corr.scalar_type() && std::equal(shape.begin(), shape.end(), size.begin(), size.end()),
      "semimatch: the gradient differs from the result in dtype or shape");
  const Tensor out = new_large(corr, shape);
  if (out.numel() > 0)
    with_type(corr, [&](auto type) { backward<decltype(type)>(corr, eps, row_index, column_index, grad, out); });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(semimatch_kernels, CPU, library) {
  library.impl("mutual_filter", TORCH_BOX(&mutual_filter));
  library.impl("mutual_filter_backward", TORCH_BOX(&mutual_filter_backward));
}

}  // namespace semimatch
