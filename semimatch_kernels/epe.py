"""The supervised loss: end-point error of a flow on the cells that have an annotation."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _checks
from .backends import choose
from .reference import epe as _reference

__all__ = ["sparse_epe"]


def sparse_epe(
    flow: Tensor,
    target: Tensor,
    mask: Tensor | None = None,
    reduction: str = "mean",
    *,
    backend: str | None = None,
) -> Tensor:
    """Euclidean distance of predicted and true flow over the annotated cells.

    Args:
        flow, target: [B,2,H,W] (x, y), in cells. mask: [B,H,W] bool, the annotated cells; None = cells whose target is
            not exactly (0, 0), as the release of CATs and SemiMatch has it.
        reduction: "none" [B,H,W], "sum", or "mean" over the masked cells of the batch (0 with gradient 0 if none).

    Gradient: to ``flow``; 0 where the distance is 0. Source: CATs (Cho et al., NeurIPS 2021).
    """
    if not isinstance(flow, Tensor) or flow.dim() != 4 or flow.shape[1] != 2 or flow.dtype not in _checks.FLOATS:
        raise TypeError(f"flow: expected floating [B,2,H,W], got {_checks.describe(flow)}")
    _checks.check_shape(target, "target", tuple(flow.shape), _checks.FLOATS)
    if mask is None:
        mask = (target != 0).any(1)
    _checks.check_device(target, "target", flow, "flow")
    _checks.check_device(mask, "mask", flow, "flow")
    _checks.check_shape(mask, "mask", (flow.shape[0], *flow.shape[2:]), (torch.bool,))
    _checks.check_choice(reduction, "reduction", _checks.REDUCTIONS)
    choose("sparse_epe", backend, flow)
    return _reference.sparse_epe(flow, target, mask, reduction)
