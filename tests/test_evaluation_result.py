"""Means, selection, storage and printing of results."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from semimatch.evaluation import (
    Protocol,
    Result,
    describe,
    format_tables,
    protocol,
    read_results,
    write_results,
)


@pytest.fixture
def result() -> Result:
    hits = np.array([[[1, 2], [0, 4], [0, 0], [3, 3]], [[2, 2], [1, 4], [0, 0], [3, 3]]])
    return Result(
        name="spair-71k", split="test", alphas=(0.05, 0.1), rules=("bbox", "bbox-kp"), hits=hits,
        lengths=np.full((2, 4), 100.5, np.float32), points=np.array([2, 4, 0, 3]),
        missing=np.array([0, 3, 0, 0]),
        rows=[f"row {i}" for i in range(4)], images=[(f"{i}.jpg", "t.jpg") for i in range(4)],
        categories=["cat", "dog", "dog", "cat"], flags=[{"occlusion": o} for o in (0, 3, 0, 0)],
    )  # fmt: skip


@pytest.fixture
def card() -> Protocol:
    return describe(
        benchmark="spair-71k", split="test", selection="val", weights="ImageNet only", model={"head": "mean"},
        temperature=0.02, rounding="bilinear", size=256, device="cpu",
    )  # fmt: skip


def test_means_over_pairs_and_over_points(result):
    assert result.pck()[0].tolist() == [50, 100]
    # The pair without points is left out.
    assert result.per_image() == pytest.approx([(50 + 0 + 100) / 3, 100])
    assert result.per_point() == pytest.approx([100 * 4 / 9, 100])
    assert result.per_point("bbox-kp")[0] == pytest.approx(100 * 6 / 9)
    with pytest.raises(ValueError, match="rule is 'img'; expected one of bbox, bbox-kp"):
        result.per_image("img")


def test_categories_flags_and_subsets(result):
    categories = result.by_category()
    assert {name: len(part) for name, part in categories.items()} == {"cat": 2, "dog": 2}
    assert categories["cat"].per_image().tolist() == [75, 100]
    assert {v: len(part) for v, part in result.by_flag()["occlusion"].items()} == {0: 3, 3: 1}
    subset = result.select([3, 1], "clean")
    assert subset.rows == ["row 3", "row 1"] and subset.hits[0].tolist() == [[3, 3], [0, 4]]
    assert subset.split == "clean" and subset.points.tolist() == [3, 4]


def test_nothing_to_score_is_nan_and_null(result):
    empty = result.select([2], "empty")
    assert np.isnan(empty.per_image()).all() and np.isnan(empty.per_point()).all()
    assert empty.means()["pck"]["bbox"]["per_image"] == {"0.05": None, "0.1": None}
    assert "-" in format_tables({"x": empty})


def test_result_json_holds_everything_and_reads_back(result, card, tmp_path):
    path = tmp_path / "result.json"
    write_results(path, result, card, {"clean": result.select([0, 3], "clean")})
    content = json.loads(path.read_text())
    assert content["means"]["pck"]["bbox"]["per_image"]["0.05"] == 50
    assert content["means"]["categories"]["cat"]["pck"]["bbox"]["per_image"]["0.05"] == 75
    assert content["means"]["flags"]["occlusion"]["3"]["pairs"] == 1
    assert content["subsets"]["clean"]["pairs"] == 2
    assert (content["means"]["missing"], content["subsets"]["clean"]["missing"]) == (3, 0)
    assert content["protocol"]["temperature"] == 0.02 and content["protocol"]["packages"]["torch"]
    again, card_again = read_results(path)
    assert card_again == card
    for field in ("name", "split", "alphas", "rules", "rows", "images", "categories", "flags"):
        assert getattr(again, field) == getattr(result, field), field
    for field in ("hits", "lengths", "points", "missing"):
        assert np.array_equal(getattr(again, field), getattr(result, field)), field
    assert sorted(p.name for p in tmp_path.iterdir()) == ["result.json"]


def test_a_write_that_fails_leaves_the_old_file(result, card, tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    write_results(path, result, card)
    before = path.read_bytes()

    def full(self, *_, **__):
        raise OSError("no space left")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="no space left"):
        write_results(path, result, replace(card, split="other"))
    assert path.read_bytes() == before


def test_damaged_and_foreign_files_are_named(tmp_path, result, card):
    path = tmp_path / "result.json"
    with pytest.raises(ValueError, match=r"result\.json: cannot be read \(FileNotFoundError"):
        read_results(path)
    write_results(path, result, card)
    path.write_text(path.read_text()[:-40])
    with pytest.raises(ValueError, match=r"result\.json: cannot be read \(JSONDecodeError"):
        read_results(path)
    path.write_text('{"format": 99}')
    with pytest.raises(ValueError, match=r"format 99"):
        read_results(path)


def test_tables_show_every_number_once(result):
    other = replace(result, hits=result.hits * 0, missing=result.missing * 0)
    text = format_tables({"ours": result, "theirs": other})
    lines = text.splitlines()
    assert lines[0] == "spair-71k test: 4 pairs, 9 keypoints. PCK in percent."
    assert lines[1:3] == ["ours: 3 predictions, in 1 of 4 pairs, are NaN or infinite; they count as wrong.", ""]
    assert any(line.split() == ["ours", "pairs", "50.0", "100.0"] for line in lines)
    assert any(line.split() == ["theirs", "points", "0.0", "0.0"] for line in lines)
    assert any(line.split() == ["cat", "2", "75.0", "100.0", "0.0", "0.0"] for line in lines)
    assert any(line.split() == ["both", "1", "0.0", "100.0", "0.0", "0.0"] for line in lines)  # occlusion = 3
    assert "@0.05" not in format_tables({"ours": result}, alphas=(0.1, 0.2))
    with pytest.raises(ValueError, match=r"results\['b'\]: is of other pairs"):
        format_tables({"a": result, "b": result.select([0], "one")})


def test_weights_are_named_by_content(tmp_path):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"abc")
    card = describe(
        benchmark="x", split="test", selection="none", weights=path, model={}, temperature=None,
        rounding="bilinear", size=256, device="cpu",
    )  # fmt: skip
    assert card.weights.startswith("weights.safetensors sha256:ba7816bf")
    assert str(tmp_path) not in json.dumps(card.as_dict())


def test_commit_is_unknown_outside_a_checkout(monkeypatch):
    def fail(*_, **__):
        raise subprocess.CalledProcessError(128, "git")

    monkeypatch.setattr(protocol.subprocess, "run", fail)
    assert protocol._commit() == "unknown"
