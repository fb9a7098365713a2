"""What is timed against what: for each op its inputs, our backends, and the ways to compute the same without us.

A peer is a function of the inputs that returns the differentiable results. "eager" is the plain definition with
autograd, "compile" the same under torch.compile.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

import semimatch_kernels as smk
from semimatch_kernels import library
from semimatch_kernels.backends import BACKENDS, reason_against

from .costs import Shape

TEMPERATURE = 0.1


@dataclass(frozen=True)
class Subject:
    """An op as it is timed: inputs, our call, its plain definition, and other ways to the same numbers."""

    name: str  # as in `costs`
    op: str  # as in `backends.OPS`
    inputs: Callable[[Shape, torch.device, torch.dtype], list[Tensor]]
    ours: Callable[..., object]  # (*inputs, backend)
    plain: Callable[..., object]  # (*inputs)
    others: dict[str, Callable[..., object]]
    differentiable: int = 1  # how many of the inputs carry a gradient
    compiled: bool = True  # whether torch.compile is a peer: each compilation takes seconds


def side(cells: int) -> tuple[int, int]:
    """The square grid of ``cells``."""
    return (round(cells**0.5),) * 2


def _matrix(s: Shape, device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    return [torch.randn(s.batch, s.cells, s.cells, device=device).mul_(0.3).to(dtype)]


def _labelled(s: Shape, device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    shape = (s.batch, s.cells)
    labels = torch.randint(0, s.cells, shape, device=device)
    return [
        *_matrix(s, device, dtype),
        labels,
        torch.rand(shape, device=device),
        torch.rand(shape, device=device) < 0.3,
    ]


def _features(s: Shape, device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    shape = (s.batch, s.channels[0], *side(s.cells))
    return [torch.randn(shape, device=device).to(dtype) for _ in range(2)]


def _levels(s: Shape, device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    grid = side(s.cells)
    return [torch.randn(s.batch, c, *grid, device=device).to(dtype) for c in (*s.channels, *s.channels)]


def _labelled_features(s: Shape, device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    return [*_features(s, device, dtype), *_labelled(Shape(s.batch, s.cells, ()), device, dtype)[1:]]


def _grid(corr: Tensor) -> tuple[int, int]:
    return side(corr.shape[1])


def _cross_entropy(corr: Tensor, labels: Tensor, weight: Tensor, mask: Tensor) -> Tensor:
    """The loss as one would write it with PyTorch's own cross-entropy."""
    loss = F.cross_entropy(corr.float() / TEMPERATURE, labels, reduction="none")
    return (loss * weight * mask).sum() / mask.sum().clamp(min=1)


def _plain_correlation(*levels: Tensor) -> Tensor:
    half = len(levels) // 2
    src, trg = ([f.flatten(2) for f in part] for part in (levels[:half], levels[half:]))
    return library.definition("correlation")(src, trg, "inside", 1e-6, "none", False, 1, src[0].dtype)


def _plain_pseudo_labels(corr: Tensor) -> tuple[Tensor, ...]:
    args = (_grid(corr), _grid(corr), TEMPERATURE, 0.5, 1.5, None, None, True, 0.1, 0.5, "gather", 0.0, None, None)
    return library.definition("pseudo_labels")(corr, *args)


def _flat(*features: Tensor) -> list[Tensor]:
    return [f.flatten(2) for f in features]


SUBJECTS = [
    Subject(
        "correlation", "correlation", _levels,
        lambda *f, backend: smk.correlation(list(f[: len(f) // 2]), list(f[len(f) // 2 :]), backend=backend),
        _plain_correlation, {}, 99,
    ),
    Subject(
        "mutual_filter", "mutual_filter", _matrix,
        lambda c, backend: smk.mutual_filter(c, backend=backend),
        lambda c: library.definition("mutual_filter")(c, None)[0], {},
    ),
    Subject(
        "match", "match", _matrix,
        lambda c, backend: smk.match(c, _grid(c), TEMPERATURE, backend=backend),
        lambda c: library.definition("match")(c, _grid(c), TEMPERATURE), {},
    ),
    Subject(
        "match_both", "match", _matrix,
        lambda c, backend: smk.match(c, (_grid(c), _grid(c)), TEMPERATURE, "both", backend=backend),
        lambda c: library.definition("match_both")(c, _grid(c), _grid(c), TEMPERATURE), {},
    ),
    Subject(
        "soft_argmax_window", "soft_argmax with a window", _matrix,
        lambda c, backend: smk.soft_argmax(c, _grid(c), TEMPERATURE, window=smk.GaussianWindow(5), backend=backend),
        lambda c: library.definition("soft_argmax")(c, _grid(c), TEMPERATURE, "gaussian", 5.0)[0], {},
    ),
    Subject(
        "dual_softmax", "dual_softmax", _matrix,
        lambda c, backend: smk.dual_softmax(c, TEMPERATURE, backend=backend),
        lambda c: library.definition("dual_softmax")(c, TEMPERATURE, False)[0],
        {"softmax * softmax": lambda c: (x := c / TEMPERATURE).softmax(1) * x.softmax(2)},
    ),
    Subject(
        "masked_contrastive_loss", "masked_contrastive_loss", _labelled,
        lambda c, y, w, m, backend: smk.masked_contrastive_loss(c, y, TEMPERATURE, w, m, backend=backend),
        lambda c, y, w, m: library.definition("masked_contrastive_loss")(c, y, w, m, TEMPERATURE, "mean", 1, 0.0, 0)[0],
        {"F.cross_entropy": _cross_entropy},
    ),
    Subject(
        "pseudo_labels", "pseudo_labels", _matrix,
        lambda c, backend: smk.pseudo_labels(c, _grid(c), TEMPERATURE, backend=backend),
        _plain_pseudo_labels, {}, 0,
    ),
    Subject(
        "match_features", "match_features", _features,
        lambda s, t, backend: smk.match_features(s, t, tuple(s.shape[2:]), TEMPERATURE, backend=backend),
        lambda s, t: library.definition("match")(
            library.definition("correlation")(_flat(s), _flat(t), "inside", 1e-6, "none", False, 1, s.dtype)[:, 0],
            tuple(s.shape[2:]), TEMPERATURE,
        ),
        {}, 2,
    ),
    Subject(
        "masked_contrastive_loss_features", "masked_contrastive_loss_features", _labelled_features,
        lambda s, t, y, w, m, backend: smk.masked_contrastive_loss_features(
            s, t, y, TEMPERATURE, w, m, backend=backend
        ),
        lambda s, t, y, w, m: library.definition("masked_contrastive_loss")(
            library.definition("correlation")(_flat(s), _flat(t), "inside", 1e-6, "none", False, 1, s.dtype)[:, 0],
            y, w, m, TEMPERATURE, "mean", 1, 0.0, 0,
        )[0],
        {}, 2,
    ),
]  # fmt: skip


def backends_of(subject: Subject, device: torch.device, dtype: torch.dtype) -> list[str]:
    """Our backends that run the subject here; not Triton's interpreter, which is no measure of anything."""
    if device.type == "cpu":
        names = [b for b in BACKENDS if b != "triton"]
    else:
        names = list(BACKENDS)
    return [b for b in names if reason_against(subject.op, b, device.type, dtype) is None]


def peers(subject: Subject, phase: str, device: torch.device, dtype: torch.dtype) -> dict[str, Callable]:
    """Name -> function of the inputs, the eager definition first. torch.compile once an op and shape: with its gradient
    where it has one."""
    table: dict[str, Callable] = {"eager": subject.plain}
    if subject.compiled and (phase != "forward" or not subject.differentiable):
        table["compile"] = torch.compile(subject.plain, dynamic=False)
    table |= subject.others
    for backend in backends_of(subject, device, dtype):
        table[f"ours: {backend}"] = lambda *inputs, b=backend: subject.ours(*inputs, backend=b)
    return table
