"""The network as a whole: images to correlation to flow."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

import semimatch_kernels as smk

from ..config import ModelConfig
from .backbone import Backbone, build_backbone
from .cats import CatsHead
from .flow import flow_from_coords
from .mean import MeanHead


class Matcher(nn.Module):
    """Backbone and head.

    Args:
        backbone: image -> levels.
        head: (source levels, target levels) -> correlation [B,S,T].
        temperature: of the soft-argmax; it belongs to the weights.
        center: subtract from every channel of every level its mean over the cells of the image: cosines then
            compare what sets a cell apart. Needs no statistics of the data and leaves an image's features
            independent of its partner. For frozen features and the training-free head; CATs does without.
        size: side of the images, pixels.

    Attributes:
        grid: (H, W) in cells, of both sides. stride: pixels a cell.
    """

    def __init__(
        self,
        backbone: Backbone,
        head: nn.Module,
        temperature: float = 0.1,
        center: bool = False,
        size: int = 256,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.temperature = temperature
        self.center = center
        self.stride = backbone.stride
        self.grid = (size // self.stride, size // self.stride)

    def features(self, images: Tensor) -> list[Tensor]:
        """Levels [B,C_l,H,W] of images, floating [B,3,16H,16W] in 0..1."""
        levels = self.backbone(images)
        if self.center:
            levels = [level - level.mean((2, 3), keepdim=True) for level in levels]
        return levels

    def correlate(self, source: Sequence[Tensor], target: Sequence[Tensor]) -> Tensor:
        """Refined correlation [B,S,T] of two images' `features`."""
        return self.head(source, target)

    def flow(self, corr: Tensor) -> Tensor:
        """Flow [B,2,H,W] (x, y) in cells from every target cell to its expected match in the source."""
        coords = smk.match(corr, self.grid, self.temperature, per="target").coords
        return flow_from_coords(coords, self.grid)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """Refined correlation [B,S,T] of two batches of images, floating [B,3,16H,16W] in 0..1."""
        return self.correlate(self.features(source), self.features(target))


def build_matcher(model: ModelConfig, size: int = 256) -> Matcher:
    """The network that a configuration describes, on the CPU, with fresh head weights.

    Raises:
        WeightsError: ``model.pretrained`` is set and the backbone's weights cannot be had.
        ValueError: a setting that the network cannot have.
    """
    backbone = build_backbone(model.backbone, model.levels, model.pretrained)
    side = size // backbone.stride
    if model.head == "mean":
        head: nn.Module = MeanHead()
    elif model.head == "cats":
        head = CatsHead(
            backbone.channels,
            grid=(side, side),
            projection=model.projection,
            depth=model.depth,
            mlp_ratio=model.mlp_ratio,
            zero_init=model.zero_init,
        )
    else:
        raise ValueError(f"model.head is {model.head!r}; expected 'cats' or 'mean'")
    return Matcher(backbone, head, model.temperature, model.center, size)
