"""Drawing for the embedded data set: shapes with smooth outlines, materials, light, and a canvas to paint
them on.

Everything is numpy and Pillow, antialiased by supersampling the coverage of each shape.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter, zoom

SUPERSAMPLING = 4
Generator = np.random.Generator


def spline(points: np.ndarray | list, samples: int = 8) -> np.ndarray:
    """Closed smooth curve (Catmull-Rom) through points [N, 2]: polygon [N * samples, 2]."""
    p1 = np.asarray(points, float)
    p0, p2, p3 = np.roll(p1, 1, axis=0), np.roll(p1, -1, axis=0), np.roll(p1, -2, axis=0)
    t = np.linspace(0, 1, samples, endpoint=False)[None, :, None]
    p0, p1, p2, p3 = (p[:, None] for p in (p0, p1, p2, p3))
    curve = 2 * p1 + (p2 - p0) * t + (2 * p0 - 5 * p1 + 4 * p2 - p3) * t**2 + (3 * p1 - p0 - 3 * p2 + p3) * t**3
    return (curve / 2).reshape(-1, 2)


def ellipse(centre: np.ndarray | tuple, rx: float, ry: float, angle: float = 0.0) -> np.ndarray:
    """Polygon [40, 2]; `angle` in radians turns the axes."""
    t = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    return turn(np.stack([rx * np.cos(t), ry * np.sin(t)], axis=1), (0, 0), angle) + np.asarray(centre, float)


def limb(points: list, start: float, end: float) -> np.ndarray:
    """Outline of a bar along points [N, 2] whose width goes from `start` to `end`: polygon [2N, 2]."""
    line = np.asarray(points, float)
    along = np.gradient(line, axis=0)
    normal = np.stack([-along[:, 1], along[:, 0]], axis=1) / np.linalg.norm(along, axis=1, keepdims=True)
    half = np.linspace(start, end, len(line))[:, None] / 2
    return np.concatenate([line + normal * half, (line - normal * half)[::-1]])


def subdivide(polygon: np.ndarray | list, pieces: int = 6) -> np.ndarray:
    """The polygon with every side cut into pieces, so that a deformation can bend it."""
    points = np.asarray(polygon, float)
    t = np.linspace(0, 1, pieces, endpoint=False)[None, :, None]
    return (points[:, None] * (1 - t) + np.roll(points, -1, axis=0)[:, None] * t).reshape(-1, 2)


def by(point: np.ndarray, dx: float, dy: float) -> np.ndarray:
    """The point [2] moved by (dx, dy)."""
    return point + np.array([dx, dy])


def turn(points: np.ndarray | list, centre: np.ndarray | tuple, angle: float) -> np.ndarray:
    """Points [..., 2] turned round `centre` by `angle` radians (clockwise on the screen, y points down)."""
    c, s = np.cos(angle), np.sin(angle)
    return (np.asarray(points, float) - centre) @ np.array([[c, s], [-s, c]]) + centre


@dataclass(frozen=True)
class Material:
    """How a surface looks: two colours (RGB, 0 to 1) mixed by a pattern over the object's own coordinates."""

    base: np.ndarray
    accent: np.ndarray
    pattern: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None
    gloss: float = 0.3

    def colour(self, u: np.ndarray, v: np.ndarray) -> np.ndarray:
        """RGB [..., 3] at object coordinates u, v."""
        if self.pattern is None:
            return np.broadcast_to(self.base, (*u.shape, 3))
        mix = self.pattern(u, v)[..., None]
        return self.base * (1 - mix) + self.accent * mix


@dataclass(frozen=True)
class Part:
    """One painted shape of an object: polygon [N, 2] in the object's coordinates; `relief` 0 flat to 1
    round."""

    polygon: np.ndarray
    material: Material
    relief: float = 0.5


def random_colour(rng: Generator, saturation: tuple = (0.1, 0.95), value: tuple = (0.2, 1.0)) -> np.ndarray:
    """RGB [3] of any hue."""
    return np.array(colorsys.hsv_to_rgb(rng.uniform(), rng.uniform(*saturation), rng.uniform(*value)))


def random_material(rng: Generator, base: np.ndarray | None = None) -> Material:
    """A material with a random pattern: plain, stripes, spots, checks, a gradient or mottled."""
    base = random_colour(rng) if base is None else np.clip(base + rng.normal(0, 0.05, 3), 0, 1)
    accent = random_colour(rng)
    frequency, angle, phase = rng.uniform(6, 22), rng.uniform(0, np.pi), rng.uniform(0, 6.28)
    c, s = np.cos(angle), np.sin(angle)
    bumps = rng.normal(0, 1, (4, 2)) * frequency * 0.7

    def step(wave: np.ndarray) -> np.ndarray:
        return np.clip(wave * 3 + 0.5, 0, 1)

    patterns = {
        "stripes": lambda u, v: step(np.sin(frequency * (c * u + s * v) + phase)),
        "spots": lambda u, v: step(
            np.sin(frequency * (c * u + s * v) + phase) * np.sin(frequency * (c * v - s * u)) - 0.35
        ),
        "checks": lambda u, v: step(np.sin(frequency * (c * u + s * v)) * np.sin(frequency * (c * v - s * u))),
        "gradient": lambda u, v: np.clip(0.5 + 0.6 * (c * u + s * v), 0, 1),
        "mottled": lambda u, v: step(sum(np.sin(a * u + b * v + phase) for a, b in bumps) * 0.4),
        "plain": None,
    }
    kind = rng.choice(["plain", "plain", "stripes", "spots", "checks", "gradient", "gradient", "mottled"])
    return Material(base, accent, patterns[str(kind)], rng.uniform(0.0, 0.6))


def plain(colour: np.ndarray | tuple, gloss: float = 0.3) -> Material:
    """One colour."""
    return Material(np.asarray(colour, float), np.zeros(3), None, gloss)


def smooth_noise(rng: Generator, height: int, width: int, cells: int) -> np.ndarray:
    """Noise [height, width] about 0 that varies over 1/cells of the image."""
    coarse = rng.normal(0, 1, (cells + 3, cells + 3))
    fine = zoom(coarse, ((height + 8) / (cells + 1), (width + 8) / (cells + 1)), order=1)
    return fine[:height, :width]


@dataclass
class Canvas:
    """An image that shapes are painted on.

    Attributes:
        pixels: float [H, W, 3], 0 to 1.
        light: direction the light comes from, [2], on the screen.
    """

    pixels: np.ndarray
    light: np.ndarray = field(default_factory=lambda: np.array([-0.6, -0.8]))

    @property
    def size(self) -> tuple[int, int]:
        """(width, height)."""
        return self.pixels.shape[1], self.pixels.shape[0]

    def coverage(self, polygon: np.ndarray) -> tuple[slice, slice, np.ndarray] | None:
        """Rows, columns and share [h, w] of each pixel inside a polygon [N, 2] (pixels); None if outside."""
        width, height = self.size
        low = np.maximum(np.floor(polygon.min(axis=0)).astype(int) - 1, 0)
        high = np.minimum(np.ceil(polygon.max(axis=0)).astype(int) + 2, (width, height))
        w, h = high - low
        if w <= 0 or h <= 0:
            return None
        mask = Image.new("L", (int(w) * SUPERSAMPLING, int(h) * SUPERSAMPLING))
        points = ((polygon - low + 0.5) * SUPERSAMPLING - 0.5).round(2)
        ImageDraw.Draw(mask).polygon([tuple(point) for point in points.tolist()], fill=255)
        share = np.asarray(mask.reduce(SUPERSAMPLING), np.float32) / 255
        return slice(low[1], high[1]), slice(low[0], high[0]), share

    def paint(
        self,
        polygon: np.ndarray,
        material: Material,
        relief: float = 0.5,
        frame: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> None:
        """Paints a polygon [N, 2] (pixels).

        Args:
            polygon: outline, pixels.
            material: what it is made of.
            relief: 0 flat, 1 round: how much the light models it.
            frame: pixels [..., 2] -> coordinates of the object, where the material's pattern lies.
        """
        covered = self.coverage(polygon)
        if covered is None:
            return
        rows, columns, share = covered
        y, x = np.mgrid[rows, columns]
        place = np.stack([x, y], axis=-1).astype(float)
        place = place / 60 if frame is None else frame(place)
        colour = material.colour(place[..., 0], place[..., 1])
        shade = np.ones_like(share)
        if relief > 0:
            # The blurred coverage is taken for the height of the surface; its slope against the light is the
            # shading.
            width = max(1.2, 0.18 * np.sqrt(share.sum()))
            height = gaussian_filter(share, width, mode="constant")
            dy, dx = np.gradient(height)
            slope = -(dx * self.light[0] + dy * self.light[1]) * width * 1.6
            shade = 1 - relief * 0.55 * np.clip(slope, -1, 1)
            shine = material.gloss * relief * np.clip(-slope - 0.35, 0, 1)
            colour = colour * shade[..., None] + shine[..., None]
        rim = 1 - 0.45 * (share * (1 - gaussian_filter(share, 0.9, mode="constant")) * 2)
        colour = np.clip(colour * rim[..., None], 0, 1)
        region = self.pixels[rows, columns]
        region += share[..., None] * (colour - region)

    def shadow(self, polygons: list[np.ndarray], shift: np.ndarray, blur: float, strength: float) -> None:
        """Darkens where the polygons' joint shadow falls."""
        dark = np.zeros(self.pixels.shape[:2], np.float32)
        for polygon in polygons:
            covered = self.coverage(polygon + shift)
            if covered is not None:
                rows, columns, share = covered
                dark[rows, columns] = np.maximum(dark[rows, columns], share)
        self.pixels *= 1 - strength * gaussian_filter(dark, blur)[..., None]
