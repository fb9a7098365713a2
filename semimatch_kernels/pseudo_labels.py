"""Pseudo labels: what a confident correlation teaches another view."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor

from . import _checks, library
from .backends import choose
from .reference.matching import admissible

__all__ = ["POLICIES", "PseudoLabels", "dash_threshold", "pseudo_labels"]

#: Arguments of `pseudo_labels` by the name of the method that chooses them; boxes and lookup go with any of them.
#: "dash" wants ``threshold=dash_threshold(...)`` beside.
POLICIES: Mapping[str, Mapping[str, object]] = MappingProxyType(
    {
        "semimatch": MappingProxyType({"threshold": 0.5, "uncertainty": 1.5, "forward_backward": True}),
        "uncertainty": MappingProxyType({"threshold": 0.0, "uncertainty": 1.5, "forward_backward": False}),
        "fixmatch": MappingProxyType({"threshold": 0.95, "uncertainty": 0.0, "forward_backward": False}),
        "dash": MappingProxyType({"uncertainty": 0.0, "forward_backward": False}),
    }
)


_BOXES = (*_checks.FLOATS, torch.int64, torch.int32, torch.int16, torch.uint8)


def dash_threshold(
    update: int, initial_loss: float, gamma: float = 1.27, scale: float = 1.0001, floor: float = 0.05
) -> float:
    r"""Least score of a cell that teaches, by Dash: the cross-entropy of its own label is at most
    :math:`\rho_t = \max(C \gamma^{-t} \hat\rho, \rho_{min})`.

    That cross-entropy is -ln(score), so the rule is score >= exp(-rho).

    Args:
        update: t, how often the schedule has advanced. initial_loss: the mean loss on labelled data at its start.
        gamma: what the threshold shrinks by, above 1. scale: C. floor: least threshold of the loss.

    Returns: ``threshold`` of `pseudo_labels`, in [0, 1]. torch.compile takes it for a constant, and compiles again for
        a new one: call `pseudo_labels` outside, or compare its score there.
    Raises: TypeError / ValueError naming the argument. Source: Dash (Xu et al., ICML 2021).
    """
    update = _checks.check_count(update, "update")
    initial_loss, floor = _checks.check_number(initial_loss, "initial_loss", 0), _checks.check_number(floor, "floor", 0)
    if not _checks.check_number(gamma, "gamma") > 1:
        raise ValueError(f"gamma: expected a number above 1, got {gamma!r}")
    scale = _checks.check_number(scale, "scale", 0)
    return math.exp(-max(scale * initial_loss * math.exp(-update * math.log(gamma)), floor))


class PseudoLabels(NamedTuple):
    """Teaching signal of each target cell, [B,T] each, without gradient."""

    labels: Tensor  #: int64, the source cell; -1 where a lookup reads outside the image
    weight: Tensor  #: exp(-uncertainty * entropy)
    mask: Tensor  #: bool, whether the cell teaches
    score: Tensor  #: probability of the label
    entropy: Tensor  #: in nats


def pseudo_labels(
    corr: Tensor, grid: Sequence, temperature: float = 0.1, threshold: float = 0.5, uncertainty: float = 1.5,
    src_box: Tensor | None = None, trg_box: Tensor | None = None, forward_backward: bool = True,
    alpha1: float = 0.1, alpha2: float = 0.5, sampling: str = "gather", entropy_eps: float = 0.0,
    lookup: tuple[Tensor, Tensor] | None = None, *,
    source_mask: Tensor | None = None, target_mask: Tensor | None = None, backend: str | None = None,
) -> PseudoLabels:  # fmt: skip
    r"""Label, weight and mask of every target cell from the correlation of a clean view.

    label :math:`\arg\max_s C_{st}`; weight :math:`e^{-T_u H_t}`, H the entropy of the softmax and :math:`T_u` the
    uncertainty; mask: score >= threshold, and label inside the source box, and cell inside the target box, and
    forward-backward consistent. `POLICIES` has the arguments of SemiMatch, FixMatch, Dash, and of the uncertainty
    alone.

    Args:
        corr, temperature: as in `match`. grid: (H, W) of both sides, or (source grid, target grid).
        threshold: least probability, 0 to 1; 0 = every label. uncertainty: the factor of the entropy in the weight;
            0 = every weight 1.
        src_box, trg_box: [B,4] (x1, y1, x2, y2) in cells (pixels / stride), rounded half to even, both ends inside.
        forward_backward: whether a cell has to be forward-backward consistent to teach.
        alpha1, alpha2, sampling: as in `forward_backward_mask`.
        entropy_eps: added to each probability inside the entropy; the release uses 1e-6.
        lookup: (cell, valid) of `warp_lookup`: moves the result to the frame of a warped view. The same as warping
            the whole correlation with nearest sampling, at 1/S of the data. Cells are trusted to lie in the grid.
        source_mask, target_mask: bool [B,S], [B,T], the cells that are there; the others neither teach nor are taught.
        backend: as in `match`.

    Returns: `PseudoLabels`. A NaN in the scores of a cell keeps it out of the mask.
    Gradient: none.
    Raises: TypeError / ValueError naming the argument; `BackendError` when the backend asked for cannot run.
    Cost: flops as `match` per target, and one comparison an entry for the best cells per source; reads C once and
        writes 21 bytes a cell (33 for float64). entropy_eps adds 1 exp and 1 log an entry.
    Called: the label, score, uncertainty and mask part of SemiMatch's loss; FixMatch and Dash on any matcher.
    Source: SemiMatch (Kim et al., CVPR 2022), supplement Alg. 1; FixMatch (Sohn et al., 2020); Dash (Xu et al., 2021).

    Example:
        >>> lab = smk.pseudo_labels(torch.eye(16)[None], (4, 4), **smk.POLICIES["semimatch"])
        >>> lab.labels[0, :4], int(lab.mask.sum())
        (tensor([0, 1, 2, 3]), 16)
    """
    corr = _checks.check_corr(corr).detach()
    _checks.check_nonempty(corr)
    temperature = _checks.check_temperature(temperature)
    numbers = {"threshold": threshold, "uncertainty": uncertainty, "alpha1": alpha1, "alpha2": alpha2}
    for name, value in numbers.items():
        _checks.check_number(value, name)
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold: expected a probability, 0 to 1, got {threshold!r}")
    _checks.check_number(entropy_eps, "entropy_eps", 0)
    _checks.check_choice(sampling, "sampling", ("gather", "bilinear"))
    batch, sources, targets = corr.shape
    source_grid, target_grid = _checks.check_equal_grids(grid, sources, targets)
    for box, name in ((src_box, "src_box"), (trg_box, "trg_box")):
        if box is not None:
            _checks.check_device(_checks.check_shape(box, name, (batch, 4), _BOXES), name, corr, "corr")
    _checks.check_mask(source_mask, "source_mask", (batch, sources), corr, "corr")
    _checks.check_mask(target_mask, "target_mask", (batch, targets), corr, "corr")
    cell, valid = _check_lookup(lookup, (batch, targets), corr)
    forward_backward = _checks.check_flag(forward_backward, "forward_backward")
    chosen = choose("pseudo_labels", backend, corr)
    out = library.run(
        "pseudo_labels", chosen, admissible(corr, source_mask, target_mask), source_grid, target_grid, temperature,
        float(threshold), float(uncertainty), src_box, trg_box, forward_backward, float(alpha1), float(alpha2),
        sampling, float(entropy_eps), cell, valid,
    )  # fmt: skip
    return PseudoLabels(*out)


def _check_lookup(lookup: object, shape: tuple[int, int], corr: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """(cell, valid) of `warp_lookup`, or (None, None)."""
    if lookup is None:
        return None, None
    if not isinstance(lookup, (tuple, list)) or len(lookup) != 2:
        raise TypeError(f"lookup: expected (cell, valid) of warp_lookup, got {_checks.describe(lookup)}")
    cell = _checks.check_shape(lookup[0], "lookup[0]", shape, (torch.int64,))
    valid = _checks.check_shape(lookup[1], "lookup[1]", shape, (torch.bool,))
    _checks.check_device(cell, "lookup[0]", corr, "corr")
    _checks.check_device(valid, "lookup[1]", corr, "corr")
    return cell, valid
