"""In which units a position on a grid of cells is given."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from . import _checks
from ._checks import Grid

NAMES = ("corners", "centers", "cells")


@dataclass(frozen=True)
class Pixels:
    """Positions in pixels: the centre of cell i lies at stride * i + offset.

    offset None = (stride - 1) / 2, the middle of the cell where pixel 0 has its centre at 0.
    """

    stride: float
    offset: float | None = None

    def __post_init__(self) -> None:
        stride = _checks.check_number(self.stride, "stride")
        if not stride > 0:
            raise ValueError(f"stride: expected a number of pixels above 0, got {self.stride!r}")
        object.__setattr__(self, "stride", stride)
        if self.offset is not None:
            object.__setattr__(self, "offset", _checks.check_number(self.offset, "offset"))


Coordinates = str | Pixels


def check_coordinates(coordinates: object) -> Coordinates:
    """One of the names, or `Pixels`."""
    if isinstance(coordinates, Pixels):
        return coordinates
    if not isinstance(coordinates, str) or coordinates not in NAMES:
        raise ValueError(
            f"coordinates: expected one of {', '.join(map(repr, NAMES))} or Pixels(stride), got {coordinates!r}"
        )
    return coordinates


def convert(coords: Tensor, grid: Grid, coordinates: Coordinates) -> Tensor:
    """``coords`` [...,2] (x, y), corner-aligned in [-1,1] on ``grid``, in other units: "corners" as they are, "centers"
    with -1 and 1 at the outer edges of the cells, "cells" from 0 to W-1 and H-1, or `Pixels`."""
    if coordinates == "corners":
        return coords
    height, width = grid
    if coordinates == "centers":
        scale, shift = ((width - 1) / width, (height - 1) / height), (0.0, 0.0)
    else:
        scale = shift = ((width - 1) / 2, (height - 1) / 2)
        if isinstance(coordinates, Pixels):
            stride = coordinates.stride
            offset = (stride - 1) / 2 if coordinates.offset is None else coordinates.offset
            scale, shift = tuple(stride * s for s in scale), tuple(stride * s + offset for s in shift)
    # By scalars: a tensor of factors would be a copy to the device at every call.
    return torch.stack([coords[..., i] * scale[i] + shift[i] for i in (0, 1)], -1)
