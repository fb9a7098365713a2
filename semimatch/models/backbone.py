"""What every backbone shares, and the table of backbones."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UserError

STRIDE = 16

#: Backbone's name -> (module of this package, class). Imported on use: each needs a package of its own.
BACKBONES = {
    "efficientnet-lite0": ("efficientnet", "EfficientNetLite0"),
    "resnet101": ("resnet", "ResNet101"),
}


class WeightsError(UserError):
    """Pretrained weights that cannot be had or do not fit; the message says which file is expected where."""


class Backbone(nn.Module):
    """Image -> features at several depths ("levels"), all brought to one grid of stride 16.

    Subclasses compute the levels in `extract`; nothing behind the last level is kept or run.

    Args:
        taps: ids of the levels, strictly increasing; what an id means is the subclass's matter.
        count: ids run from 0 to count - 1.
        mean, std: of the images that the network was trained on, for the three channels of an image in 0..1.

    Attributes:
        channels: list[int], channels of each level. stride: 16, pixels a cell. mean, std: float32 [3].
    """

    channels: list[int]
    stride = STRIDE

    def __init__(self, taps: Sequence[int], count: int, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        taps = [int(tap) for tap in taps]
        if not taps or taps != sorted(set(taps)) or taps[0] < 0 or taps[-1] >= count:
            raise ValueError(f"levels is {taps}; expected strictly increasing ids from 0 to {count - 1}")
        self.taps = taps
        # Constants of the network, not weights: they stay out of the state dict.
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32), persistent=False)

    def extract(self, images: Tensor) -> list[Tensor]:
        """The levels of normalised images [B,3,H,W], each at its own resolution."""
        raise NotImplementedError

    def forward(self, images: Tensor) -> list[Tensor]:
        """Levels of RGB images.

        Args:
            images: floating [B,3,H,W] in 0..1, H and W multiples of 16. Normalised here.

        Returns:
            One [B,C_l,H/16,W/16] a tap, resized bilinearly with aligned corners where the network's own
            resolution differs. Gradient: to weights and images.

        Source of the resizing rule: Hyperpixel Flow (Min et al., ICCV 2019), as CATs has it.
        """
        if images.dim() != 4 or images.shape[1] != 3 or not images.is_floating_point():
            raise TypeError(f"images: expected floating [B,3,H,W] in 0..1, got {images.dtype} {list(images.shape)}")
        height, width = images.shape[2:]
        if height % STRIDE or width % STRIDE or not height or not width:
            raise ValueError(f"images: expected height and width in multiples of {STRIDE}, got {height} x {width}")
        mean, std = self.mean.view(1, 3, 1, 1), self.std.view(1, 3, 1, 1)
        levels = self.extract((images - mean) / std)
        grid = (height // STRIDE, width // STRIDE)
        return [
            level if level.shape[2:] == grid else F.interpolate(level, grid, mode="bilinear", align_corners=True)
            for level in levels
        ]


def build_backbone(name: str, levels: Sequence[int] | None = None, pretrained: bool = True) -> Backbone:
    """A backbone by name.

    Args:
        name: key of `BACKBONES`.
        levels: its taps (see the class); None = its `default_levels`.
        pretrained: fill in ImageNet weights; False = random weights.

    Raises:
        ValueError: no such name, or taps out of range.
        WeightsError: the weights cannot be had; the message says where they are expected.
    """
    if name not in BACKBONES:
        raise ValueError(f"backbone is {name!r}; expected one of {', '.join(BACKBONES)}")
    module, cls = BACKBONES[name]
    kind = getattr(import_module(f".{module}", __package__), cls)
    return kind(kind.default_levels if levels is None else levels, pretrained)
