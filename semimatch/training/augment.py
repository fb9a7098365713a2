"""Augmentation on batches of 256x256 images in memory: crop, photometric, KeyOut, geometric warp.

Every random draw comes from the generator handed in, on the CPU, so that a step is a function of (seed, step) and a
resumed run repeats it exactly. Ranges: SemiMatch, supplement Tab. 1 and ALGORITHM; photometric strengths are the usual
ones of that list of operations.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Generator, Tensor
from torch.nn.functional import grid_sample
from torchvision.transforms.v2 import functional as tv

from ..data.store import Batch

ROTATION, SHEAR = math.pi / 12, math.pi / 6
SCALE, TRANSLATION = 0.25, 0.25


def uniform(generator: Generator, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Uniform draws of ``shape`` in [low, high)."""
    return torch.rand(*shape, generator=generator) * (high - low) + low


# --- crop
# ---------------------------------------------------------------------------------------------------------------
def crop(image: Tensor, points: Tensor, box: Tensor, p: float, generator: Generator) -> tuple[Tensor, Tensor, Tensor]:
    """With probability ``p`` a random crop that keeps the object box, stretched back to the full size.

    Args: image uint8 [B,3,S,S]; points [B,P,2] px; box [B,4] px. Returns the three moved into the crop's frame;
        padding points move along and mean nothing.
    """
    size = image.shape[-1]
    draws = uniform(generator, image.shape[0], 5).to(box)
    low = box[:, :2].clamp(0, size - 1) * draws[:, :2]
    far = box[:, 2:].clamp(1, size)
    high = far + (size - far) * draws[:, 2:4]
    cropped = (draws[:, 4] < p) & (high - low > 1).all(1)
    low, high = torch.where(cropped[:, None], low, 0.0), torch.where(cropped[:, None], high, float(size))
    centres = (torch.arange(size, device=points.device) + 0.5) / size  # output pixel centres as fractions
    read = low[:, None] + centres[None, :, None] * (high - low)[:, None]  # [B,S,2] in px of the input
    position = 2 * read / size - 1
    grid = torch.stack(
        [
            position[:, None, :, 0].expand(-1, size, -1),
            position[:, :, None, 1].expand(-1, -1, size),
        ],
        -1,
    )
    resampled = grid_sample(image.float(), grid, padding_mode="border", align_corners=False)
    moved = resampled.round().to(torch.uint8)
    image = torch.where(cropped[:, None, None, None], moved, image)
    points = points_in_crop(points, low, high, size)
    box = points_in_crop(box.unflatten(1, (2, 2)), low, high, size).flatten(1)
    return image, points, box


def points_in_crop(points: Tensor, low: Tensor, high: Tensor, size: int) -> Tensor:
    """``points`` [B,P,2] px in the frame of the crop from ``low`` to ``high`` [B,2] that is stretched to ``size``."""
    return (points - low[:, None]) * (size / (high - low))[:, None]


def crop_batch(batch: Batch, p: float, generator: Generator) -> Batch:
    """`crop` of the source and of the target of every pair, each with its own draw."""
    source, source_points, source_box = crop(batch.source, batch.source_points, batch.source_box, p, generator)
    target, target_points, target_box = crop(batch.target, batch.target_points, batch.target_box, p, generator)
    size = batch.target.shape[-1]
    # Annotations lie up to a pixel outside the image; what a crop cut off lies further out and is dropped.
    inside = ((source_points >= -1) & (source_points <= size + 1)).all(-1)
    inside &= ((target_points >= -1) & (target_points <= size + 1)).all(-1)
    return replace(
        batch,
        source=source,
        target=target,
        source_points=source_points,
        target_points=target_points,
        source_box=source_box,
        target_box=target_box,
        valid=batch.valid & inside,
    )


# --- photometric
# --------------------------------------------------------------------------------------------------------
def _jitter(image: Tensor, draws: Tensor) -> Tensor:
    b, c, s, h = (draws * 0.4 - 0.2).tolist()
    image = tv.adjust_brightness(image, 1 + b)
    image = tv.adjust_contrast(image, 1 + c)
    return tv.adjust_hue(tv.adjust_saturation(image, 1 + s), h)


def _brightness_contrast(image: Tensor, draws: Tensor) -> Tensor:
    b, c = (draws[:2] * 0.4 + 0.8).tolist()
    return tv.adjust_contrast(tv.adjust_brightness(image, b), c)


def _blur(image: Tensor, draws: Tensor) -> Tensor:
    side = 3 + 2 * int(draws[0] * 3)  # 3, 5 or 7
    return tv.gaussian_blur(image, [side, side])


# name -> operation on one uint8 image [3,S,S] with four uniform draws, in the order they are applied
_OPERATIONS = {
    "gray": lambda image, draws: tv.rgb_to_grayscale(image, num_output_channels=3),
    "posterize": lambda image, draws: tv.posterize(image, bits=4),
    "equalize": lambda image, draws: tv.equalize(image),
    "sharpen": lambda image, draws: tv.adjust_sharpness(image, 1 + 2 * draws[0].item()),
    "blur": _blur,
    "brightness-contrast": _brightness_contrast,
    "solarize": lambda image, draws: tv.solarize(image, threshold=128),
    "color jitter": _jitter,
}
WEAK = ("gray", "posterize", "equalize", "sharpen", "brightness-contrast", "solarize", "color jitter")
STRONG = ("gray", "posterize", "equalize", "blur", "brightness-contrast", "solarize", "color jitter")


def photometric(image: Tensor, operations: tuple[str, ...], p: float, generator: Generator) -> Tensor:
    """Each operation on each image with probability ``p``, with its own strength; uint8 [B,3,S,S] -> the same, a new
    tensor."""
    names = [name for name in _OPERATIONS if name in operations]
    draws = uniform(generator, image.shape[0], len(names), 5)
    out = image.clone()
    for i, sample in enumerate(draws):
        for name, draw in zip(names, sample, strict=True):
            if draw[0] < p:
                out[i] = _OPERATIONS[name](out[i], draw[1:])
    return out


# --- KeyOut
# -------------------------------------------------------------------------------------------------------------
def keyout_mask(
    points: Tensor, valid: Tensor, box: Tensor, size: int, p: float, generator: Generator, sides=(0.03, 0.10)
) -> Tensor:
    """Pixels [B,S,S] bool to blank: round each annotated point, with probability ``p``, a square whose side is 3-10 %
    of the larger side of the object box. ``points`` [B,P,2] px, ``valid`` [B,P], ``box`` [B,4]; squares are cut at the
    border."""
    draws = uniform(generator, *points.shape[:2], 2).to(points)
    larger = (box[:, 2:] - box[:, :2]).amax(1)  # [B]
    side = (larger[:, None] * (sides[0] + (sides[1] - sides[0]) * draws[..., 1])).floor()  # [B,P]
    return squares(points, side, (draws[..., 0] < p) & valid, size)


def squares(points: Tensor, side: Tensor, chosen: Tensor, size: int, released: bool = False) -> Tensor:
    """Pixels [B,S,S] bool in the squares of ``side`` [B,P] whole px round the ``points`` [B,P,2] that are ``chosen``
    [B,P], cut at the border.

    released: as the release of SemiMatch cuts them, where an end below 0 counts from the far border.
    """
    start = points.trunc() if released else points.floor()
    start = (start - (side / 2).floor()[..., None])[..., None]  # [B,P,2,1]
    end = start + side[..., None, None]
    if released:
        end = torch.where(end < 0, end + size, end)
    pixel = torch.arange(size, device=points.device)
    covered = (pixel >= start) & (pixel < end)  # [B,P,2,S]
    return (covered[:, :, 1, :, None] & covered[:, :, 0, None, :] & chosen[..., None, None]).any(1)


# --- geometric
# ----------------------------------------------------------------------------------------------------------
def random_theta(batch: int, tps: float, generator: Generator) -> Tensor:
    """Parameters [B,24] of `semimatch_kernels.warp`, kind "affine_tps".

    Rotation within 15 degrees, shear axis within 30, scales and translations of a quarter, control points moved by up
    to ``tps`` (in units of half the image).
    """
    u = uniform(generator, batch, 24)
    rotation, axis = (u[:, 0] - 0.5) * 2 * ROTATION, (u[:, 1] - 0.5) * 2 * SHEAR
    scales = 1 + (2 * u[:, 2:4] - 1) * SCALE
    shift = (2 * u[:, 4:6] - 1) * TRANSLATION

    def turn(angle: Tensor) -> Tensor:
        cos, sin = angle.cos(), angle.sin()
        return torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], -2)

    with torch.autocast("cpu", enabled=False):  # parameters of a warp must not be rounded
        a = turn(rotation) @ turn(axis).transpose(1, 2) @ torch.diag_embed(scales) @ turn(axis)
    affine = torch.stack([a[:, 0, 0], a[:, 0, 1], shift[:, 0], a[:, 1, 0], a[:, 1, 1], shift[:, 1]], 1)
    steps = torch.tensor([-1.0, 0.0, 1.0])
    regular = torch.cartesian_prod(steps, steps).T.flatten()  # 9 x, then 9 y
    return torch.cat([affine, regular + (2 * u[:, 6:] - 1) * tps], 1)
