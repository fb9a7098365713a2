"""What is timed: each op with its inputs, our call, its plain definition, and how else the same is computed.

A function of the inputs returns the results; those that are floating are compared with float64 before it is timed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

import semimatch_kernels as smk
from semimatch_kernels import library

from . import elsewhere
from .costs import KEPT, Shape
from .elsewhere import TEMPERATURE, Peer, side


@dataclass(frozen=True, eq=False)
class Subject:
    """An op as it is timed. Which of our backends run it is asked of `semimatch_kernels.backends`."""

    name: str  # as in `costs`
    op: str  # as in `backends.OPS`
    inputs: Callable[[Shape, torch.device, torch.dtype], list[Tensor]]
    ours: Callable[..., object]  # (*inputs, backend)
    plain: Callable[..., object]  # (*inputs)
    others: dict[str, Peer] = field(default_factory=dict)
    differentiable: int = 1  # how many of the inputs carry a gradient, from the first on

    @property
    def product(self) -> bool:
        """Whether it multiplies features: the only case in which tf32 differs from fp32."""
        return self.op.endswith("_features") or self.op == "correlation"


def _matrix(s: Shape, device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    return [torch.randn(s.batch, s.cells, s.cells, device=device).mul_(0.3).to(dtype)]


def _labels(s: Shape, device: torch.device) -> tuple[Tensor, Tensor]:
    shape = (s.batch, s.cells)
    return torch.randint(0, s.cells, shape, device=device), torch.rand(shape, device=device) < KEPT


def _labelled(s: Shape, device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    labels, mask = _labels(s, device)
    return [*_matrix(s, device, dtype), labels, torch.rand(labels.shape, device=device), mask]


def _levels(s: Shape, device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    return [torch.randn(s.batch, c, *side(s.cells), device=device).to(dtype) for c in (*s.channels, *s.channels)]


def _features(s: Shape, device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    return _levels(Shape(s.batch, s.cells, s.channels[:1]), device, dtype)


def _labelled_features(s: Shape, device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    return [*_features(s, device, dtype), *_labels(s, device)]


def _grid(corr: Tensor) -> tuple[int, int]:
    return side(corr.shape[1])


def _correlation(*levels: Tensor) -> Tensor:
    """The plain correlation [B,L,S,T] of the levels of both sides."""
    half = len(levels) // 2
    src, trg = ([f.flatten(2) for f in part] for part in (levels[:half], levels[half:]))
    return library.definition("correlation")(src, trg, "inside", 1e-6, "none", False, 1, src[0].dtype)


def _match(corr: Tensor) -> tuple[Tensor, ...]:
    return library.definition("match")(corr, _grid(corr), TEMPERATURE)


def _loss(corr: Tensor, labels: Tensor, weight: Tensor | None, mask: Tensor) -> Tensor:
    return library.definition("masked_contrastive_loss")(corr, labels, weight, mask, TEMPERATURE, "mean", 1, 0.0, 0)[0]


def _pseudo_labels(corr: Tensor) -> tuple[Tensor, ...]:
    args = (_grid(corr), _grid(corr), TEMPERATURE, 0.5, 1.5, None, None, True, 0.1, 0.5, "gather", 0.0, None, None)
    return library.definition("pseudo_labels")(corr, *args)


def _cross_entropy(corr: Tensor, labels: Tensor, weight: Tensor, mask: Tensor) -> Tensor:
    """The loss as one would write it with PyTorch's own cross-entropy."""
    wide = corr if corr.dtype == torch.float64 else corr.float()
    loss = F.cross_entropy(wide / TEMPERATURE, labels, reduction="none")
    return (loss * weight * mask).sum() / mask.sum().clamp(min=1)


def _products(*levels: Tensor) -> list[Tensor]:
    """cuBLAS alone, of features as they are; labels and masks among the inputs do not count."""
    levels = [f for f in levels if f.dim() == 4]
    half = len(levels) // 2
    return [torch.bmm(s.flatten(2).mT, t.flatten(2)) for s, t in zip(levels[:half], levels[half:], strict=True)]


_BMM = {"bmm": Peer(_products, part=_products)}

SUBJECTS = [
    Subject(
        "correlation", "correlation", _levels,
        lambda *f, backend: smk.correlation(list(f[: len(f) // 2]), list(f[len(f) // 2 :]), backend=backend),
        _correlation, _BMM, 99,
    ),
    Subject(
        "mutual_filter", "mutual_filter", _matrix,
        lambda c, backend: smk.mutual_filter(c, backend=backend),
        lambda c: library.definition("mutual_filter")(c, None)[0],
    ),
    Subject(
        "match", "match", _matrix,
        lambda c, backend: smk.match(c, _grid(c), TEMPERATURE, backend=backend),
        _match, elsewhere.kornia(lambda c: _match(c)[0]),
    ),
    Subject(
        "match_both", "match", _matrix,
        lambda c, backend: smk.match(c, (_grid(c), _grid(c)), TEMPERATURE, "both", backend=backend),
        lambda c: library.definition("match_both")(c, _grid(c), _grid(c), TEMPERATURE),
    ),
    Subject(
        "soft_argmax_window", "soft_argmax with a window", _matrix,
        lambda c, backend: smk.soft_argmax(c, _grid(c), TEMPERATURE, window=smk.GaussianWindow(5), backend=backend),
        lambda c: library.definition("soft_argmax")(c, _grid(c), TEMPERATURE, "gaussian", 5.0)[0],
    ),
    Subject(
        "dual_softmax", "dual_softmax", _matrix,
        lambda c, backend: smk.dual_softmax(c, TEMPERATURE, backend=backend),
        lambda c: library.definition("dual_softmax")(c, TEMPERATURE, False)[0],
        {"softmax * softmax": Peer(lambda c: (x := c / TEMPERATURE).softmax(1) * x.softmax(2))},
    ),
    Subject(
        "masked_contrastive_loss", "masked_contrastive_loss", _labelled,
        lambda c, y, w, m, backend: smk.masked_contrastive_loss(c, y, TEMPERATURE, w, m, backend=backend),
        _loss, {"F.cross_entropy": Peer(_cross_entropy)},
    ),
    Subject(
        "pseudo_labels", "pseudo_labels", _matrix,
        lambda c, backend: smk.pseudo_labels(c, _grid(c), TEMPERATURE, backend=backend),
        _pseudo_labels, {}, 0,
    ),
    Subject(
        "match_features", "match_features", _features,
        lambda s, t, backend: smk.match_features(s, t, tuple(s.shape[2:]), TEMPERATURE, backend=backend),
        lambda s, t: _match(_correlation(s, t)[:, 0]),
        _BMM | elsewhere.attention(lambda s, t: _match(_correlation(s, t)[:, 0])[0]), 2,
    ),
    Subject(
        "masked_contrastive_loss_features", "masked_contrastive_loss_features", _labelled_features,
        lambda s, t, y, m, backend: smk.masked_contrastive_loss_features(
            s, t, y, TEMPERATURE, None, m, backend=backend
        ),
        lambda s, t, y, m: _loss(_correlation(s, t)[:, 0], y, None, m),
        _BMM | elsewhere.linear_cross_entropies(), 2,
    ),
]  # fmt: skip

#: Public ops that no subject is of, and why.
LEFT_OUT = {
    "mutual_mask": "a comparison with two maxima: no kernel of its own",
    "soft_argmax": "the kernel of match",
    "softmax_entropy": "the kernel of match",
    "softmax_entropy_features": "the kernel of match_features",
    "soft_argmax_features": "the products of match_features, which cost the most, and a window",
    "dual_softmax_features": "the log-sum-exps of match_features",
    "forward_backward_mask": "reads no correlation; measured as a part of pseudo_labels",
    "warp": "PyTorch's own grid_sample",
    "warp_lookup": "PyTorch's own",
    "sparse_epe": "PyTorch's own",
}
