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

#define SEMIMATCH_FEATURES                                                                                     \
  "Tensor src, Tensor trg, Tensor? source_mask, Tensor? target_mask, SymInt[2] grid, float temperature"
#define SEMIMATCH_NORM "str normalize, float eps"

#define SEMIMATCH_MATCH_FEATURES_SCHEMAS                                                                       \
  "match_features(" SEMIMATCH_FEATURES ", " SEMIMATCH_NORM ") -> (" SEMIMATCH_SIDE("") ")\n"                   \
  "match_features_backward(" SEMIMATCH_FEATURES ", " SEMIMATCH_NORM ", " SEMIMATCH_SIDE("") ", "               \
  SEMIMATCH_GRADS("") ") -> (Tensor, Tensor)"

#define SEMIMATCH_CONTRASTIVE_FEATURES                                                                         \
  "Tensor src, Tensor trg, Tensor labels, Tensor? weight, Tensor? mask, Tensor? source_mask, "                 \
  "float temperature, str reduction, SymInt width, float sigma, SymInt radius, " SEMIMATCH_NORM
#define SEMIMATCH_CONTRASTIVE_FEATURES_SCHEMAS                                                                 \
  "masked_contrastive_loss_features(" SEMIMATCH_CONTRASTIVE_FEATURES                                           \
  ") -> (Tensor loss, Tensor logsumexp, Tensor count)\n"                                                      \
  "masked_contrastive_loss_features_backward(" SEMIMATCH_CONTRASTIVE_FEATURES                                  \
  ", Tensor logsumexp, Tensor count, Tensor grad) -> (Tensor, Tensor)"

#define SEMIMATCH_SOFT_ARGMAX_SCHEMAS                                                                          \
  "soft_argmax(Tensor corr, SymInt[2] grid, float temperature, str window, float width) -> "                   \
  "(Tensor coords, Tensor index)\n"                                                                           \
  "soft_argmax_backward(Tensor corr, SymInt[2] grid, float temperature, str window, float width, "             \
  "Tensor coords, Tensor index, Tensor grad) -> Tensor\n"                                                     \
  "soft_argmax_features(" SEMIMATCH_FEATURES ", str window, float width, " SEMIMATCH_NORM ") -> "              \
  "(Tensor coords, Tensor index)\n"                                                                           \
  "soft_argmax_features_backward(" SEMIMATCH_FEATURES ", str window, float width, " SEMIMATCH_NORM ", "        \
  "Tensor coords, Tensor index, Tensor grad) -> (Tensor, Tensor)"

#define SEMIMATCH_DUAL_SOFTMAX_SCHEMAS                                                                         \
  "dual_softmax(Tensor corr, float temperature, bool log) -> "                                                 \
  "(Tensor p, Tensor target_logsumexp, Tensor source_logsumexp)\n"                                            \
  "dual_softmax_backward(Tensor corr, float temperature, bool log, Tensor target_logsumexp, "                  \
  "Tensor source_logsumexp, Tensor grad) -> Tensor"

#define SEMIMATCH_LEVELS                                                                                       \
  "Tensor[] src, Tensor[] trg, " SEMIMATCH_NORM ", str scale, bool relu, int power, ScalarType out_dtype"
#define SEMIMATCH_CORRELATION_SCHEMAS                                                                          \
  "correlation(" SEMIMATCH_LEVELS ") -> Tensor\n"                                                             \
  "correlation_backward(" SEMIMATCH_LEVELS ", Tensor grad) -> (Tensor[], Tensor[])"

#define SEMIMATCH_CONSISTENCY_SCHEMAS                                                                          \
  "forward_backward_mask(Tensor index_own, Tensor index_other, SymInt[2] own, SymInt[2] other, "               \
  "float alpha1, float alpha2, str sampling) -> Tensor"

#define SEMIMATCH_CPU_SCHEMAS                                                                                  \
  SEMIMATCH_MATCH_SCHEMAS "\n" SEMIMATCH_CONTRASTIVE_SCHEMAS "\n" SEMIMATCH_MUTUAL_SCHEMAS "\n"                \
  SEMIMATCH_PSEUDO_LABELS_SCHEMAS "\n" SEMIMATCH_MATCH_FEATURES_SCHEMAS "\n"                                 \
  SEMIMATCH_CONTRASTIVE_FEATURES_SCHEMAS "\n" SEMIMATCH_SOFT_ARGMAX_SCHEMAS "\n"                                      \
  SEMIMATCH_DUAL_SOFTMAX_SCHEMAS "\n" SEMIMATCH_CORRELATION_SCHEMAS "\n" SEMIMATCH_CONSISTENCY_SCHEMAS
#define SEMIMATCH_CUDA_SCHEMAS SEMIMATCH_MATCH_SCHEMAS "\n" SEMIMATCH_MUTUAL_SCHEMAS
// clang-format on
