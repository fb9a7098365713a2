"""The evaluation pass on made-up pairs: every number recomputed by hand, and nothing depends on batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from semimatch.data import ImageStore, LoadedPairs, Pair, PairList
from semimatch.evaluation import evaluate
from semimatch.models import Backbone, Matcher, MeanHead

SIZE = 64
ALPHAS = (0.05, 0.1, 0.3)
SIZES = [(64, 64), (128, 32), (50, 100)]  # (width, height) of the images 0.png to 2.png


def make_list(folder: Path, name: str = "spair-71k", rule: str = "bbox") -> PairList:
    """Nine ordered pairs of three images of different sizes, with 0 to 4 keypoints each."""
    random = np.random.default_rng(3)
    paths = []
    for i, (width, height) in enumerate(SIZES):
        paths.append(folder / f"{i}.png")
        Image.fromarray(random.integers(0, 256, (height, width, 3), np.uint8)).save(paths[-1])
    pairs = []
    for row, (a, b) in enumerate((a, b) for a in range(3) for b in range(3)):
        count = [3, 1, 4, 2, 0, 3, 4, 1, 2][row]
        points = [random.uniform(0, 1, (count, 2)) * SIZES[i] for i in (a, b)]
        box = np.array([2, 3, *SIZES[a]], np.float32)
        pairs.append(
            Pair(
                source=paths[a], target=paths[b], source_keypoints=points[0].astype(np.float32),
                target_keypoints=points[1].astype(np.float32), source_box=box, target_box=box,
                category="ab"[row % 2], flip=row == 5, flags={"occlusion": row % 3},
                row=f"list row {row + 1}",
            )
        )  # fmt: skip
    return PairList(name, "test", folder, rule, pairs, ["a", "b"])


@pytest.fixture
def data(tmp_path) -> LoadedPairs:
    pairs = make_list(tmp_path)
    return LoadedPairs(pairs, ImageStore(pairs.images, SIZE, progress=False))


class TinyBackbone(Backbone):
    """Random projections of 16 x 16 patches; counts the images that it sees."""

    def __init__(self) -> None:
        super().__init__([0, 1], 2, [0.5] * 3, [0.25] * 3)
        torch.manual_seed(5)
        self.patches = torch.nn.ModuleList(torch.nn.Conv2d(3, c, 16, 16) for c in (8, 12))
        self.norm = torch.nn.BatchNorm2d(8)
        self.channels = [8, 12]
        self.seen = 0

    def extract(self, images):
        self.seen += len(images)
        return [self.norm(self.patches[0](images)), self.patches[1](images)]


def tiny_matcher(center: bool = True) -> Matcher:
    """So cold that what it predicts depends on the images."""
    return Matcher(TinyBackbone(), MeanHead(), temperature=1e-3, center=center, size=SIZE)


def nowhere(source, target, points):
    """The training-free answer "the same place"."""
    return torch.zeros(len(source), 2, 4, 4)


def run(predict, data, **options):
    return evaluate(predict, data, alphas=ALPHAS, progress=False, **options)


def test_numbers_are_those_of_a_plain_loop_over_pairs(data):
    result = run(nowhere, data, batch_size=4)
    per_pair, correct, total = [], np.zeros(3), 0
    for i, pair in enumerate(data.pairs.pairs):
        sides = [np.array(SIZES[int(p.stem)], np.float64) for p in (pair.source, pair.target)]
        truth, predicted = pair.source_keypoints * SIZE / sides[0], pair.target_keypoints * SIZE / sides[1]
        if pair.flip:
            for points in (truth, predicted):
                points[:, 0] = SIZE - 1 - points[:, 0]
        box = pair.source_box * (SIZE / np.tile(sides[0], 2))
        length = max(box[2] - box[0], box[3] - box[1])
        assert result.lengths[0, i] == pytest.approx(length, rel=1e-6)
        error = np.linalg.norm(predicted - truth, axis=1)
        found = np.array([(error <= a * length).sum() for a in ALPHAS])
        assert result.hits[0, i].tolist() == found.tolist(), i
        if len(error):
            per_pair.append(100 * found / len(error))
        correct, total = correct + found, total + len(error)
    assert result.per_image() == pytest.approx(np.mean(per_pair, 0))
    assert result.per_point() == pytest.approx(100 * correct / total)
    assert 0 < result.per_image()[-1] < 100
    assert result.per_image()[-1] != pytest.approx(result.per_point()[-1])


def test_batches_cache_and_the_way_in_change_nothing(data):
    matcher = tiny_matcher()
    expected = run(matcher, data, batch_size=9)
    assert 0 < expected.hits.sum() < expected.points.sum() * len(ALPHAS)
    for options in ({"batch_size": 1}, {"batch_size": 4}, {"batch_size": 4, "cache_bytes": 0}):
        assert np.array_equal(run(matcher, data, **options).hits, expected.hits), options
    matcher.eval()
    as_flow = run(lambda s, t, _: matcher.flow(matcher(s, t)), data, batch_size=2)
    assert np.array_equal(as_flow.hits, expected.hits)


def test_features_are_made_once_an_image_and_mirrored_images_are_images_of_their_own(data):
    matcher = tiny_matcher()
    run(matcher, data, batch_size=2)
    assert matcher.backbone.seen == 3 + 2  # three files, and two of them mirrored in the pair marked flip
    matcher.backbone.seen = 0
    run(matcher, data, batch_size=2, cache_bytes=1)
    assert matcher.backbone.seen > 5


def test_modes_of_the_modules_come_back_and_statistics_stay(data):
    matcher = tiny_matcher()
    before = matcher.backbone.norm.running_mean.clone()
    matcher.train()
    run(matcher, data)
    assert matcher.backbone.norm.training
    assert torch.equal(matcher.backbone.norm.running_mean, before)
    matcher.backbone.eval()
    run(matcher, data)
    assert matcher.training and not matcher.backbone.training and not matcher.backbone.norm.training
    with pytest.raises(RuntimeError, match="stop"):
        matcher.train()
        matcher.head.register_forward_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("stop")))
        run(matcher, data)
    assert matcher.backbone.norm.training


def test_points_and_images_reach_a_callable_as_promised(data):
    def truth(source, target, points):
        assert source.dtype == torch.float32 and source.shape == (9, 3, SIZE, SIZE)
        assert source.min() >= 0 and 0.9 < source.max() <= 1
        batch = data.batch(order)
        assert torch.equal(points, batch.target_points) and torch.equal(source, batch.source.float() / 255)
        return batch.source_points

    order = sorted(range(9), key=lambda i: (data.pairs.pairs[i].category, str(data.pairs.pairs[i].source), i))
    result = run(truth, data, batch_size=9)
    assert result.per_image().tolist() == [100, 100, 100] and result.per_point().tolist() == [100, 100, 100]


def test_rounding_is_passed_on(data):
    exact, truncated = (run(tiny_matcher(), data, rounding=r) for r in ("bilinear", "trunc"))
    assert exact.hits.shape == truncated.hits.shape
    with pytest.raises(ValueError, match="rounding is 'up'"):
        run(tiny_matcher(), data, rounding="up")


def test_pf_willow_gets_both_of_its_thresholds(tmp_path):
    pairs = make_list(tmp_path, "pf-willow", "bbox-kp")
    result = run(nowhere, LoadedPairs(pairs, ImageStore(pairs.images, SIZE, progress=False)))
    assert result.rules == ("bbox-kp", "bbox-kp-padded")
    assert (result.lengths[1] >= result.lengths[0]).all()
    assert (result.hits[1] >= result.hits[0]).all() and (result.hits[1] > result.hits[0]).any()


def test_wrong_output_is_named(data):
    with pytest.raises(
        ValueError, match=r"predict: returned \[9, 7, 2\]; expected a flow \[9,2,n,n\].*points \[9,4,2\]"
    ):
        run(lambda s, t, p: torch.zeros(9, 7, 2), data)
    with pytest.raises(TypeError, match=r"predict: returned ndarray; expected a torch\.Tensor"):
        run(lambda s, t, p: p.numpy(), data)


def test_predictions_that_are_no_numbers_are_counted_and_warned_of_once(data):
    def broken(source, target, points):
        points = points.clone()
        points[0] = torch.nan  # the padding too, which does not count
        points[-1, 0, 1] = torch.inf
        return points

    with pytest.warns(RuntimeWarning) as warned:
        result = run(broken, data, batch_size=3)
    # The batches are rows 0 2 4, 6 8 1 and 3 5 7: by category and source. Row 4 has no keypoint.
    assert result.points.tolist() == [3, 1, 4, 2, 0, 3, 4, 1, 2]
    assert result.missing.tolist() == [3, 1, 0, 2, 0, 0, 4, 1, 0]
    message = "predict: returned NaN or infinity for 11 of 20 keypoints, in 5 of 9 pairs; they count as wrong"
    assert [str(w.message) for w in warned] == [message] and warned[0].filename == __file__
    assert not run(nowhere, data).missing.any()


def test_center_removes_what_all_cells_share():
    images = torch.rand(2, 3, SIZE, SIZE)
    plain, centred = tiny_matcher(center=False).eval(), tiny_matcher().eval()
    for raw, level in zip(plain.features(images), centred.features(images), strict=True):
        assert level.mean((2, 3)).abs().max() < 1e-6
        torch.testing.assert_close(level - raw, (level - raw)[:, :, :1, :1].expand_as(level))
