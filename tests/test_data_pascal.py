"""PF-PASCAL: the public lists (without their images), and a small benchmark in the two public layouts."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from semimatch.data import DataError, ImageStore, LoadedPairs, load_pairs
from semimatch.data.pf_pascal import CLASSES, image_pairs, parse_coordinates, unseen_indices


def test_public_lists_have_their_published_sizes(shared):
    folder = shared / "data" / "PF-PASCAL"
    pairs = {split: image_pairs(folder / f"{split}_pairs.csv") for split in ("trn", "val", "test")}
    assert {split: len(rows) for split, rows in pairs.items()} == {"trn": 2940, "val": 308, "test": 299}
    seen = set(pairs["trn"])
    assert sum(row in seen for row in pairs["test"]) == 95
    assert sum(row in seen for row in pairs["val"]) == 99


def test_every_row_of_the_public_test_list_parses(shared):
    path = shared / "data" / "PF-PASCAL" / "test_pairs.csv"
    with path.open() as file:
        rows = list(csv.DictReader(file))
    for number, cells in enumerate(rows, start=1):
        source, target = parse_coordinates(cells, path, f"row {number}")
        assert source.shape == target.shape == (len(cells["XA"].split(";")), 2)
        assert source.min() > 0 and source.max() < 300
    source, target = parse_coordinates(rows[0], path, "row 1")
    assert source[0].tolist() == pytest.approx([253.631662, 58.181333])
    assert target[-1].tolist() == pytest.approx([231.41072, 86.121429])


def test_missing_images_are_named_before_anything_else_happens(shared):
    with pytest.raises(DataError, match=r"trn_pairs\.csv, row 1: names .*2008_006579\.jpg.* does not exist"):
        load_pairs("pf-pascal", shared / "data", "trn")


NAN = float("nan")
KEYPOINTS = {
    "one": [[1, 2], [NAN, NAN], [30, 20], [39, 29]],
    "two": [[5, 5], [6, 6], [NAN, NAN], [10.5, 40]],
    "new": [[1, 1], [2, 2], [3, 3], [4, 4]],
}
SIZES = {"one": (40, 30), "two": (20, 50), "new": (16, 16)}


def make_pascal(root: Path, images: str, annotations: str) -> None:
    """A benchmark of three images with one pair per list; the mirrored row differs in nothing else."""
    folder = root / "PF-PASCAL"
    for name, (width, height) in SIZES.items():
        pixels = np.random.default_rng(len(name)).integers(0, 256, (height, width, 3), np.uint8)
        (folder / images).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / images / f"{name}.jpg")
        mat = folder / annotations / "bird" / f"{name}.mat"
        mat.parent.mkdir(parents=True, exist_ok=True)
        savemat(mat, {"kps": np.array(KEYPOINTS[name]), "bbox": np.array([[1, 2, width - 4, height - 3]])})
    pair = "PF-dataset-PASCAL/JPEGImages/one.jpg,PF-dataset-PASCAL/JPEGImages/two.jpg,3"
    header = "source_image,target_image,class,flip\n"
    (folder / "trn_pairs.csv").write_text(f"{header}{pair},0\n{pair},1\n")
    (folder / "val_pairs.csv").write_text(f"{header}{pair},0\n")
    reverse = "PF-dataset-PASCAL/JPEGImages/two.jpg,PF-dataset-PASCAL/JPEGImages/one.jpg,3,5;6,5;7,1;2,3;4\n"
    new = "PF-dataset-PASCAL/JPEGImages/new.jpg,PF-dataset-PASCAL/JPEGImages/one.jpg,3,5,5,1,3\n"
    header = "source_image,target_image,class,XA,YA,XB,YB\n"
    (folder / "test_pairs.csv").write_text(header + reverse + new)


@pytest.fixture(params=[("JPEGImages", "Annotations"), ("PF-dataset-PASCAL/JPEGImages",) * 2], ids=["flat", "release"])
def pascal(request, tmp_path) -> Path:
    images, annotations = request.param
    make_pascal(tmp_path, images, annotations.replace("JPEGImages", "Annotations"))
    return tmp_path


def test_training_rows_keep_jointly_visible_keypoints(pascal):
    pairs = load_pairs("pf-pascal", pascal, "trn")
    assert pairs.categories == CLASSES
    assert [pair.flip for pair in pairs.pairs] == [False, True]
    pair = pairs.pairs[0]
    assert pair.category == "bird"
    np.testing.assert_array_equal(pair.source_keypoints, [[1, 2], [39, 29]])
    np.testing.assert_array_equal(pair.target_keypoints, [[5, 5], [10.5, 40]])
    np.testing.assert_array_equal(pair.source_box, [1, 2, 36, 27])
    np.testing.assert_array_equal(pair.target_box, [1, 2, 16, 47])


def test_test_rows_take_keypoints_from_the_list_and_boxes_from_the_annotation(pascal):
    pair = load_pairs("pf-pascal", pascal, "test").pairs[0]
    np.testing.assert_array_equal(pair.source_keypoints, [[5, 5], [6, 7]])
    np.testing.assert_array_equal(pair.target_keypoints, [[1, 3], [2, 4]])
    np.testing.assert_array_equal(pair.target_box, [1, 2, 36, 27])
    for mat in pascal.rglob("two.mat"):
        mat.unlink()
    pair = load_pairs("pf-pascal", pascal, "test").pairs[0]
    np.testing.assert_array_equal(pair.source_box, [5, 5, 6, 7])


def test_unseen_pairs_are_those_not_in_training_in_either_order(pascal):
    pairs = load_pairs("pf-pascal", pascal, "test")
    assert unseen_indices(pairs) == [1]
    (pascal / "PF-PASCAL" / "trn_pairs.csv").unlink()
    with pytest.raises(DataError, match=r"trn_pairs\.csv: no such file"):
        unseen_indices(pairs)


def test_mirrored_rows_mirror_images_points_and_boxes(pascal):
    pairs = load_pairs("pf-pascal", pascal, "trn")
    loaded = LoadedPairs(pairs, ImageStore(pairs.images, size=64, progress=False))
    batch = loaded.batch([0, 1])
    for images in (batch.source, batch.target):
        assert torch.equal(images[1], images[0].flip(-1))
        assert not torch.equal(images[1], images[0])
    for points in (batch.source_points, batch.target_points):
        torch.testing.assert_close(points[1, :, 0], 63 - points[0, :, 0])
        torch.testing.assert_close(points[1, :, 1], points[0, :, 1])
    plain, mirrored = batch.source_box
    torch.testing.assert_close(mirrored, torch.stack([63 - plain[2], plain[1], 63 - plain[0], plain[3]]))
    assert mirrored[0] < mirrored[2]
    # The store itself stays as it was.
    assert torch.equal(loaded.batch([0]).source, batch.source[:1])


def test_shorter_rows_are_padded(pascal):
    pairs = load_pairs("pf-pascal", pascal, "test")
    batch = LoadedPairs(pairs, ImageStore(pairs.images, size=64, progress=False)).batch([1, 0])
    assert batch.valid.tolist() == [[True, False], [True, True]]
    assert batch.source_points[0].tolist() == [[20, 20], [-1, -1]]
    assert batch.target_points[0, 1].tolist() == [-1, -1]
    moved = batch.to("meta")
    assert moved.source.device.type == moved.index.device.type == "meta"
