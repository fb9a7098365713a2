// `dual_softmax` on the CPU: memory, threads and the order of the work. The loops are in dual_softmax_kernels.cpp.
//
// The matrix is read in panels of rows that the second-level cache holds: for the masses of all lines, then for the
// result; for the gradient a third time in between, for the sums of the gradients by the log-probabilities.
#include <tuple>
#include <vector>

#include "dispatch.h"
#include "dual_softmax_kernels.h"
#include "memory.h"
#include "tensors.h"
#include "work.h"

namespace semimatch {
namespace {

template <class T>
class Call {
 public:
  using A = typename CpuDualSoftmax<T>::A;
  using Job = typename CpuDualSoftmax<T>::Job;

  // rows and cols are dimensions of corr.
  Call(const Tensor& corr, int rows, int cols, double temperature, bool log) {
    job.corr = matrix<T>(corr, rows, cols);
    job.log = log;
    job.inverse_temperature = A(1 / temperature);
    job.scale = A(kLog2E / temperature);
    job.rows = new_lines(corr.size(rows));
    groups_ = ceil_div(corr.size(cols), kernels_.group);
    job.cols = new_lines(groups_ * kernels_.group);
    panel_ =
        std::max<int64_t>(1, kPanelBytes / (corr.size(cols) * int64_t(sizeof(T)) * kernels_.group)) * kernels_.group;
    panels_ = ceil_div(corr.size(rows), panel_);
  }

  template <class E>
  static Matrices<E> matrix(const Tensor& t, int rows, int cols) {
    return {data_of<const E>(t), t.size(0), t.size(rows), t.size(cols), t.stride(0), t.stride(rows), t.stride(cols)};
  }

  void forward() {
    lines();
    for_panels([&](int64_t b, int64_t r0, int64_t r1) { kernels_.forward(job, b, r0, r1); });
  }

  void backward() {
    lines();
    {
      const Scratch memory(job.corr.batch * panels_ * groups_, kernels_.group * int64_t(sizeof(A)));
      for_panels([&](int64_t b, int64_t r0, int64_t r1) {
        kernels_.sums(job, b, r0, r1, memory.at((b * panels_ + r0 / panel_) * groups_));
      });
      for_groups([&](int64_t b, int64_t g0, int64_t g1) {
        kernels_.finish_sums(job, b, g0, g1, memory.at(b * panels_ * groups_ + g0), panels_, groups_);
      });
    }
    for_panels([&](int64_t b, int64_t r0, int64_t r1) { kernels_.backward(job, b, r0, r1); });
  }

  Job job = {};

 private:
  static constexpr int64_t kPanelBytes = 128 * 1024;

  typename CpuDualSoftmax<T>::Lines new_lines(int64_t step) {
    const int64_t n = job.corr.batch * step;
    numbers_.emplace_back(4 * n);  // zero: columns that fill up the last group hold numbers too
    A* const at = numbers_.back().data();
    return {step, at, at + n, at + 2 * n, at + 3 * n, nullptr};
  }

  template <class F>
  void for_panels(const F& f) const {
    for_pieces(job.corr.batch, job.corr.rows, panel_, f);
  }
  template <class F>
  void for_groups(const F& f) const {
    for_pieces(job.corr.batch, groups_, kNarrow / kernels_.group, f);
  }

  void lines() {
    const Scratch memory(job.corr.batch * panels_ * groups_, kernels_.mass_bytes);
    for_panels([&](int64_t b, int64_t r0, int64_t r1) {
      kernels_.masses(job, b, r0, r1, memory.at((b * panels_ + r0 / panel_) * groups_));
    });
    for_groups([&](int64_t b, int64_t g0, int64_t g1) {
      kernels_.finish(job, b, g0, g1, memory.at(b * panels_ * groups_ + g0), panels_, groups_);
    });
  }

  const DualSoftmaxKernels<T> kernels_ = SEMIMATCH_BEST(dual_softmax_kernels<T>());
  int64_t groups_, panel_, panels_;
  std::vector<std::vector<A>> numbers_;
};

void check(const Tensor& corr) {
  STD_TORCH_CHECK(corr.dim() == 3 && corr.size(1) > 0 && corr.size(2) > 0,
                  "semimatch: corr must be [B,S,T], not empty");
}

std::tuple<Tensor, Tensor, Tensor> dual_softmax(Tensor corr, double temperature, bool log) {
  check(corr);
  const ScalarType type = accumulate_type(corr);
  const int64_t batch = corr.size(0), sources = corr.size(1), targets = corr.size(2);
  const Tensor p = new_large_of(corr, {batch, sources, targets}, type);
  const Tensor target = new_tensor(corr, {batch, targets}, type);
  const Tensor source = new_tensor(corr, {batch, sources}, type);
  with_type(corr, [&](auto type) {
    using T = decltype(type);
    using A = typename CpuDualSoftmax<T>::A;
    Call<T> call(corr, 1, 2, temperature, log);
    call.job.rows.logsumexp = data_of<A>(source);
    call.job.cols.logsumexp = data_of<A>(target);
    call.job.p = data_of<A>(p);
    call.forward();
  });
  return {p, target, source};
}

// The log-sum-exps are of no use: they have lost the digits of a large score.
Tensor dual_softmax_backward(Tensor corr, double temperature, bool log, Tensor, Tensor, Tensor grad) {
  check(corr);
  STD_TORCH_CHECK(grad.scalar_type() == accumulate_type(corr) && grad.dim() == 3 && grad.size(0) == corr.size(0) &&
                      grad.size(1) == corr.size(1) && grad.size(2) == corr.size(2),
                  "semimatch: the gradient differs from its result in dtype or shape");
  const Tensor result = new_grad(corr, new_large);
  with_type(corr, [&](auto type) {
    using T = decltype(type);
    using A = typename CpuDualSoftmax<T>::A;
    const int rows = transposed(corr) ? 2 : 1, cols = 3 - rows;
    Call<T> call(corr, rows, cols, temperature, log);
    call.job.grad = Call<T>::template matrix<A>(grad, rows, cols);
    call.job.grad_out = data_of<T>(result);
    call.backward();
  });
  return result;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(semimatch_kernels, CPU, library) {
  library.impl("dual_softmax", TORCH_BOX(&dual_softmax));
  library.impl("dual_softmax_backward", TORCH_BOX(&dual_softmax_backward));
}

}  // namespace semimatch
