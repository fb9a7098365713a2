"""What PyTorch is told of each fused op: its schema, which arguments and results carry a gradient, who implements it.

The only place where a schema is written. The build puts a copy of those that a native module implements into it,
compared at load, so that a stale binary is noticed.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Op:
    """One op, ``torch.ops.semimatch_kernels.<name>[_<backend>]``.

    A differentiable op has a partner ``<name>_backward`` of the same backends, which is called with the arguments of
    the op, its ``saved`` results and the gradients of its ``outputs``, and returns those by its ``inputs``.
    """

    schema: str
    #: The backends beside the reference; "cpu" and "cuda" share the name without a suffix, and dispatch by device.
    backends: tuple[str, ...] = ()
    #: Positions of the arguments that carry a gradient; none = not differentiable.
    inputs: tuple[int, ...] = ()
    #: Positions of the results that carry a gradient.
    outputs: tuple[int, ...] = ()
    #: Positions of the results that the gradient needs.
    saved: tuple[int, ...] = ()


_SIDE = "Tensor {0}coords, Tensor {0}score, Tensor {0}entropy, Tensor {0}logsumexp, Tensor {0}index"
_GRADS = "Tensor? grad_{0}coords, Tensor? grad_{0}score, Tensor? grad_{0}entropy, Tensor? grad_{0}logsumexp"
_MATCH = "Tensor corr, SymInt[2] grid, float temperature"
_BOTH = "Tensor corr, SymInt[2] source_grid, SymInt[2] target_grid, float temperature"
_FEATURES = "Tensor src, Tensor trg, Tensor? source_mask, Tensor? target_mask, SymInt[2] grid, float temperature"
_NORM = "str normalize, float eps"
_LEVELS = f"Tensor[] src, Tensor[] trg, {_NORM}, str scale, bool relu, int power, ScalarType out_dtype"
_LABELS = "Tensor labels, Tensor? weight, Tensor? mask"
_LOSS = "float temperature, str reduction, SymInt width, float sigma, SymInt radius"
_BOXES = "Tensor? src_box, Tensor? trg_box, bool forward_backward, float alpha1, float alpha2, str sampling"

OPS: dict[str, Op] = {
    "correlation": Op(f"({_LEVELS}) -> Tensor", ("cpu", "triton", "cuda"), inputs=(0, 1), outputs=(0,)),
    "correlation_backward": Op(f"({_LEVELS}, Tensor grad) -> (Tensor[], Tensor[])", ("cpu", "triton", "cuda")),
    "mutual_filter": Op(
        "(Tensor corr, float? eps) -> (Tensor filtered, Tensor row_index, Tensor column_index)",
        ("cpu", "triton", "cuda"), inputs=(0,), outputs=(0,), saved=(1, 2),
    ),
    "mutual_filter_backward": Op(
        "(Tensor corr, float? eps, Tensor row_index, Tensor column_index, Tensor grad) -> Tensor",
        ("cpu", "triton", "cuda"),
    ),
    "match": Op(
        f"({_MATCH}) -> ({_SIDE.format('')})",
        ("cpu", "triton", "cuda"), inputs=(0,), outputs=(0, 1, 2, 3), saved=(0, 1, 2, 3, 4),
    ),
    "match_backward": Op(
        f"({_MATCH}, {_SIDE.format('')}, {_GRADS.format('')}) -> Tensor", ("cpu", "triton", "cuda")
    ),
    "match_both": Op(
        f"({_BOTH}) -> ({_SIDE.format('t_')}, {_SIDE.format('s_')})",
        ("cpu", "triton", "cuda"), inputs=(0,), outputs=(0, 1, 2, 3, 5, 6, 7, 8), saved=tuple(range(10)),
    ),
    "match_both_backward": Op(
        f"({_BOTH}, {_SIDE.format('t_')}, {_SIDE.format('s_')}, {_GRADS.format('t_')}, {_GRADS.format('s_')})"
        " -> Tensor",
        ("cpu", "triton", "cuda"),
    ),
    "match_features": Op(
        f"({_FEATURES}, {_NORM}) -> ({_SIDE.format('')})",
        ("cpu", "triton", "cuda"), inputs=(0, 1), outputs=(0, 1, 2, 3), saved=(0, 1, 2, 3, 4),
    ),
    "match_features_backward": Op(
        f"({_FEATURES}, {_NORM}, {_SIDE.format('')}, {_GRADS.format('')}) -> (Tensor, Tensor)",
        ("cpu", "triton", "cuda"),
    ),
    "soft_argmax": Op(
        f"({_MATCH}, str window, float width) -> (Tensor coords, Tensor index)",
        ("cpu", "triton", "cuda"), inputs=(0,), outputs=(0,), saved=(0, 1),
    ),
    "soft_argmax_backward": Op(
        f"({_MATCH}, str window, float width, Tensor coords, Tensor index, Tensor grad) -> Tensor",
        ("cpu", "triton", "cuda"),
    ),
    "soft_argmax_features": Op(
        f"({_FEATURES}, str window, float width, {_NORM}) -> (Tensor coords, Tensor index)",
        ("cpu", "triton", "cuda"), inputs=(0, 1), outputs=(0,), saved=(0, 1),
    ),
    "soft_argmax_features_backward": Op(
        f"({_FEATURES}, str window, float width, {_NORM}, Tensor coords, Tensor index, Tensor grad)"
        " -> (Tensor, Tensor)",
        ("cpu", "triton", "cuda"),
    ),
    "dual_softmax": Op(
        "(Tensor corr, float temperature, bool log)"
        " -> (Tensor p, Tensor target_logsumexp, Tensor source_logsumexp)",
        ("cpu", "triton", "cuda"), inputs=(0,), outputs=(0,), saved=(1, 2),
    ),
    "dual_softmax_backward": Op(
        "(Tensor corr, float temperature, bool log, Tensor target_logsumexp, Tensor source_logsumexp, Tensor grad)"
        " -> Tensor",
        ("cpu", "triton", "cuda"),
    ),
    "masked_contrastive_loss": Op(
        f"(Tensor corr, {_LABELS}, {_LOSS}) -> (Tensor loss, Tensor logsumexp, Tensor count)",
        ("cpu", "triton", "cuda"), inputs=(0,), outputs=(0,), saved=(1, 2),
    ),
    "masked_contrastive_loss_backward": Op(
        f"(Tensor corr, {_LABELS}, {_LOSS}, Tensor logsumexp, Tensor count, Tensor grad) -> Tensor",
        ("cpu", "triton", "cuda"),
    ),
    "masked_contrastive_loss_features": Op(
        f"(Tensor src, Tensor trg, {_LABELS}, Tensor? source_mask, {_LOSS}, {_NORM})"
        " -> (Tensor loss, Tensor logsumexp, Tensor count)",
        ("cpu", "triton", "cuda"), inputs=(0, 1), outputs=(0,), saved=(1, 2),
    ),
    "masked_contrastive_loss_features_backward": Op(
        f"(Tensor src, Tensor trg, {_LABELS}, Tensor? source_mask, {_LOSS}, {_NORM},"
        " Tensor logsumexp, Tensor count, Tensor grad) -> (Tensor, Tensor)",
        ("cpu", "triton", "cuda"),
    ),
    "forward_backward_mask": Op(
        "(Tensor index_own, Tensor index_other, SymInt[2] own, SymInt[2] other, float alpha1, float alpha2,"
        " str sampling) -> Tensor",
        ("cpu", "triton", "cuda"),
    ),
    "pseudo_labels": Op(
        "(Tensor corr, SymInt[2] source_grid, SymInt[2] target_grid, float temperature, float threshold,"
        f" float uncertainty, {_BOXES}, float entropy_eps, Tensor? cell, Tensor? valid)"
        " -> (Tensor labels, Tensor weight, Tensor mask, Tensor score, Tensor entropy)",
        ("cpu", "triton", "cuda"),
    ),
}  # fmt: skip

#: Ops made of PyTorch's own: schema only, everything else follows from what they call.
COMPOSITES: dict[str, str] = {
    "mutual_mask": "(Tensor corr, float? threshold) -> Tensor",
    "warp": "(Tensor image, Tensor theta, str kind, str interpolation, bool released) -> (Tensor, Tensor)",
    "warp_lookup": "(Tensor theta, SymInt[2] grid, str kind, bool released) -> (Tensor, Tensor)",
    "sparse_epe": "(Tensor flow, Tensor target, Tensor mask, str reduction) -> Tensor",
}

#: Backend of a native module -> name -> schema of the ops that the module implements.
NATIVE = {
    backend: {name: op.schema for name, op in OPS.items() if backend in op.backends} for backend in ("cpu", "cuda")
}


def backend_name(op: str, backend: str) -> str:
    """Name of ``op`` of a backend in ``torch.ops.semimatch_kernels``."""
    return op if backend in ("cpu", "cuda") else f"{op}_{backend}"
