// The schemas that the kernels were written against, "name(arguments) -> results" a line, for each module those that it
// implements. The originals are in semimatch_kernels/schemas.py; loading a binary compares them with these.
#pragma once

#define SEMIMATCH_SIDE(p) \
  "Tensor " p "coords, Tensor " p "score, Tensor " p "entropy, Tensor " p "logsumexp, Tensor " p "index"
#define SEMIMATCH_GRADS(p) \
  "Tensor? grad_" p "coords, Tensor? grad_" p "score, Tensor? grad_" p "entropy, Tensor? grad_" p "logsumexp"
#define SEMIMATCH_BOTH "Tensor corr, SymInt[2] source_grid, SymInt[2] target_grid, float temperature"

// clang-format off
#define SEMIMATCH_MATCH_SCHEMAS                                                                                      \
  "match(Tensor corr, SymInt[2] grid, float temperature) -> (" SEMIMATCH_SIDE("") ")\n"                           \
  "match_backward(Tensor corr, SymInt[2] grid, float temperature, " SEMIMATCH_SIDE("") ", " SEMIMATCH_GRADS("")   \
  ") -> Tensor\n"                                                                                              \
  "match_both(" SEMIMATCH_BOTH ") -> (" SEMIMATCH_SIDE("t_") ", " SEMIMATCH_SIDE("s_") ")\n"                   \
  "match_both_backward(" SEMIMATCH_BOTH ", " SEMIMATCH_SIDE("t_") ", " SEMIMATCH_SIDE("s_") ", "               \
  SEMIMATCH_GRADS("t_") ", " SEMIMATCH_GRADS("s_") ") -> Tensor"

#define SEMIMATCH_CONTRASTIVE                                                                                  \
  "Tensor corr, Tensor labels, Tensor? weight, Tensor? mask, float temperature, str reduction, SymInt width, " \
  "float sigma, SymInt radius"
#define SEMIMATCH_CONTRASTIVE_SCHEMAS                                                                          \
  "masked_contrastive_loss(" SEMIMATCH_CONTRASTIVE ") -> (Tensor loss, Tensor logsumexp, Tensor count)\n"      \
  "masked_contrastive_loss_backward(" SEMIMATCH_CONTRASTIVE                                                    \
  ", Tensor logsumexp, Tensor count, Tensor grad) -> Tensor"

#define SEMIMATCH_MUTUAL_SCHEMAS                                                                               \
  "mutual_filter(Tensor corr, float? eps) -> (Tensor filtered, Tensor row_index, Tensor column_index)\n"       \
  "mutual_filter_backward(Tensor corr, float? eps, Tensor row_index, Tensor column_index, Tensor grad) -> Tensor"

#define SEMIMATCH_PSEUDO_LABELS_SCHEMAS                                                                        \
  "pseudo_labels(Tensor corr, SymInt[2] source_grid, SymInt[2] target_grid, float temperature, "               \
  "float threshold, float uncertainty, Tensor? src_box, Tensor? trg_box, bool forward_backward, "              \
  "float alpha1, float alpha2, str sampling, float entropy_eps, Tensor? cell, Tensor? valid) -> "              \
  "(Tensor labels, Tensor weight, Tensor mask, Tensor score, Tensor entropy)"

#define SEMIMATCH_CPU_SCHEMAS                                                                                  \
  SEMIMATCH_MATCH_SCHEMAS "\n" SEMIMATCH_CONTRASTIVE_SCHEMAS "\n" SEMIMATCH_MUTUAL_SCHEMAS "\n"                \
  SEMIMATCH_PSEUDO_LABELS_SCHEMAS
#define SEMIMATCH_CUDA_SCHEMAS SEMIMATCH_MATCH_SCHEMAS "\n" SEMIMATCH_MUTUAL_SCHEMAS
// clang-format on
