"""Matched points of two images, drawn."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import numpy as np
from PIL import Image
from torch import Tensor

from .canvas import MUTED, Canvas, Color, Picture, to_image, to_points

CORRECT: Color = (46, 184, 92)
WRONG: Color = (226, 58, 62)
TRUTH: Color = (255, 212, 0)
MOST_LINES = 60
# Dark blue to yellow, even in lightness, readable without red-green vision.
SCORE_COLORS = ((53, 42, 135), (24, 106, 178), (27, 158, 158), (122, 199, 94), (253, 214, 48))


def draw_transfer(
    target: Picture,
    source: Picture,
    target_points: np.ndarray | Tensor,
    predicted: np.ndarray | Tensor,
    truth: np.ndarray | Tensor,
    correct: np.ndarray | Tensor,
    titles: Sequence[str] = ("target", "source"),
    note: str = "",
) -> Image.Image:
    """Keypoints of the target, where they were predicted in the source, and where they should be.

    Args:
        target, source: PIL image, uint8 array [H,W,3], or tensor [3,H,W] (uint8, or floating in 0..1).
        target_points, predicted, truth: [P,2] pixels (x, y); predicted and truth are of the source.
        correct: bool [P], drawn green, else red.
        titles: above the images. note: below them, for example what counts as correct.

    Returns:
        RGB image; a prediction outside its image is drawn at the border.
    """
    left, right = to_image(target, "target"), to_image(source, "source")
    start, end = to_points(target_points, "target_points"), to_points(predicted, "predicted")
    goal = to_points(truth, "truth")
    _same_count(start, end, "predicted")
    _same_count(start, goal, "truth")
    canvas = Canvas(left, right, titles)
    correct = np.asarray(correct.cpu() if isinstance(correct, Tensor) else correct, bool).reshape(-1)
    if len(correct) != len(start):
        raise ValueError(f"correct: expected {len(start)} values, one a point, got {len(correct)}")
    end = _inside(end, right)
    colors = [CORRECT if ok else WRONG for ok in correct]
    # Wrong ones last: they are what one looks for.
    order = sorted(range(len(start)), key=lambda i: not correct[i])
    for i in order:
        canvas.line(canvas.place(0, start[i]), canvas.place(1, end[i]), colors[i])
    for i in order:
        if not correct[i]:
            canvas.line(canvas.place(1, end[i]), canvas.place(1, goal[i]), TRUTH, 1.6)
        canvas.ring(canvas.place(1, goal[i]), TRUTH)
    for i in order:
        canvas.dot(canvas.place(0, start[i]), colors[i])
        canvas.dot(canvas.place(1, end[i]), colors[i], 4.0)
    count = int(correct.sum())
    canvas.note(
        [
            ("line", f"correct ({count})", CORRECT),
            ("line", f"wrong ({len(correct) - count})", WRONG),
            ("ring", "truth", TRUTH),
            ("", note, MUTED),
        ]
    )
    return canvas.finish()


def draw_matches(
    image_a: Picture,
    image_b: Picture,
    points_a: np.ndarray | Tensor,
    points_b: np.ndarray | Tensor,
    scores: np.ndarray | Tensor | None = None,
    titles: Sequence[str] = ("", ""),
) -> Image.Image:
    """Points of one image and their matches in another, for any two images.

    Args:
        image_a, image_b: as in `draw_transfer`.
        points_a, points_b: [P,2] pixels (x, y); row i of one matches row i of the other.
        scores: [P], colours the matches, the surest on top. None: the colour is the place in ``image_a``.
        titles: above the images.

    Returns:
        RGB image; a match outside its image is drawn at the border.
    """
    left, right = to_image(image_a, "image_a"), to_image(image_b, "image_b")
    start, end = to_points(points_a, "points_a"), to_points(points_b, "points_b")
    _same_count(start, end, "points_b")
    end = _inside(end, right)
    canvas = Canvas(left, right, titles)
    order = np.arange(len(start))
    if scores is None:
        colors = [_place_color(x / left.width, y / left.height) for x, y in start]
    else:
        values = np.asarray(scores.detach().cpu() if isinstance(scores, Tensor) else scores, np.float64).reshape(-1)
        if len(values) != len(start):
            raise ValueError(f"scores: expected {len(start)} values, one a point, got {len(values)}")
        low, high = (values.min(), values.max()) if len(values) else (0.0, 1.0)
        span = high - low or 1.0
        colors = [_score_color((v - low) / span) for v in values]
        order = np.argsort(values, kind="stable")
        canvas.scale([_score_color(i / 63) for i in range(64)], f"score {low:.2f}", f"{high:.2f}")
    # Many lines hide the images: the more the thinner, and none where colours alone tell the matches.
    width = float(np.clip(40 / max(len(start), 1), 0.6, 1.8))
    radius = float(np.clip(40 / max(len(start), 1) ** 0.5, 2.2, 4.5))
    if scores is not None or len(start) <= MOST_LINES:
        for i in order:
            canvas.line(canvas.place(0, start[i]), canvas.place(1, end[i]), colors[i], width)
    for i in order:
        canvas.dot(canvas.place(0, start[i]), colors[i], radius)
        canvas.dot(canvas.place(1, end[i]), colors[i], radius)
    canvas.note([("", f"{len(start)} matches", MUTED)])
    return canvas.finish()


def _same_count(start: np.ndarray, other: np.ndarray, name: str) -> None:
    if len(start) != len(other):
        raise ValueError(f"{name}: expected {len(start)} points, one for each of the first image, got {len(other)}")


def _inside(points: np.ndarray, image: Image.Image) -> np.ndarray:
    return np.clip(points, 0, [image.width - 1, image.height - 1])


def _score_color(share: float) -> Color:
    """Colour of a share in 0..1 along `SCORE_COLORS`."""
    place = share * (len(SCORE_COLORS) - 1)
    low = min(int(place), len(SCORE_COLORS) - 2)
    a, b = (np.array(SCORE_COLORS[i]) for i in (low, low + 1))
    red, green, blue = (int(v) for v in np.round(a + (b - a) * (place - low)))
    return red, green, blue


def _place_color(x: float, y: float) -> Color:
    """Colour of a place in the unit square: hue across, darker downwards."""
    red, green, blue = colorsys.hsv_to_rgb(0.85 * float(np.clip(x, 0, 1)), 0.85, 1 - 0.5 * float(np.clip(y, 0, 1)))
    return round(255 * red), round(255 * green), round(255 * blue)
