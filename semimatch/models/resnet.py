"""ResNet-101 with the taps of Hyperpixel Flow and CATs."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import ResNet101_Weights, resnet101

from .backbone import Backbone, WeightsError

#: Environment variable that names a local file of weights.
WEIGHTS_VARIABLE = "SEMIMATCH_RESNET101_WEIGHTS"


class ResNet101(Backbone):
    """ResNet-101. Level 0 = output of the max-pool; level i from 1 to 33 = bottleneck i before its last ReLU.

    Source: CATs (Cho et al., NeurIPS 2021), taps found by Hyperpixel Flow (Min et al., ICCV 2019). Its taps
    for PF-PASCAL and PF-WILLOW are the default; for SPair-71k use [0, 8, 20, 21, 26, 28, 29, 30].
    Weights: torchvision's IMAGENET1K_V1.
    """

    default_levels = (2, 17, 21, 22, 25, 26, 28)

    def __init__(self, levels: Sequence[int] = default_levels, pretrained: bool = True) -> None:
        super().__init__(levels, count=34, mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])
        network = resnet101(weights=None)
        if pretrained:
            _load(network)
        self.stem = nn.Sequential(network.conv1, network.bn1, network.relu, network.maxpool)
        stages = (network.layer1, network.layer2, network.layer3, network.layer4)
        blocks = [block for stage in stages for block in stage]
        self.blocks = nn.ModuleList(blocks[: self.taps[-1]])
        self.channels = [64 if tap == 0 else blocks[tap - 1].conv3.out_channels for tap in self.taps]

    def extract(self, images: Tensor) -> list[Tensor]:
        x = self.stem(images)
        levels = [x] if self.taps[0] == 0 else []
        for number, block in enumerate(self.blocks, start=1):
            x = _before_last_relu(block, x)
            tapped = number in self.taps
            if tapped:
                levels.append(x)
            if number < len(self.blocks):
                x = F.relu(x, inplace=not tapped)
        return levels


def _before_last_relu(block: nn.Module, x: Tensor) -> Tensor:
    """A bottleneck of torchvision without the ReLU that ends it."""
    out = block.relu(block.bn1(block.conv1(x)))
    out = block.relu(block.bn2(block.conv2(out)))
    out = block.bn3(block.conv3(out))
    return out + (x if block.downsample is None else block.downsample(x))


def _load(network: nn.Module) -> None:
    """Fill in ImageNet weights: from the file that `WEIGHTS_VARIABLE` names, torch's cache, or a download."""
    weights = ResNet101_Weights.IMAGENET1K_V1
    file_name = weights.url.rpartition("/")[2]
    local = os.environ.get(WEIGHTS_VARIABLE)
    help_text = (
        f"expected torchvision's ResNet-101 IMAGENET1K_V1 weights, {file_name} ({weights.url}), at "
        f"{Path(torch.hub.get_dir()) / 'checkpoints' / file_name}, or anywhere with {WEIGHTS_VARIABLE} "
        "set to the file's path"
    )
    if local:
        origin = f"{WEIGHTS_VARIABLE}={local}"
        try:
            state = torch.load(local, map_location="cpu", weights_only=True)
        except FileNotFoundError:
            raise WeightsError(f"{origin}: no such file; {help_text}") from None
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise WeightsError(f"{origin}: not a complete PyTorch file ({error}); {help_text}") from error
    else:
        origin = "backbone resnet101"
        try:
            state = weights.get_state_dict(progress=True, check_hash=True, map_location="cpu")
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise WeightsError(
                f"{origin}: weights are not in torch's cache and cannot be downloaded ({error}); {help_text}"
            ) from error
    try:
        if not isinstance(state, Mapping):
            raise TypeError(f"holds a {type(state).__name__}")
        network.load_state_dict(state)
    except (RuntimeError, TypeError) as error:
        raise WeightsError(f"{origin}: does not fit ResNet-101 ({error}); {help_text}") from error
