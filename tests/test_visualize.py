"""Pictures: what is drawn where, in which colour, and that bad input is named. Looks were judged by eye."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("matplotlib", reason="matplotlib is not installed (extra `app`)")
from semimatch.evaluation import Result
from semimatch.visualize import canvas, draw_matches, draw_transfer, matches, plot_curves, save_pictures

GREY = Image.new("RGB", (120, 60), (128, 128, 128))


def count(image: Image.Image, color) -> int:
    """Pixels close to a colour, titles and notes left out."""
    pixels = np.asarray(image)[canvas.HEAD : canvas.HEAD + canvas.HEIGHT].astype(int)
    return int((np.abs(pixels - np.array(color)).max(-1) < 40).sum())


def opened(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def pixel(image: Image.Image, side: int, point) -> tuple[int, ...]:
    place = canvas.Canvas(GREY, GREY, ("", "")).place(side, np.array(point))
    return image.getpixel((round(place[0] / canvas.SMOOTH), round(place[1] / canvas.SMOOTH)))


def close(actual, expected) -> bool:
    return max(abs(a - b) for a, b in zip(actual, expected, strict=True)) < 40


def test_transfer_shows_right_and_wrong_and_truth():
    target, predicted = [(20, 10), (30, 40)], [(90, 12), (60, 45)]
    truth = [(91, 12), (100, 50)]
    points = [np.array(p) for p in (target, predicted, truth)]
    image = draw_transfer(GREY, GREY, *points, np.array([True, False]))
    for i, color in enumerate((matches.CORRECT, matches.WRONG)):
        assert close(pixel(image, 0, target[i]), color) and close(pixel(image, 1, predicted[i]), color)
    half_way = (80, 47.5)  # from the wrong prediction to the truth
    assert close(pixel(image, 1, half_way), matches.TRUTH)
    assert not close(pixel(image, 1, (60, 20)), matches.TRUTH)
    right = draw_transfer(GREY, GREY, *points, np.array([True, True]))
    assert count(right, matches.WRONG) == 0 < count(image, matches.WRONG)


def test_a_prediction_outside_is_drawn_at_the_border():
    where = np.array([[20.0, 10.0]])
    image = draw_transfer(GREY, GREY, where, np.array([[500.0, -90.0]]), where, np.array([False]))
    assert close(pixel(image, 1, (119, 0)), matches.WRONG)


def test_matches_take_their_colour_from_the_score():
    points = np.array([[20.0, 15.0], [20.0, 45.0]])
    image = draw_matches(GREY, GREY, points, points, np.array([0.1, 0.9]))
    assert close(pixel(image, 0, points[0]), matches.SCORE_COLORS[0])
    assert close(pixel(image, 1, points[1]), matches.SCORE_COLORS[-1])
    draw_matches(GREY, GREY, points, points, [0.5, 0.5])  # no spread: no division by 0


def test_matches_without_scores_have_equal_colours_at_both_ends():
    points = np.array([[20.0, 15.0], [100.0, 45.0]])
    image = draw_matches(GREY, GREY, points, points[::-1].copy())
    for i in range(2):
        assert close(pixel(image, 0, points[i]), pixel(image, 1, points[1 - i]))
    assert not close(pixel(image, 0, points[0]), pixel(image, 0, points[1]))


def test_no_points_is_a_picture_too():
    nothing = np.zeros((0, 2))
    assert draw_matches(GREY, GREY, nothing, nothing, np.zeros(0)).mode == "RGB"
    assert draw_transfer(GREY, GREY, nothing, nothing, nothing, np.zeros(0, bool)).mode == "RGB"


def test_every_kind_of_image_looks_the_same():
    pixels = torch.randint(0, 256, (3, 30, 50), dtype=torch.uint8)
    array = pixels.permute(1, 2, 0).contiguous().numpy()
    point = torch.tensor([[5.0, 5.0]])
    pictures = [
        np.asarray(draw_matches(kind, kind, point, point))
        for kind in (pixels, pixels / 255, array, Image.fromarray(array))
    ]
    for other in pictures[1:]:
        assert np.array_equal(pictures[0], other)


def test_bad_input_is_named():
    points = np.zeros((2, 2))
    with pytest.raises(TypeError, match=r"image_b: expected a PIL image.*got torch.float32 \[1, 3, 4, 4\]"):
        draw_matches(GREY, torch.zeros(1, 3, 4, 4), points, points)
    with pytest.raises(ValueError, match=r"points_b: expected 2 points"):
        draw_matches(GREY, GREY, points, points[:1])
    with pytest.raises(ValueError, match=r"points_a: expected \[P,2\]"):
        draw_matches(GREY, GREY, points[0], points)
    with pytest.raises(ValueError, match=r"scores: expected 2 values"):
        draw_matches(GREY, GREY, points, points, [1.0])
    with pytest.raises(ValueError, match=r"correct: expected 2 values"):
        draw_transfer(GREY, GREY, points, points, points, np.array([True]))


def make_result(share: int) -> Result:
    return Result(
        name="pf-willow", split="test", alphas=(0.05, 0.1), rules=("bbox-kp", "bbox-kp-padded"),
        hits=np.full((2, 3, 2), share), lengths=np.ones((2, 3), np.float32), points=np.full(3, 10),
        missing=np.zeros(3, int), rows=["r"] * 3,
        images=[("a", "b")] * 3, categories=["c"] * 3, flags=[{}] * 3,
    )  # fmt: skip


def test_curves_are_saved_and_show_every_result(tmp_path: Path):
    plot_curves({"a": make_result(4)}, tmp_path / "one.png")
    plot_curves({"a": make_result(4), "b": make_result(9)}, tmp_path / "two.png", "bbox-kp-padded")
    plot_curves({"empty": make_result(0).select([], "none")}, tmp_path / "empty.png")
    pictures = {p.stem: np.asarray(opened(p)).astype(int) for p in tmp_path.iterdir()}
    blue, orange = ((np.abs(pictures["two"] - c).max(-1) < 12).sum() for c in ([0, 114, 178], [213, 94, 0]))
    assert blue > 100 and orange > 100
    assert (np.abs(pictures["one"] - [213, 94, 0]).max(-1) < 12).sum() == 0
    with pytest.raises(ValueError, match="at least one result"):
        plot_curves({}, tmp_path / "none.png")


def test_pictures_of_pairs_put_points_on_the_original_images(tmp_path, monkeypatch):
    from test_evaluation_evaluator import SIZE, make_list, tiny_matcher

    from semimatch.data import ImageStore, LoadedPairs
    from semimatch.visualize import pictures

    pairs = make_list(tmp_path)
    data = LoadedPairs(pairs, ImageStore(pairs.images, SIZE, progress=False))
    seen = []
    original = pictures.draw_transfer
    monkeypatch.setattr(pictures, "draw_transfer", lambda *a: (seen.append(a), original(*a))[1])
    files = save_pictures(tiny_matcher(), data, [2, 5], tmp_path / "out", random_points=5)
    assert [p.name for p in files] == [
        "00002_a_keypoints.png", "00002_a_random.png", "00005_b_keypoints.png", "00005_b_random.png",
    ]  # fmt: skip
    assert all(opened(p).height == canvas.HEAD + canvas.HEIGHT + canvas.FOOT for p in files)
    target, source, points, _, truth, correct = seen[0][:6]
    assert target.size == opened(pairs.pairs[2].target).size
    assert source.size == opened(pairs.pairs[2].source).size
    np.testing.assert_allclose(points, pairs.pairs[2].target_keypoints, rtol=1e-5, atol=1e-3)
    np.testing.assert_allclose(truth, pairs.pairs[2].source_keypoints, rtol=1e-5, atol=1e-3)
    assert len(correct) == 4
    mirrored = seen[1][0]
    assert np.array_equal(np.asarray(mirrored), np.asarray(opened(pairs.pairs[5].target))[:, ::-1])
