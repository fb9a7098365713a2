// The maths of `correlation` behind the inner product: ReLU, then an integer power, and the gradient of both.
#pragma once

#include "common.h"

namespace semimatch {

struct Epilogue {
  bool relu;
  int64_t power;  // at least 1
  SEMIMATCH_FN bool any() const { return relu || power != 1; }
};

// c^n by squaring; 1 for n = 0.
template <class V>
SEMIMATCH_FN V power_of(V c, int64_t n) {
  V result = V{} + typename Number<V>::Scalar(1);
  for (; n > 0; n /= 2) {
    if (n % 2 != 0) result *= c;
    c *= c;
  }
  return result;
}

template <class V>
SEMIMATCH_FN V finished(V c, const Epilogue& epilogue) {
  if (epilogue.relu) c = c < V{} ? V{} : c;  // NaN stays
  return epilogue.power == 1 ? c : power_of(c, epilogue.power);
}

// The gradient by the inner product c, from that by the result. It passes the ReLU at NaN.
template <class V>
SEMIMATCH_FN V finished_gradient(V c, V grad, const Epilogue& epilogue) {
  using Scalar = typename Number<V>::Scalar;
  if (epilogue.power != 1) grad *= Scalar(epilogue.power) * power_of(c, epilogue.power - 1);
  if (epilogue.relu) grad = c <= V{} ? V{} : grad;
  return grad;
}

}  // namespace semimatch
