"""The same, or a part of it, by other libraries and other functions of PyTorch; nothing where they are not there."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

TEMPERATURE = 0.1
IGNORED = -100


@dataclass(frozen=True)
class Peer:
    """Another way to the numbers of an op."""

    call: Callable[..., object]
    #: For one that computes less than the op: the same in plain PyTorch, which it is compared with instead.
    part: Callable[..., object] | None = None
    #: Whether it takes one sample only.
    single: bool = False


def side(cells: int) -> tuple[int, int]:
    """The square grid of ``cells``."""
    return (round(cells**0.5),) * 2


def unit(features: Tensor) -> Tensor:
    """Cells [B,N,C] of length 1 of ``features`` [B,C,H,W], in their dtype."""
    flat = features.flatten(2).mT
    wide = flat if flat.dtype == torch.float64 else flat.float()
    return (wide / (wide.square().sum(-1, keepdim=True) + 1e-6).sqrt()).to(flat.dtype)


def kornia(coords: Callable[[Tensor], Tensor]) -> dict[str, Peer]:
    """Soft-argmax coordinates of `match`."""
    if importlib.util.find_spec("kornia") is None:
        return {}

    def call(corr: Tensor) -> Tensor:
        from kornia.geometry.subpix import spatial_soft_argmax2d

        maps = corr.mT.reshape(corr.shape[0], corr.shape[2], *side(corr.shape[1]))
        return spatial_soft_argmax2d(maps, torch.tensor(1 / TEMPERATURE, device=corr.device, dtype=corr.dtype))

    return {"kornia": Peer(call, part=coords)}


def attention(coords: Callable[[Tensor, Tensor], Tensor]) -> dict[str, Peer]:
    """Soft-argmax coordinates of `match_features` as attention: queries are targets, keys sources, values the grid."""

    def call(src: Tensor, trg: Tensor) -> Tensor:
        height, width = src.shape[2:]
        y = torch.linspace(-1, 1, height, device=src.device, dtype=src.dtype).repeat_interleave(width)
        x = torch.linspace(-1, 1, width, device=src.device, dtype=src.dtype).repeat(height)
        keys, queries = unit(src), unit(trg)
        values = torch.stack((x, y), -1).expand(src.shape[0], -1, -1)
        # fused kernels take 4 dimensions, and widths that are multiples of 8
        values = F.pad(values, (0, 6))
        out = F.scaled_dot_product_attention(queries[:, None], keys[:, None], values[:, None], scale=1 / TEMPERATURE)
        return out[:, 0, :, :2]

    return {"SDPA, V = grid": Peer(call, part=coords)}


def linear_cross_entropies() -> dict[str, Peer]:
    """Losses of `masked_contrastive_loss_features`: cells are rows, the other side's cells are classes."""

    def rows(src: Tensor, trg: Tensor, labels: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return unit(trg)[0] / TEMPERATURE, unit(src)[0], labels.masked_fill(~mask, IGNORED)[0]

    def plain(*inputs: Tensor) -> Tensor:
        return F.linear_cross_entropy(*rows(*inputs), ignore_index=IGNORED)

    def chunked(*inputs: Tensor) -> Tensor:
        options = torch.nn.LinearCrossEntropyOptions(allow_retain_graph=True)
        return F.linear_cross_entropy(*rows(*inputs), ignore_index=IGNORED, options=options)

    def cut(*inputs: Tensor) -> Tensor:
        from cut_cross_entropy import linear_cross_entropy

        cells, classes, labels = rows(*inputs)
        return linear_cross_entropy(cells, classes, labels, ignore_index=IGNORED)

    def liger(*inputs: Tensor) -> Tensor:
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

        cells, classes, labels = rows(*inputs)
        return LigerFusedLinearCrossEntropyLoss(ignore_index=IGNORED)(classes, cells, labels)

    there = {
        "F.linear_cross_entropy": (plain, hasattr(F, "linear_cross_entropy")),
        "F.linear_cross_entropy, chunked": (chunked, hasattr(torch.nn, "LinearCrossEntropyOptions")),
        "cut-cross-entropy": (cut, importlib.util.find_spec("cut_cross_entropy") is not None),
        "liger-kernel": (liger, importlib.util.find_spec("liger_kernel") is not None),
    }
    return {name: Peer(call, single=True) for name, (call, installed) in there.items() if installed}
