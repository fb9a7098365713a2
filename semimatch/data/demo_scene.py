"""One picture of the embedded data set: a background, an object in some pose, things in front of it, and a
camera."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter

from .demo_draw import (
    Canvas,
    Generator,
    ellipse,
    limb,
    random_colour,
    random_material,
    smooth_noise,
    spline,
    turn,
)
from .demo_objects import CATEGORIES, MIRRORED

# Longer side of an image, pixels, and how wide an image may be for its height.
LONGER_SIDE = (250, 310)
ASPECT = {
    "aeroplane": (1.15, 1.6),
    "bird": (0.8, 1.4),
    "bottle": (0.6, 0.95),
    "car": (1.2, 1.65),
    "chair": (0.65, 1.05),
}
TILT = {"aeroplane": 0.35, "bird": 0.3, "bottle": 0.45, "car": 0.2, "chair": 0.25}  # radians, at most


@dataclass(frozen=True)
class Scene:
    """A picture and its annotation. Coordinates are pixels (x, y) of the picture.

    Attributes:
        image: uint8 [H, W, 3].
        keypoints: float [K, 2], also of points that are hidden or outside.
        visible: bool [K]: inside the picture and with nothing in front.
        box: float [4], x1, y1, x2, y2 of the object inside the picture.
        truncated, occluded: whether part of the object is outside or behind something.
        tilt: radians; mirrored: whether the object faces left.
    """

    image: np.ndarray
    keypoints: np.ndarray
    visible: np.ndarray
    box: np.ndarray
    truncated: bool
    occluded: bool
    tilt: float
    mirrored: bool


def draw_scene(category: str, rng: Generator, complete: bool = False) -> Scene:
    """A random picture of a random individual.

    Args:
        category: key of `demo_objects.CATEGORIES`.
        rng: decides everything.
        complete: keep the whole object inside the picture.
    """
    drawing = CATEGORIES[category](rng)
    longer, aspect = rng.uniform(*LONGER_SIDE), rng.uniform(*ASPECT[category])
    width, height = int(longer * min(1, aspect)), int(longer * min(1, 1 / aspect))
    angle = rng.uniform(0, 2 * np.pi)
    canvas = Canvas(_background(rng, width, height), np.array([np.cos(angle) * 0.7, -0.35 - 0.65 * abs(np.sin(angle))]))
    tilt = float(rng.uniform(-1, 1) * TILT[category])
    mirrored = category in MIRRORED and bool(rng.uniform() < 0.3)
    outside = 0.0 if complete or rng.uniform() > 0.2 else rng.uniform(0.08, 0.25)
    everything = np.concatenate([part.polygon for part in drawing.parts])
    to_image, to_object = _pose(rng, everything, (width, height), tilt, mirrored, outside)

    polygons = [to_image(part.polygon) for part in drawing.parts]
    shift = -canvas.light * rng.uniform(4, 14)
    canvas.shadow(polygons, shift, rng.uniform(2, 6), rng.uniform(0.1, 0.5))
    for part, polygon in zip(drawing.parts, polygons, strict=True):
        canvas.paint(polygon, part.material, part.relief, to_object)
    points = to_image(np.stack(list(drawing.keypoints.values())))

    corners = np.concatenate(polygons)
    limit = np.array([width, height])
    low, high = corners.min(axis=0), corners.max(axis=0)
    box = np.concatenate([low.clip(0, limit - 1), high.clip(0, limit - 1)])
    inside = ((points >= 1) & (points <= limit - 2)).all(axis=1)
    hidden = np.zeros(len(points), bool)
    if rng.uniform() < 0.4:
        hidden = _occlude(rng, canvas, box, points)
    return Scene(
        image=_photograph(rng, canvas.pixels),
        keypoints=points,
        visible=inside & ~hidden,
        box=box,
        truncated=bool((low < 0).any() or (high > limit - 1).any()),
        occluded=bool((hidden & inside).any()),
        tilt=tilt,
        mirrored=mirrored,
    )


def _pose(
    rng: Generator, outline: np.ndarray, size: tuple[int, int], tilt: float, mirrored: bool, outside: float
) -> tuple[Callable[[np.ndarray], np.ndarray], Callable[[np.ndarray], np.ndarray]]:
    """Object -> image and image -> object coordinates (the latter without the bend; for patterns only)."""
    limit = np.array(size, float)
    stretch = np.exp(rng.uniform(-0.13, 0.13, 2)) * ((-1, 1) if mirrored else (1, 1))
    shear = rng.uniform(-0.12, 0.12)
    waves = [(rng.uniform(-0.035, 0.035, 2), rng.uniform(-2.5, 2.5, 2), rng.uniform(0, 6.28)) for _ in range(3)]

    def bend(points: np.ndarray) -> np.ndarray:
        moved = points + sum(a * np.sin(points @ k + phase)[..., None] for a, k, phase in waves)
        sheared = moved + np.stack([shear * moved[..., 1], 0 * moved[..., 1]], axis=-1)
        return turn(sheared * stretch, (0, 0), tilt)

    bent = bend(outline)
    low, high = bent.min(axis=0), bent.max(axis=0)
    extent = high - low
    scale = (limit / extent).min() * rng.uniform(0.55, 0.92)
    room = limit - extent * scale
    corner = room * rng.uniform(0.08, 0.92, 2)
    if outside:
        axis = int(rng.integers(2))
        share = outside * extent[axis] * scale
        corner[axis] = -share if rng.uniform() < 0.5 else room[axis] + share
    origin = corner - low * scale

    def to_image(points: np.ndarray) -> np.ndarray:
        return bend(points) * scale + origin

    def to_object(pixels: np.ndarray) -> np.ndarray:
        return turn((pixels - origin) / scale, (0, 0), -tilt) / stretch

    return to_image, to_object


def _background(rng: Generator, width: int, height: int) -> np.ndarray:
    """Float [height, width, 3]: a landscape, a room or a surface, with clutter."""
    y, x = np.mgrid[0:height, 0:width] / max(width, height)
    pixels = np.empty((height, width, 3), np.float32)
    canvas = Canvas(pixels)
    kind = rng.choice(["landscape", "room", "surface"])
    first, second = random_colour(rng, (0.05, 0.6)), random_colour(rng, (0.05, 0.7))
    if kind == "surface":
        pixels[:] = random_material(rng, first).colour(x * 0.9, y * 0.9)
    else:
        horizon = rng.uniform(0.45, 0.85) * height / max(width, height)
        slope = rng.uniform(-0.06, 0.06)
        below = (y > horizon + slope * (x - 0.5))[..., None]
        fade = rng.uniform(0.0, 0.5) * (y / y.max())[..., None]
        above = first * (1 - fade) + random_colour(rng, (0, 0.3), (0.6, 1)) * fade
        ground = random_material(rng, second).colour(x * 1.2, (y - horizon) * 3)
        pixels[:] = np.where(below, ground, above)
    clutter = rng.integers(4, 15)
    for _ in range(clutter):
        centre = rng.uniform(0, 1, 2) * (width, height)
        size = max(width, height) * rng.uniform(0.03, 0.16)
        material = random_material(rng)
        shape = rng.integers(4)
        if shape == 0:
            polygon = ellipse(centre, size, size * rng.uniform(0.5, 1), rng.uniform(0, 3))
        elif shape == 1:
            sides = turn([(-1, -1), (1, -1), (1, 1), (-1, 1)], (0, 0), rng.uniform(-0.4, 0.4))
            polygon = centre + sides * size * rng.uniform(0.4, 1.3, 2)
        elif shape == 2:
            angles = np.linspace(0, 2 * np.pi, 8, endpoint=False)
            radii = size * rng.uniform(0.5, 1.2, 8)
            polygon = spline(centre + np.stack([np.cos(angles), np.sin(angles)], 1) * radii[:, None])
        else:
            far = centre + rng.normal(0, 1, 2) * size * 3
            polygon = limb([centre, (centre + far) / 2 + rng.normal(0, 6, 2), far], size * 0.2, size * 0.15)
        canvas.paint(polygon, material, rng.uniform(0, 0.9))
    texture = smooth_noise(rng, height, width, 40) * 0.03 + smooth_noise(rng, height, width, 9) * 0.05
    blurred = gaussian_filter(pixels, (*[rng.uniform(0, 1.6)] * 2, 0))  # the background is often out of focus
    return np.clip(blurred + texture[..., None], 0, 1).astype(np.float32)


def _occlude(rng: Generator, canvas: Canvas, box: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Paints a post or a bush in front of the object; returns which points [K, 2] it hides."""
    side = box[2:] - box[:2]
    centre = box[:2] + side * rng.uniform(0.1, 0.9, 2)
    size = side.max() * rng.uniform(0.06, 0.13)
    if rng.uniform() < 0.5:
        lean = rng.normal(0, 0.3)
        reach = np.array([np.sin(lean), np.cos(lean)]) * max(canvas.size)
        polygon = limb([centre - reach, centre, centre + reach], size * 0.9, size * 0.9)
    else:
        angles = np.linspace(0, 2 * np.pi, 9, endpoint=False)
        radii = size * rng.uniform(0.7, 1.5, 9)
        polygon = spline(centre + np.stack([np.cos(angles), np.sin(angles)], 1) * radii[:, None])
    canvas.paint(polygon, random_material(rng), 0.7)
    covered = canvas.coverage(polygon)
    cover = np.zeros(canvas.pixels.shape[:2])
    if covered is not None:
        rows, columns, share = covered
        cover[rows, columns] = share
    column, row = points.round().astype(int).T
    width, height = canvas.size
    return cover[row.clip(0, height - 1), column.clip(0, width - 1)] > 0.3


def _photograph(rng: Generator, pixels: np.ndarray) -> np.ndarray:
    """Exposure, colour of the light, falling light, focus and sensor noise: uint8 [H, W, 3]."""
    height, width, _ = pixels.shape
    y, x = np.mgrid[0:height, 0:width] / max(width, height)
    falling = 1 + rng.uniform(-0.35, 0.35) * (x - 0.5) + rng.uniform(-0.35, 0.35) * (y - 0.5)
    cast = 1 + rng.normal(0, 0.06, 3)
    image = pixels * falling[..., None] * cast * rng.uniform(0.75, 1.2)
    image = np.clip(image, 0, 1) ** rng.uniform(0.75, 1.3)
    image = gaussian_filter(image, (*[rng.uniform(0.0, 0.9)] * 2, 0))
    image = image + rng.normal(0, 1, pixels.shape[:2])[..., None] * rng.uniform(0.0, 0.03)
    return (np.clip(image, 0, 1) * 255).round().astype(np.uint8)
