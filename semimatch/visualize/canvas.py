"""Two images side by side, and smooth lines and dots over them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

Picture = Image.Image | np.ndarray | Tensor
Color = tuple[int, int, int]

HEIGHT = 480  # of both images as shown, pixels
GAP = 14
HEAD = 34  # strip of titles above
FOOT = 34  # strip of notes below
SMOOTH = 3  # the overlay is drawn this many times larger, then reduced
BACKGROUND = (255, 255, 255)
INK = (40, 40, 40)
MUTED = (120, 120, 120)


def to_image(picture: Picture, name: str) -> Image.Image:
    """RGB image from a PIL image, a uint8 array [H,W,3] or a tensor [3,H,W], uint8 or floating in 0..1."""
    if isinstance(picture, Image.Image):
        return picture.convert("RGB")
    if isinstance(picture, Tensor) and picture.dim() == 3 and picture.shape[0] == 3:
        pixels = picture.detach().cpu()
        if pixels.is_floating_point():
            pixels = (pixels.float().clamp(0, 1) * 255).round().to(torch.uint8)
        if pixels.dtype == torch.uint8:
            return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    if isinstance(picture, np.ndarray) and picture.ndim == 3 and picture.shape[2] == 3 and picture.dtype == np.uint8:
        return Image.fromarray(picture)
    kind = f"{picture.dtype} {list(picture.shape)}" if hasattr(picture, "shape") else type(picture).__name__
    raise TypeError(
        f"{name}: expected a PIL image, a uint8 array [H,W,3] or a tensor [3,H,W] (uint8, or floating in "
        f"0..1), got {kind}"
    )


def to_points(points: np.ndarray | Tensor, name: str) -> np.ndarray:
    """float64 [P,2] from an array or tensor of that shape."""
    values = points.detach().cpu().numpy() if isinstance(points, Tensor) else np.asarray(points)
    if values.ndim != 2 or values.shape[1] != 2:
        raise ValueError(f"{name}: expected [P,2] pixels (x, y), got {list(values.shape)}")
    return values.astype(np.float64)


def _font(size: float) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)


class Canvas:
    """Two images at one height, titles above, room for a note below, and an overlay to draw on.

    Places are (side, x, y): side 0 is the left image, 1 the right; x, y are pixels of that image as it was
    given, (0, 0) the centre of its first pixel.

    Args:
        left, right: the images. titles: above each.
    """

    def __init__(self, left: Image.Image, right: Image.Image, titles: Sequence[str]) -> None:
        widths = [max(1, round(image.width * HEIGHT / image.height)) for image in (left, right)]
        shown = [
            image.resize((width, HEIGHT), Image.Resampling.LANCZOS)
            for image, width in zip((left, right), widths, strict=True)
        ]
        self.origins = [(GAP, HEAD), (2 * GAP + shown[0].width, HEAD)]
        self.scales = [
            (new.width / old.width, new.height / old.height) for new, old in zip(shown, (left, right), strict=True)
        ]
        size = (3 * GAP + shown[0].width + shown[1].width, HEAD + HEIGHT + FOOT)
        self.base = Image.new("RGB", size, BACKGROUND)
        pen = ImageDraw.Draw(self.base)
        for image, origin, title in zip(shown, self.origins, titles, strict=True):
            self.base.paste(image, origin)
            pen.text((origin[0], HEAD / 2), title, INK, _font(17), anchor="lm")
        self.overlay = Image.new("RGBA", (size[0] * SMOOTH, size[1] * SMOOTH), (0, 0, 0, 0))
        self.pen = ImageDraw.Draw(self.overlay)

    def place(self, side: int, point: np.ndarray) -> tuple[float, float]:
        """Overlay coordinates of a point of one image."""
        (left, top), (across, down) = self.origins[side], self.scales[side]
        return (left + (point[0] + 0.5) * across) * SMOOTH, (top + (point[1] + 0.5) * down) * SMOOTH

    def line(self, start: tuple[float, float], end: tuple[float, float], color: Color, width: float = 2.0) -> None:
        """A line; from 1.2 pixels on with a dark rim, so that it shows on any image."""
        if width >= 1.2:
            self.pen.line([start, end], (0, 0, 0, 110), round((width + 1.4) * SMOOTH))
        self.pen.line([start, end], (*color, 240), max(1, round(width * SMOOTH)))

    def dot(self, at: tuple[float, float], color: Color, radius: float = 5.0) -> None:
        """A filled disc with a white and a dark rim."""
        for r, fill in (
            (radius + 2.0, (0, 0, 0, 150)),
            (radius + 1.3, (255, 255, 255, 255)),
            (radius, (*color, 255)),
        ):
            self.pen.ellipse(self._box(at, r), fill)

    def ring(self, at: tuple[float, float], color: Color, radius: float = 8.0) -> None:
        """A circle with dark rims."""
        for r, width, fill in ((radius + 0.8, 4.0, (0, 0, 0, 170)), (radius, 2.4, (*color, 255))):
            self.pen.ellipse(self._box(at, r), outline=fill, width=round(width * SMOOTH))

    def _box(self, at: tuple[float, float], radius: float) -> tuple[float, float, float, float]:
        r = radius * SMOOTH
        return at[0] - r, at[1] - r, at[0] + r, at[1] + r

    def note(self, parts: Sequence[tuple[str, str, Color]]) -> None:
        """The key below: (sign, text, colour) each; signs are "line", "dot", "ring" or "" for plain text."""
        x, y = float(GAP), HEAD + HEIGHT + FOOT / 2
        pen, font = ImageDraw.Draw(self.base), _font(15)
        for sign, text, color in parts:
            if sign == "line":
                self.line((x * SMOOTH, y * SMOOTH), ((x + 22) * SMOOTH, y * SMOOTH), color)
                x += 29
            elif sign:
                at = ((x + 8) * SMOOTH, y * SMOOTH)
                self.ring(at, color, 6.5) if sign == "ring" else self.dot(at, color)
                x += 22
            pen.text((x, y), text, INK if sign else MUTED, font, anchor="lm")
            x += pen.textlength(text, font) + 22

    def scale(self, colors: Sequence[Color], low: str, high: str) -> None:
        """A colour bar at the right of the strip below, with its ends named."""
        pen, font = ImageDraw.Draw(self.base), _font(15)
        y, right = HEAD + HEIGHT + FOOT / 2, self.base.width - GAP
        pen.text((right, y), high, INK, font, anchor="rm")
        right -= pen.textlength(high, font) + 8
        for i, color in enumerate(colors):
            x = right - 140 + 140 * i / len(colors)
            pen.rectangle((x, y - 5, x + 140 / len(colors), y + 5), color)
        pen.text((right - 148, y), low, INK, font, anchor="rm")

    def finish(self) -> Image.Image:
        """The picture, RGB."""
        overlay = self.overlay.reduce(SMOOTH)
        out = self.base.convert("RGBA")
        out.alpha_composite(overlay)
        return out.convert("RGB")
