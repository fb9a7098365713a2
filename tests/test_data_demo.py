"""The embedded data set: read back by the three loaders, disjoint, reproducible, and careful with folders."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import semimatch.data.demo as demo_module
from semimatch.data import DATASETS, DataError, ImageStore, LoadedPairs, load_pairs
from semimatch.data.check import check
from semimatch.data.demo import write_demo
from semimatch.data.demo_objects import CATEGORIES
from semimatch.data.demo_scene import draw_scene
from semimatch.data.willow_split import split_images

SMALL = {"images_per_category": (3, 2, 2), "pairs_per_category": (4, 2, 2), "willow_images_per_category": 3}
TINY = {"images_per_category": (2, 2, 2), "pairs_per_category": (1, 1, 1), "willow_images_per_category": 2}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Path:
    return write_demo(tmp_path_factory.mktemp("demo") / "data", **SMALL, progress=False)


def test_all_loaders_read_it(demo):
    rows = {
        (name, split): len(load_pairs(name, demo, split)) for name, entry in DATASETS.items() for split in entry.splits
    }
    assert rows == {
        ("pf-willow", "test"): 5 * 6,
        ("pf-pascal", "trn"): 5 * 4 * 2,
        ("pf-pascal", "val"): 5 * 2,
        ("pf-pascal", "test"): 5 * 2,
        ("spair-71k", "trn"): 5 * 4,
        ("spair-71k", "val"): 5 * 2,
        ("spair-71k", "test"): 5 * 2,
    }
    report = check(demo, progress=False)
    assert report.ok, report.text()
    assert len(report.lists) == 1 + 3 + 6


def test_the_same_pair_reads_the_same_from_two_benchmarks(demo):
    pascal = load_pairs("pf-pascal", demo, "test").pairs
    spair = load_pairs("spair-71k", demo, "test").pairs
    for one, other in zip(pascal, spair, strict=True):
        assert (one.source.name, one.target.name) == (other.source.name, other.target.name)
        np.testing.assert_allclose(one.source_keypoints, other.source_keypoints, atol=0.51)
        np.testing.assert_allclose(one.target_box, other.target_box, atol=0.51)
        assert one.source.read_bytes() == other.source.read_bytes()
        assert len(one.source_keypoints) >= 3


def test_splits_share_no_picture(demo):
    pictures = [
        {path.read_bytes() for path in load_pairs(name, demo, split).images}
        for name, split in (
            ("pf-pascal", "trn"),
            ("pf-pascal", "val"),
            ("pf-pascal", "test"),
            ("pf-willow", "test"),
        )
    ]
    assert len(set.union(*pictures)) == sum(len(part) for part in pictures) > 0


def test_training_list_has_every_pair_plain_and_mirrored(demo):
    pairs = load_pairs("pf-pascal", demo, "trn")
    assert [pair.flip for pair in pairs.pairs] == [False, True] * 20
    batch = LoadedPairs(pairs, ImageStore(pairs.images, size=32, progress=False)).batch(range(len(pairs)))
    assert batch.valid.sum(dim=1).min() >= 3
    inside = (batch.source_points > -0.01) & (batch.source_points < 32)
    assert inside[batch.valid].all()
    assert (batch.source_box[:, :2] < batch.source_box[:, 2:]).all()


def test_spair_flags_say_what_the_image_annotations_say(demo):
    for pair in load_pairs("spair-71k", demo, "trn").pairs:
        seen = []
        for path in (pair.source, pair.target):
            annotation = demo / "SPair-71k" / "ImageAnnotation" / pair.category / f"{path.stem}.json"
            seen.append(json.loads(annotation.read_text()))
        assert pair.flags["truncation"] == seen[0]["truncated"] + 2 * seen[1]["truncated"]
        assert pair.flags["occlusion"] == seen[0]["occluded"] + 2 * seen[1]["occluded"]


def test_same_parameters_give_the_same_bytes(demo, tmp_path):
    again = contents(write_demo(tmp_path / "again", **SMALL, progress=False))
    assert again == contents(demo)
    other = contents(write_demo(tmp_path / "other", **TINY, seed=1, progress=False))
    pictures = [name for name in other if name.endswith((".jpg", ".png"))]
    assert pictures and not any(other[name] == again[name] for name in pictures)


def test_second_call_leaves_the_folder_alone(demo):
    marker = demo / "note.txt"
    marker.write_text("mine")
    times = {path: path.stat().st_mtime_ns for path in demo.rglob("*")}
    assert write_demo(demo, **SMALL, progress=False) == demo
    assert {path: path.stat().st_mtime_ns for path in demo.rglob("*")} == times
    marker.unlink()


def test_other_parameters_and_other_folders_are_refused(demo, tmp_path):
    before = contents(demo)
    with pytest.raises(DataError, match=r"was written with seed 0 \(now 5\)"):
        write_demo(demo, **SMALL, seed=5, progress=False)
    assert contents(demo) == before
    foreign = tmp_path / "thesis"
    foreign.mkdir()
    (foreign / "chapter.txt").write_text("years of work")
    with pytest.raises(DataError, match="holds something else; expected a new or empty folder"):
        write_demo(foreign, **SMALL, progress=False)
    assert contents(foreign) == {"chapter.txt": b"years of work"}
    with pytest.raises(ValueError, match="images per category"):
        write_demo(tmp_path / "none", images_per_category=(1, 1, 1))


def test_failure_leaves_nothing_behind(tmp_path, monkeypatch):
    def broken(*_args, **_more):
        raise OSError("disk full")

    monkeypatch.setattr("semimatch.data.demo._write_spair", broken)
    with pytest.raises(OSError, match="disk full"):
        write_demo(tmp_path / "data", **TINY, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_two_processes_may_write_the_same_folder(tmp_path, monkeypatch):
    """The second is half done when the first finishes: it finds the same data set and keeps that."""
    root = tmp_path / "data"
    write = demo_module._write
    calls = []

    def overtaken(*args):
        calls.append(args)
        if len(calls) == 1:
            write_demo(root, **TINY, progress=False)
        write(*args)

    monkeypatch.setattr(demo_module, "_write", overtaken)
    assert write_demo(root, **TINY, progress=False) == root
    assert len(calls) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_overtaken_by_something_else(tmp_path, monkeypatch):
    def overtaken(*_args):
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / "chapter.txt").write_text("years of work")

    monkeypatch.setattr(demo_module, "_write", overtaken)
    with pytest.raises(DataError, match="holds something else"):
        write_demo(tmp_path / "data", **TINY, progress=False)
    assert contents(tmp_path) == {"data/chapter.txt": b"years of work"}


def test_willow_part_can_be_split(demo):
    train, test = split_images(load_pairs("pf-willow", demo, "test"), 0)
    assert (len(train), len(test)) == (10, 5)


@pytest.mark.parametrize("category", CATEGORIES)
def test_individuals_share_keypoints_and_differ(category):
    drawings = [CATEGORIES[category](np.random.default_rng(seed)) for seed in range(5)]
    names = [list(drawing.keypoints) for drawing in drawings]
    assert all(order == names[0] for order in names)
    assert 10 <= len(names[0]) <= 12
    for drawing in drawings:
        corners = np.concatenate([part.polygon for part in drawing.parts])
        points = np.stack(list(drawing.keypoints.values()))
        assert (points >= corners.min(axis=0) - 0.05).all() and (points <= corners.max(axis=0) + 0.05).all()
    spread = np.stack([np.stack(list(drawing.keypoints.values())) for drawing in drawings]).std(axis=0)
    assert spread.max() > 0.03


@pytest.mark.parametrize("category", CATEGORIES)
def test_scenes_are_annotated_truthfully(category):
    scenes = [draw_scene(category, np.random.default_rng(seed)) for seed in range(12)]
    for scene in scenes:
        height, width, _ = scene.image.shape
        points = scene.keypoints[scene.visible]
        assert (points >= 1).all() and (points <= (width - 2, height - 2)).all()
        assert (scene.box[:2] < scene.box[2:]).all() and (scene.box[2:] <= (width - 1, height - 1)).all()
        assert scene.truncated or (scene.keypoints >= scene.box[:2] - 4).all()
    assert any(not scene.visible.all() for scene in scenes)
    complete = draw_scene(category, np.random.default_rng(0), complete=True)
    assert not complete.truncated


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot be written .*; expected a folder that can be made"):
        write_demo(tmp_path / "file" / "data", **TINY, progress=False)
