"""The supervised loss: end-point error of a flow on the cells that have an annotation."""

from __future__ import annotations

from torch import Tensor

from . import _checks, library
from .backends import choose

__all__ = ["sparse_epe"]


def sparse_epe(
    flow: Tensor,
    target: Tensor,
    mask: Tensor | None = None,
    reduction: str = "mean",
    *,
    backend: str | None = None,
) -> Tensor:
    r"""Euclidean distance of predicted and true flow over the annotated cells, :math:`|f - \hat f|_2`.

    Args:
        flow, target: [B,2,H,W] (x, y), in cells, of floating dtypes; target is constant for the gradient.
        mask: [B,H,W] bool, the annotated cells; None = cells whose target is not exactly (0, 0), as the release of CATs
            and SemiMatch has it.
        reduction: "none" [B,H,W], "sum", or "mean" over the masked cells of the batch (0 with gradient 0 if none).
        backend: as in `match`.

    Returns: float32 (float64 for float64), [B,H,W] (0 outside the mask) or a scalar.
    Gradient: to ``flow``, any number of times; 0 where the distance is 0.
    Raises: TypeError / ValueError naming the argument; `BackendError` when the backend asked for cannot run.
    Cost: forward reads 4 numbers and 1 byte a cell, 6 flops and 1 root; backward the same and writes 2 numbers a cell.
    Called: EPE of CATs, CATs++, SemiMatch, DenseMatching. Source: CATs (Cho et al., NeurIPS 2021).

    Example:
        >>> flow, target = torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 2, 2)
        >>> target[0, :, 0, 0] = torch.tensor([3.0, 4.0])  # the one annotated cell
        >>> smk.sparse_epe(flow, target)
        tensor(5.)
    """
    if not isinstance(flow, Tensor) or flow.dim() != 4 or flow.shape[1] != 2 or flow.dtype not in _checks.FLOATS:
        raise TypeError(f"flow: expected floating [B,2,H,W], got {_checks.describe(flow)}")
    _checks.check_shape(target, "target", tuple(flow.shape), _checks.FLOATS)
    if mask is None:
        mask = (target != 0).any(1)
    _checks.check_device(target, "target", flow, "flow")
    _checks.check_mask(mask, "mask", (flow.shape[0], *flow.shape[2:]), flow, "flow")
    _checks.check_choice(reduction, "reduction", _checks.REDUCTIONS)
    return library.run("sparse_epe", choose("sparse_epe", backend, flow), flow, target.detach(), mask, reduction)
