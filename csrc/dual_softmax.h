// The maths of `dual_softmax`: the product of the softmax over each side, and its gradient. Edge rules are those of
// match.h; a line (row or column) is known by its largest entry and the mass of the others, as in contrastive.h.
#pragma once

#include <cmath>

#include "contrastive.h"

namespace semimatch {

// What the entries of a line need of it. Where every entry is excluded it is all zero: they are seen to by themselves.
template <class V>
struct Line {
  V top, log_mass, inverse_mass;
};

template <class A>
SEMIMATCH_FN Line<A> line_of(const Mass<A>& s) {
  if (s.mass == A(0)) return {};
  return {s.top, std::log(s.mass), A(1) / s.mass};
}

template <class A>
SEMIMATCH_FN A logsumexp_of_line(const Mass<A>& s, A inverse_temperature) {
  return s.mass == A(0) ? A(-INFINITY) : logsumexp_of(s, std::log(s.mass), inverse_temperature);
}

// Logarithm of the product of both probabilities of an entry.
template <class V>
SEMIMATCH_FN V log_dual(V c, const Line<V>& row, const Line<V>& col, typename Number<V>::Scalar inverse_temperature) {
  const V log_p =
      ((c - row.top) * inverse_temperature - row.log_mass) + ((c - col.top) * inverse_temperature - col.log_mass);
  return c == lowest<V>() ? c : log_p;
}

template <class V>
SEMIMATCH_FN V exp_of_log(V log_p) {
  const V t = log_p * typename Number<V>::Scalar(kLog2E);
  return Number<V>::exp2(Number<V>::larger(V{} + Number<V>::kExp2Floor, t));
}

template <class V>
SEMIMATCH_FN V probability_in(V c, const Line<V>& line, typename Number<V>::Scalar scale) {
  return Number<V>::exp2(exponent(c, line.top, scale)) * line.inverse_mass;
}

// The gradient by the log-probability of an entry, from that by the result.
template <class V>
SEMIMATCH_FN V by_log_probability(V c, V grad, bool log, V p_row, V p_col) {
  return c == lowest<V>() ? V{} : (log ? grad : grad * (p_row * p_col));
}

// The gradient by an entry: h is that by its log-probability, row_sum and col_sum are the sums of h over its lines.
template <class V>
SEMIMATCH_FN V dual_gradient(V h, V p_row, V row_sum, V p_col, V col_sum,
                             typename Number<V>::Scalar inverse_temperature) {
  return (h + h - p_row * row_sum - p_col * col_sum) * inverse_temperature;
}

}  // namespace semimatch
