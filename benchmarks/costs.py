"""Bytes and flops that an op cannot do without: the one place that the rooflines are computed from.

Bytes count every element of inputs and results once, at its dtype; flops count a multiplication and an addition as two,
and an exponential as one. What an implementation moves beside is its own affair.
"""

from __future__ import annotations

from dataclasses import dataclass

#: Share of the cells that count in the losses that are measured: from features the others' columns need not be formed.
KEPT = 0.3


@dataclass(frozen=True)
class Cost:
    """Least traffic and arithmetic of one call."""

    bytes: float
    flops: float

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.bytes + other.bytes, self.flops + other.flops)


@dataclass(frozen=True)
class Shape:
    """A size of problem: batch, cells of each side, channels of each level, bytes an element."""

    batch: int
    cells: int
    channels: tuple[int, ...]
    width: int = 4

    @property
    def matrix(self) -> int:
        return self.batch * self.cells * self.cells

    @property
    def features(self) -> int:
        """Elements of both feature maps, all levels."""
        return 2 * self.batch * self.cells * sum(self.channels)


def forward(op: str, s: Shape) -> Cost:
    """Least cost of the forward pass of ``op``."""
    n, cells = s.matrix, s.batch * s.cells
    gemm = 2 * n
    return {
        "correlation": Cost((s.features + n * len(s.channels)) * s.width, gemm * sum(s.channels)),
        "mutual_filter": Cost(2 * n * s.width, 4 * n),
        "match": Cost(n * s.width + cells * 28, 9 * n),
        "match_both": Cost(n * s.width + 2 * cells * 28, 18 * n),
        "soft_argmax_window": Cost(n * s.width + cells * 16, 8 * n),
        "dual_softmax": Cost(n * (s.width + 4), 8 * n),
        "masked_contrastive_loss": Cost(n * s.width + cells * 17, 4 * n),
        "pseudo_labels": Cost(n * s.width + cells * 21, 8 * n),
        "match_features": Cost(s.features * s.width + cells * 28, gemm * s.channels[0] + 9 * n),
        "masked_contrastive_loss_features": Cost(
            s.features * s.width + cells * 17, KEPT * (gemm * s.channels[0] + 4 * n)
        ),
    }[op]


def backward(op: str, s: Shape) -> Cost:
    """Least cost of the backward pass, forward not included; nothing for an op without gradient."""
    n, gemm = s.matrix, 2 * s.matrix
    read_and_write = 2 * n * s.width
    return {
        "correlation": Cost((2 * s.features + n * len(s.channels)) * s.width, 2 * gemm * sum(s.channels)),
        "mutual_filter": Cost(3 * n * s.width, 10 * n),
        "match": Cost(read_and_write, 10 * n),
        "match_both": Cost(read_and_write, 20 * n),
        "soft_argmax_window": Cost(read_and_write, 8 * n),
        "dual_softmax": Cost(read_and_write + 4 * n, 10 * n),
        "masked_contrastive_loss": Cost(read_and_write, 4 * n),
        "pseudo_labels": Cost(0, 0),
        # the correlation is formed again, and multiplied with each side
        "match_features": Cost(2 * s.features * s.width, 3 * gemm * s.channels[0] + 10 * n),
        "masked_contrastive_loss_features": Cost(2 * s.features * s.width, KEPT * (3 * gemm * s.channels[0] + 4 * n)),
    }[op]


def cost(op: str, phase: str, s: Shape) -> Cost:
    """Least cost of "forward", "backward" or "forward+backward"."""
    parts = {"forward": forward, "backward": backward}
    return sum((parts[name](op, s) for name in phase.split("+")), Cost(0, 0))
