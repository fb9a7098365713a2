"""The transformer aggregator of CATs (Cho et al., NeurIPS 2021)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import semimatch_kernels as smk

EPS = 1e-6  # of the layer norms


class Attention(nn.Module):
    """Multi-head self-attention over dim -2 of [...,N,D]; biases everywhere, scale (D / heads)^-1/2."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)  # rows are [q | k | v], each [head][channel]
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        lead = x.shape[:-2]
        packed = self.qkv(x).flatten(0, -3).unflatten(-1, (3, self.heads, -1))  # [M,N,3,heads,d]
        q, k, v = packed.permute(2, 0, 3, 1, 4)  # each [M,heads,N,d]
        out = F.scaled_dot_product_attention(q, k, v)
        return self.out(out.transpose(1, 2).flatten(2)).unflatten(0, lead)


def _mlp(dim: int, ratio: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(dim, ratio * dim), nn.GELU(), nn.Linear(ratio * dim, dim))


class Block(nn.Module):
    """Attention among a level's cells, then among a cell's levels; an MLP after each. Pre-norm."""

    def __init__(self, dim: int, heads: int, mlp_ratio: int) -> None:
        super().__init__()
        self.cell_norm = nn.LayerNorm(dim, eps=EPS)
        self.cell_attention = Attention(dim, heads)
        self.cell_mlp_norm = nn.LayerNorm(dim, eps=EPS)
        self.cell_mlp = _mlp(dim, mlp_ratio)
        self.level_norm = nn.LayerNorm(dim, eps=EPS)
        self.level_attention = Attention(dim, heads)
        self.level_mlp_norm = nn.LayerNorm(dim, eps=EPS)
        self.level_mlp = _mlp(dim, mlp_ratio)

    def forward(self, x: Tensor) -> Tensor:
        """x [B,L,N,D] -> the same shape."""
        x = x + self.cell_attention(self.cell_norm(x))
        x = x + self.cell_mlp(self.cell_mlp_norm(x))
        x = x.transpose(1, 2)  # [B,N,L,D]
        x = x + self.level_attention(self.level_norm(x))
        x = x + self.level_mlp(self.level_mlp_norm(x))
        return x.transpose(1, 2)


class CatsHead(nn.Module):
    """Refines the correlations of all levels together.

    Each level's correlation is mutual-filtered. A token is one cell of one side: its row of the filtered
    correlation beside its projected features. The same transformer runs first on the target's cells, then on
    the source's, and each time predicts what to add to the filtered correlation. The result is the mean over
    the levels.

    Args:
        channels: of each level of the backbone.
        grid: (H, W), the same for both sides.
        projection: channels that the features are projected to.
        depth: blocks of the transformer. heads: of its attentions.
        mlp_ratio: hidden over outer width of its MLPs.
        zero_init: start with the last projection at zero: the untrained head then equals `MeanHead` exactly.

    Raises:
        ValueError: the token width, H * W + projection, is not a multiple of 2 * heads.
    """

    def __init__(
        self,
        channels: Sequence[int],
        grid: Sequence[int] = (16, 16),
        projection: int = 128,
        depth: int = 1,
        heads: int = 6,
        mlp_ratio: int = 4,
        zero_init: bool = False,
    ) -> None:
        super().__init__()
        height, width = (int(n) for n in grid)
        cells = height * width
        dim = cells + projection
        if dim % (2 * heads):
            raise ValueError(
                f"projection is {projection}: tokens are {cells} + {projection} = {dim} wide; expected a "
                f"multiple of {2 * heads} (two positional halves, {heads} heads)"
            )
        self.grid = (height, width)
        self.channels = list(channels)
        self.projections = nn.ModuleList(nn.Linear(count, projection) for count in channels)
        self.position_x = nn.Parameter(torch.zeros(len(self.channels), width, dim // 2))
        self.position_y = nn.Parameter(torch.zeros(len(self.channels), height, dim // 2))
        self.blocks = nn.ModuleList(Block(dim, heads, mlp_ratio) for _ in range(depth))
        self.out = nn.Linear(dim, cells)
        self._initialize(zero_init)

    def _initialize(self, zero_init: bool) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        nn.init.trunc_normal_(self.position_x, std=0.02)
        nn.init.trunc_normal_(self.position_y, std=0.02)
        if zero_init:
            nn.init.zeros_(self.out.weight)

    def forward(self, source: Sequence[Tensor], target: Sequence[Tensor]) -> Tensor:
        """Refined correlation of two feature pyramids.

        Args:
            source, target: levels [B,C_l,H,W], the ``channels`` and ``grid`` of the constructor.

        Returns:
            [B,S,T], source x target cells. Gradient: to features and parameters.
        """
        self._check(source, "source")
        self._check(target, "target")
        filtered = smk.correlation(source, target, mutual=True)  # [B,L,S,T]
        position = self._position()
        corr = self._refine(filtered.transpose(2, 3), self._project(target), position).transpose(2, 3) + filtered
        corr = self._refine(corr, self._project(source), position) + filtered
        return corr.mean(1)

    def _project(self, levels: Sequence[Tensor]) -> Tensor:
        """[B,L,HW,projection] of the levels as they are, not normalised."""
        rows = (level.flatten(2).transpose(1, 2) for level in levels)
        return torch.stack([project(x) for project, x in zip(self.projections, rows, strict=True)], 1)

    def _position(self) -> Tensor:
        """[L,HW,D]: one half of the channels says the column, the other the row."""
        height, width = self.grid
        x = self.position_x[:, None].expand(-1, height, -1, -1)
        y = self.position_y[:, :, None].expand(-1, -1, width, -1)
        return torch.cat([x, y], -1).flatten(1, 2)

    def _refine(self, corr: Tensor, features: Tensor, position: Tensor) -> Tensor:
        """One run of the transformer on tokens [corr | features] [B,L,N,D] -> [B,L,N,HW]."""
        x = torch.cat([corr, features], -1) + position
        for block in self.blocks:
            x = block(x)
        return self.out(x)

    def _check(self, levels: Sequence[Tensor], side: str) -> None:
        expected = [(count, *self.grid) for count in self.channels]
        if [tuple(level.shape[1:]) for level in levels] != expected:
            raise ValueError(
                f"{side}: expected levels [B,C,H,W] with (C,H,W) = {expected}, "
                f"got {[list(level.shape) for level in levels]}"
            )
