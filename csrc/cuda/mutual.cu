// `mutual_filter` on CUDA: memory and launches (forward 3, backward 4). What the kernels do is in mutual.cuh.
#include <optional>
#include <tuple>

#include "mutual.cuh"

namespace semimatch {
namespace {

using Eps = std::optional<double>;

// corr [...,S,T] with its leading dimensions merged where memory allows; of more than kMostDims a copy is made.
template <class T>
Levels<T, Wide<T>> levels_of(Tensor& t) {
  for (const bool copied : {false, true}) {
    Levels<T, Wide<T>> levels = {data_of<const T>(t), 0, {}, {}, t.stride(-2), t.stride(-1)};
    bool fits = true;
    for (int64_t d = t.dim() - 3; d >= 0; --d) {
      const int last = levels.dims - 1;
      if (t.size(d) == 1) continue;
      if (last >= 0 && t.stride(d) == levels.strides[last] * levels.sizes[last]) {
        levels.sizes[last] *= t.size(d);
      } else if (levels.dims < kMostDims) {
        levels.sizes[levels.dims] = t.size(d);
        levels.strides[levels.dims++] = t.stride(d);
      } else {
        fits = false;
      }
    }
    if (fits || copied) return levels;
    t = torch::stable::contiguous(t);
  }
  return {};
}

struct Sizes {
  int64_t batch = 1, rows, cols;
  std::vector<int64_t> all, row_shape, col_shape;

  explicit Sizes(const Tensor& corr) {
    STD_TORCH_CHECK(corr.dim() >= 2, "semimatch: corr must be [...,S,T]");
    for (int64_t d = 0; d < corr.dim(); ++d) all.push_back(corr.size(d));
    rows = all[all.size() - 2];
    cols = all.back();
    constexpr int64_t kMost = 0x7fffffff;
    STD_TORCH_CHECK(rows > 0 && cols > 0 && rows <= kMost && cols <= kMost,
                    "semimatch: a side of the correlation must have 1 to 2^31 - 1 cells");
    for (size_t d = 0; d + 2 < all.size(); ++d) batch *= all[d];
    row_shape.assign(all.begin(), all.end() - 1);
    col_shape = row_shape;
    col_shape.back() = cols;
  }
};

template <class A>
Divisor<A> divisor_of(const Eps& eps) {
  return {eps.has_value(), A(eps.value_or(0))};
}

std::tuple<Tensor, Tensor, Tensor> mutual_filter(Tensor corr, Eps eps) {
  const Sizes n(corr);
  const Tensor out = new_tensor(corr, n.all);
  const Tensor row_index = new_tensor(corr, n.row_shape, ScalarType::Long);
  const Tensor col_index = new_tensor(corr, n.col_shape, ScalarType::Long);
  if (n.batch == 0) return {out, row_index, col_index};
  with_cuda_type(corr, [&](auto type) {
    using T = decltype(type);
    using A = Wide<T>;
    const OnDevice device(corr);
    Workspace memory(corr, n.batch * (n.rows + n.cols) * sizeof(A), 2);
    A *row_by = memory.take<A>(n.batch * n.rows), *col_by = memory.take<A>(n.batch * n.cols);
    const auto levels = levels_of<T>(corr);
    const MutualMaxima<T> maxima = {levels,
                                    n.batch,
                                    n.rows,
                                    n.cols,
                                    {},
                                    {},
                                    divisor_of<A>(eps),
                                    data_of<int64_t>(row_index),
                                    data_of<int64_t>(col_index),
                                    row_by,
                                    col_by};
    reduce_both("mutual_maxima", maxima, device, corr);
    const MutualFilter<T> filter = {levels, n.batch, n.rows, n.cols, row_by, col_by, data_of<T>(out)};
    launch("mutual_filter", map_entries<MutualFilter<T>>, map_geometry(n.batch, n.rows, n.cols), device.stream(),
           filter);
  });
  return {out, row_index, col_index};
}

Tensor mutual_filter_backward(Tensor corr, Eps eps, Tensor row_index, Tensor col_index, Tensor grad) {
  const Sizes n(corr);
  STD_TORCH_CHECK(row_index.scalar_type() == ScalarType::Long && col_index.scalar_type() == ScalarType::Long &&
                      row_index.numel() == n.batch * n.rows && col_index.numel() == n.batch * n.cols,
                  "semimatch: the saved indices are not what forward returned");
  STD_TORCH_CHECK(grad.scalar_type() == corr.scalar_type() && grad.dim() == corr.dim() &&
                      grad.numel() == corr.numel() && grad.size(-1) == n.cols && grad.size(-2) == n.rows,
                  "semimatch: the gradient differs from the result in dtype or shape");
  const Tensor out = new_tensor(corr, n.all);
  if (n.batch == 0) return out;
  const Tensor rows_in_order = torch::stable::contiguous(row_index),
               cols_in_order = torch::stable::contiguous(col_index);
  const int64_t *of_row = data_of<const int64_t>(rows_in_order), *of_col = data_of<const int64_t>(cols_in_order);
  with_cuda_type(corr, [&](auto type) {
    using T = decltype(type);
    using A = Wide<T>;
    const OnDevice device(corr);
    Workspace memory(corr, 2 * n.batch * (n.rows + n.cols) * sizeof(A), 4);
    A *row_by = memory.take<A>(n.batch * n.rows), *col_by = memory.take<A>(n.batch * n.cols);
    A *row_term = memory.take<A>(n.batch * n.rows), *col_term = memory.take<A>(n.batch * n.cols);
    const auto c = levels_of<T>(corr), g = levels_of<T>(grad);
    launch("mutual_divisors", mutual_divisors<T, A>, items_geometry(n.batch * (n.rows + n.cols)), device.stream(), c,
           n.batch, n.rows, n.cols, divisor_of<A>(eps), of_row, of_col, row_by, col_by);
    const MutualTerms<T> terms = {{c, g, n.rows, n.cols, row_by, col_by},
                                  n.batch,
                                  n.rows,
                                  n.cols,
                                  {col_by, n.cols},
                                  {row_by, n.rows},
                                  row_term,
                                  col_term};
    reduce_both("mutual_terms", terms, device, corr);
    const MutualGradient<T> gradient = {c,      g,        n.batch,  n.rows, n.cols, row_by,
                                        col_by, row_term, col_term, of_row, of_col, data_of<T>(out)};
    launch("mutual_gradient", map_entries<MutualGradient<T>>, map_geometry(n.batch, n.rows, n.cols), device.stream(),
           gradient);
  });
  return out;
}

}  // namespace

SEMIMATCH_CUDA_IMPL(library) {
  library.impl("mutual_filter", TORCH_BOX(&mutual_filter));
  library.impl("mutual_filter_backward", TORCH_BOX(&mutual_filter_backward));
}

}  // namespace semimatch
