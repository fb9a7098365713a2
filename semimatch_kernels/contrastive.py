"""The masked contrastive loss, from a correlation or straight from features."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from . import _checks, library
from .backends import choose
from .matching import FeatureSides, check_sides
from .reference.matching import admissible

__all__ = ["GaussianTarget", "masked_contrastive_loss", "masked_contrastive_loss_features"]

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.uint8)


@dataclass(frozen=True)
class GaussianTarget:
    """Instead of all on the label, the goal is a Gaussian of ``sigma`` cells on the square of ``radius`` cells round it
    (None = 3 sigma, rounded up), inside the ``grid`` (H, W) of the side that is reduced over, over the cells that are
    not excluded, normalised to 1."""

    sigma: float
    grid: tuple[int, int]
    radius: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "sigma", _checks.check_sigma(self.sigma))
        _checks.check_grid(self.grid, None)
        if self.radius is not None:
            _checks.check_count(self.radius, "radius")


def _smoothing(smoothing: object, reduced: int) -> tuple[int, float, int]:
    """(width of the grid, sigma, radius), as the op has them; sigma 0 = all on the label."""
    if smoothing is None:
        return reduced, 0.0, 0
    if not isinstance(smoothing, GaussianTarget):
        raise TypeError(f"smoothing: expected GaussianTarget or None, got {_checks.describe(smoothing)}")
    _, width = _checks.check_grid(smoothing.grid, reduced, "smoothing.grid", "reduced")
    radius = math.ceil(3 * smoothing.sigma) if smoothing.radius is None else smoothing.radius
    return width, float(smoothing.sigma), int(radius)


@dataclass(frozen=True)
class _Cells:
    """The per-cell arguments of one direction, [B,N] each, checked."""

    labels: Tensor
    weight: Tensor | None
    mask: Tensor | None

    @staticmethod
    def check(values: tuple, shape: tuple[int, int], like: Tensor, name: str, pair: str = "") -> _Cells:
        labels, weight, mask = values
        _checks.check_shape(labels, f"labels{pair}", shape, _INTEGERS)
        _checks.check_device(labels, f"labels{pair}", like, name)
        if weight is not None:
            _checks.check_shape(weight, f"weight{pair}", shape, _checks.FLOATS)
            _checks.check_device(weight, f"weight{pair}", like, name)
            weight = weight.detach()
        return _Cells(labels.long(), weight, _checks.check_mask(mask, f"mask{pair}", shape, like, name))

    def without(self, kept: Tensor | None, reduced: Tensor | None) -> _Cells:
        """Cells that are not there do not count, and neither does a label that names a cell which is not there."""
        mask = self.mask
        for part in (kept, None if reduced is None else _names_valid(self.labels, reduced)):
            if part is not None:
                mask = part if mask is None else mask & part
        return _Cells(self.labels, self.weight, mask)


def _names_valid(labels: Tensor, valid: Tensor) -> Tensor:
    """Whether each label names a valid cell; True for one out of range, which is reported as NaN."""
    return valid.gather(1, labels.clamp(0, valid.shape[1] - 1)) | (labels >= valid.shape[1])


def _both(value: object, name: str) -> tuple:
    """A pair (per target, per source); None is a pair of None."""
    if value is None:
        return None, None
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise TypeError(
            f"{name}: expected a pair (per target, per source) for per='both', got {_checks.describe(value)}"
        )
    return tuple(value)


def _per_side(
    labels, weight, mask, smoothing, per: str, reduction: str, run: Callable[[str, tuple, object, str], Tensor]
):  # fmt: skip
    """``run(side, (labels, weight, mask), smoothing, suffix of argument names)`` for one side, or both halved."""
    _checks.check_choice(per, "per", _checks.PER)
    _checks.check_choice(reduction, "reduction", _checks.REDUCTIONS)
    if per != "both":
        return run(per, (labels, weight, mask), smoothing, "")
    values = zip(_both(labels, "labels"), _both(weight, "weight"), _both(mask, "mask"), strict=True)
    goals = _both(smoothing, "smoothing")
    losses = [
        run(side, cells, goals[i], f"[{i}]")
        for i, (side, cells) in enumerate(zip(("target", "source"), values, strict=True))
    ]
    return tuple(losses) if reduction == "none" else (losses[0] + losses[1]) / 2


def masked_contrastive_loss(
    corr: Tensor, labels: Tensor, temperature: float = 0.1, weight: Tensor | None = None, mask: Tensor | None = None,
    reduction: str = "mean", per: str = "target", *, smoothing: GaussianTarget | None = None,
    source_mask: Tensor | None = None, target_mask: Tensor | None = None, backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:  # fmt: skip
    r"""Cross-entropy of each target cell over the source cells, weighted and masked.

    :math:`\ell_t = w_t (\ln \sum_s e^{C_{st}/\tau} - \sum_s q_{st} C_{st}/\tau)` for the cells that count, else 0; the
    goal q is all on the label, or a Gaussian round it.

    Args:
        corr: as in `match`; -inf entries are excluded.
        labels: [B,T] int64, int32, int16 or uint8, the right source cell; negative = ignored.
        temperature: divides the scores; above 0.
        weight: [B,T] of a floating dtype, constant for the gradient; None = 1.
        mask: [B,T] bool, the cells that count; None = every labelled cell.
        reduction: "none" [B,T], "sum", or "mean" = sum divided by the number of cells that count in the batch (not by
            the sum of weights); 0 with gradient 0 if there is none.
        per: "target"; "source" (labels, weight, mask [B,S], cross-entropy over the target cells); or "both", the
            symmetric form: labels, weight, mask and smoothing are pairs (per target, per source), and the loss is the
            mean of the two (the pair for reduction="none").
        smoothing: `GaussianTarget`; None = all on the label.
        source_mask, target_mask: bool [B,S], [B,T], the cells that are there; a cell that is not, or whose label names
            one that is not, does not count.
        backend: as in `match`.

    Returns: float32 (float64 for float64), [B,T] or a scalar. A label that names no cell gives NaN, one on an excluded
        entry +inf. Scores of cells that do not count reach neither value nor gradient, not even as NaN.
    Gradient: to ``corr`` only, :math:`w_t (p_{st} - q_{st}) / \tau`, taken in float32 or wider; once.
    Raises: TypeError / ValueError naming the argument; `BackendError` when the backend asked for cannot run.
    Cost: forward reads C once and writes 4 bytes a cell for the gradient; backward reads C once and writes a matrix of
        its size; about 4 flops and 1 exp an entry each way. smoothing adds 1 exp an entry of the square.
    Called: the unsupervised loss of SemiMatch (0.1, weight exp(-1.5 H)); self_contrastive and cal_clip_loss of
        GeoAware-SC (both); GaussianCrossEntropyLoss of the Visual-AI benchmark (0.03, `GaussianTarget`, radius 3);
        torch.nn.functional.cross_entropy of C transposed, without the temperature.
    Source: SemiMatch (Kim et al., CVPR 2022); InfoNCE (van den Oord et al., 2018); both ways: CLIP (2021).

    Example:
        >>> corr = torch.zeros(1, 4, 2, requires_grad=True)
        >>> loss = smk.masked_contrastive_loss(corr, torch.tensor([[2, -1]]))  # the second cell has no label
        >>> round(loss.item(), 4)  # ln 4
        1.3863
    """
    corr = _checks.check_corr(corr)
    _checks.check_nonempty(corr)
    temperature = _checks.check_temperature(temperature)
    batch, sources, targets = corr.shape
    _checks.check_mask(source_mask, "source_mask", (batch, sources), corr, "corr")
    _checks.check_mask(target_mask, "target_mask", (batch, targets), corr, "corr")
    chosen = choose("masked_contrastive_loss", backend, corr)

    def one(side: str, values: tuple, smoothing: object, pair: str) -> Tensor:
        scores, kept, reduced = (
            (corr, target_mask, source_mask) if side == "target" else (corr.transpose(1, 2), source_mask, target_mask)
        )
        cells = _Cells.check(values, (batch, scores.shape[2]), corr, "corr", pair).without(kept, reduced)
        goal = _smoothing(smoothing, scores.shape[1])
        scores = admissible(scores, reduced, None)
        args = (scores, cells.labels, cells.weight, cells.mask, temperature, reduction, *goal)
        return library.run("masked_contrastive_loss", chosen, *args)[0]

    return _per_side(labels, weight, mask, smoothing, per, reduction, one)


def masked_contrastive_loss_features(
    src: Tensor, trg: Tensor, labels: Tensor, temperature: float = 0.1, weight: Tensor | None = None,
    mask: Tensor | None = None, reduction: str = "mean", per: str = "target", normalize: bool | str = True,
    eps: float = 1e-6, *, smoothing: GaussianTarget | None = None,
    source_mask: Tensor | None = None, target_mask: Tensor | None = None, backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:  # fmt: skip
    r"""`masked_contrastive_loss` of ``correlation(src, trg)`` without ever holding the S x T matrix.

    The equation of `masked_contrastive_loss` with :math:`C_{st} = \langle \hat f_s, \hat g_t \rangle`, features
    normalised as in `correlation`.

    Args:
        src, trg, normalize, eps: as in `match_features`.
        labels, temperature, weight, mask, reduction, per, smoothing, source_mask, target_mask, backend: as in
            `masked_contrastive_loss`.

    Returns: as `masked_contrastive_loss`. Gradient: to both feature maps, once.
    Raises: as `masked_contrastive_loss` and `match_features`.
    Cost: 2 B S T C flops a direction forward, 6 B S T C backward; forward reads B (S + T) C elements and writes 4 bytes
        a cell for the gradient. Memory O(B (S + T) C) and one block of B x S x 1024 entries, which is formed again for
        the gradient; never B S T.
    Called: as `masked_contrastive_loss`, where features are taught directly; cut-cross-entropy and
        F.linear_cross_entropy for one matrix of classes instead of one a sample.
    Source: as `masked_contrastive_loss`; cut cross-entropy (Wijmans et al., 2024) for the memory.

    Example:
        >>> src, trg = (torch.randn(1, 32, 4, 4, requires_grad=True) for _ in range(2))
        >>> smk.masked_contrastive_loss_features(src, trg, labels=torch.arange(16)[None]).backward()
        >>> trg.grad.shape
        torch.Size([1, 32, 4, 4])
    """
    sides = check_sides(src, trg, source_mask, target_mask)
    temperature = _checks.check_temperature(temperature)
    normalize, eps = _checks.check_normalize(normalize, eps)
    chosen = choose("masked_contrastive_loss_features", backend, sides.src)

    def one(side: str, values: tuple, smoothing: object, pair: str) -> Tensor:
        own: FeatureSides = sides if side == "target" else sides.swapped()
        cells = _Cells.check(values, (own.trg.shape[0], own.trg.shape[2]), own.src, "src", pair)
        cells = cells.without(own.target_mask, own.source_mask)
        goal = _smoothing(smoothing, own.src.shape[2])
        per_cell = (cells.labels, cells.weight, cells.mask, own.source_mask)
        args = (own.src, own.trg, *per_cell, temperature, reduction, *goal, normalize, eps)
        return library.run("masked_contrastive_loss_features", chosen, *args)[0]

    return _per_side(labels, weight, mask, smoothing, per, reduction, one)
