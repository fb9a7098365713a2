"""PF-WILLOW, the whole public benchmark: list and annotations, images in memory, the leak-free split."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import loadmat

from semimatch.data import DataError, ImageStore, LoadedPairs, PairList, load_pairs
from semimatch.data.check import check
from semimatch.data.willow_split import split_images, split_pairs


@pytest.fixture(scope="module")
def willow(shared) -> PairList:
    return load_pairs("pf-willow", shared / "data", "test")


@pytest.fixture(scope="module")
def store(willow) -> ImageStore:
    return ImageStore(willow.images, progress=False)


def test_list_is_the_public_one(willow):
    assert len(willow) == 900
    assert len(willow.images) == 100
    assert len({path.stem for path in willow.images}) == 70
    assert set(Counter(pair.category for pair in willow.pairs).values()) == {90}
    assert (willow.name, willow.split, willow.threshold) == ("pf-willow", "test", "bbox-kp")
    assert len(willow.categories) == 10
    assert willow.pairs[16].row == "test_pairs.csv row 17"


def test_keypoints_are_those_of_the_annotation_files(willow):
    for pair in willow.pairs:
        for path, points in ((pair.source, pair.source_keypoints), (pair.target, pair.target_keypoints)):
            annotated = loadmat(path.with_suffix(".mat"))["pts_coord"].T
            np.testing.assert_allclose(points, annotated, atol=1e-3)


def test_boxes_are_tight(willow):
    for pair in willow.pairs[::37]:
        low, high = pair.source_keypoints.min(axis=0), pair.source_keypoints.max(axis=0)
        np.testing.assert_array_equal(pair.source_box, np.concatenate([low, high]))


def test_folder_of_the_benchmark_is_a_root_too(willow, shared):
    again = load_pairs("PF-WILLOW", shared / "data" / "PF-WILLOW", "test")
    assert [pair.source for pair in again.pairs] == [pair.source for pair in willow.pairs]


def test_check_finds_nothing(shared):
    report = check(shared / "data" / "PF-WILLOW", progress=False)
    assert report.ok, report.text()
    assert (list(report.lists.values()), report.images) == ([900], 100)


def test_store_resizes_both_axes(willow, store):
    assert store.images.shape == (100, 3, 256, 256)
    assert store.images.dtype == torch.uint8
    path = willow.images[7]
    with Image.open(path) as image:
        image = image.convert("RGB")
    index = store.index(path)
    assert store.sizes[index].tolist() == list(image.size)
    # An independent antialiased resize: torch's own.
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float()
    mine = torch.nn.functional.interpolate(pixels, (256, 256), mode="bilinear", antialias=True)[0]
    assert (store.images[index].float() - mine).abs().max() <= 1


def test_batch_scales_points_and_boxes(willow, store):
    loaded = LoadedPairs(willow, store)
    batch = loaded.batch([899, 3])
    assert batch.source.shape == batch.target.shape == (2, 3, 256, 256)
    assert batch.source_points.shape == (2, 10, 2)
    assert batch.source_points.dtype == batch.target_box.dtype == torch.float32
    assert batch.valid.all()
    assert batch.index.tolist() == [899, 3]
    for row, index in enumerate((899, 3)):
        pair = willow.pairs[index]
        assert willow.categories[batch.category[row]] == pair.category
        with Image.open(pair.target) as image:
            width, height = image.size
        scale = np.array([256 / width, 256 / height], np.float32)
        np.testing.assert_allclose(batch.target_points[row], pair.target_keypoints * scale, rtol=1e-5)
        np.testing.assert_allclose(batch.target_box[row], pair.target_box * np.tile(scale, 2), rtol=1e-5)
        assert torch.equal(batch.target[row], store.images[store.index(pair.target)])


def test_equal_names_are_equal_pictures(willow):
    contents: dict[str, set[str]] = {}
    for path in willow.images:
        contents.setdefault(path.stem, set()).add(hashlib.sha256(path.read_bytes()).hexdigest())
    assert all(len(digests) == 1 for digests in contents.values())
    assert len({digest for digests in contents.values() for digest in digests}) == 70


@pytest.mark.parametrize("seed", range(20))
def test_split_gives_six_and_four_of_every_sub_class(willow, seed):
    train, test = split_images(willow, seed)
    assert (len(train), len(test)) == (42, 28)
    assert not train & test
    for category in willow.categories:
        names = {path.stem for path in willow.images if path.parent.name == category}
        assert (len(names & train), len(names & test)) == (6, 4)


def test_split_pairs_stay_inside_their_part(willow):
    train, test = split_pairs(willow, seed=0)
    assert (len(train), len(test)) == (300, 120)
    assert (train.split, test.split, test.threshold) == ("trn", "test", "bbox-kp")
    contents = [{path.read_bytes() for path in part.images} for part in (train, test)]
    assert not contents[0] & contents[1]
    assert train.categories == willow.categories


def test_split_depends_on_the_seed_only(willow):
    assert split_images(willow, 3) == split_images(willow, 3)
    assert len({split_images(willow, seed)[0] for seed in range(5)}) == 5
    backwards = willow.subset(range(899, -1, -1))
    assert split_images(backwards, 3) == split_images(willow, 3)


@pytest.mark.parametrize("seed", range(10))
def test_split_does_not_depend_on_the_order_of_the_names(willow, seed):
    # With the siblings before the (M) sub-class that they feed, filling in alphabetical order would fail.
    pairs = [replace(pair, category=pair.category.replace("(M)", "(Z)")) for pair in willow.pairs]
    renamed = PairList(willow.name, "test", willow.root, willow.threshold, pairs, [])
    assert [len(part) for part in split_images(renamed, seed)] == [42, 28]


def test_split_that_cannot_exist_is_an_error(willow):
    # Class A gives 3 of its 5 images to training, so two of them are there together; the class made of
    # those two would have to give 1 (0.6 of 2, rounded) and cannot.
    def pairs(category: str, names: str) -> list:
        return [
            replace(willow.pairs[0], category=category, source=Path(f"{a}.png"), target=Path(f"{b}.png"))
            for a, b in combinations(names, 2)
        ]

    rows = pairs("A", "abcde")
    for two in combinations("abcde", 2):
        rows += pairs("".join(two), "".join(two))
    crowded = PairList(willow.name, "test", willow.root, willow.threshold, rows, [])
    with pytest.raises(DataError, match="sub-classes that share few enough images"):
        split_images(crowded, seed=0)
