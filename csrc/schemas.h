// The schemas that the kernels were written against, "name(arguments) -> results" a line. The originals are in
// semimatch_kernels/schemas.py, which compares them with these when it loads the binaries.
#pragma once

#define SEMIMATCH_SIDE(p) \
  "Tensor " p "coords, Tensor " p "score, Tensor " p "entropy, Tensor " p "logsumexp, Tensor " p "index"
#define SEMIMATCH_GRADS(p) \
  "Tensor? grad_" p "coords, Tensor? grad_" p "score, Tensor? grad_" p "entropy, Tensor? grad_" p "logsumexp"
#define SEMIMATCH_BOTH "Tensor corr, SymInt[2] source_grid, SymInt[2] target_grid, float temperature"

// clang-format off
#define SEMIMATCH_SCHEMAS                                                                                      \
  "match(Tensor corr, SymInt[2] grid, float temperature) -> (" SEMIMATCH_SIDE("") ")\n"                           \
  "match_backward(Tensor corr, SymInt[2] grid, float temperature, " SEMIMATCH_SIDE("") ", " SEMIMATCH_GRADS("")   \
  ") -> Tensor\n"                                                                                              \
  "match_both(" SEMIMATCH_BOTH ") -> (" SEMIMATCH_SIDE("t_") ", " SEMIMATCH_SIDE("s_") ")\n"                   \
  "match_both_backward(" SEMIMATCH_BOTH ", " SEMIMATCH_SIDE("t_") ", " SEMIMATCH_SIDE("s_") ", "               \
  SEMIMATCH_GRADS("t_") ", " SEMIMATCH_GRADS("s_") ") -> Tensor"
// clang-format on
