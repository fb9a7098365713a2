"""SPair-71k: real annotations with stand-in images of the right size, and what may be wrong with them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from semimatch.data import DataError, load_pairs
from semimatch.data.spair import load

PAIR = "000001-2008_002719-2008_004100:aeroplane"


@pytest.fixture
def spair(shared, tmp_path) -> Path:
    """The two real pair annotations; the images are black, in the sizes that the annotations state."""
    folder = tmp_path / "SPair-71k"
    shutil.copytree(shared / "data" / "SPair-71k", folder, copy_function=shutil.copyfile)
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    for path in folder.glob("PairAnnotation/test/*.json"):
        fields = json.loads(path.read_text())
        for side in ("src", "trg"):
            image = folder / "JPEGImages" / fields["category"] / fields[f"{side}_imname"]
            image.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", tuple(fields[f"{side}_imsize"][:2])).save(image)
    return folder


def change(folder: Path, **fields) -> None:
    path = folder / "PairAnnotation" / "test" / f"{PAIR}.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_real_annotations(spair):
    pairs = load_pairs("spair-71k", spair.parent, "test")
    assert (len(pairs), pairs.threshold, len(pairs.categories)) == (2, "bbox", 18)
    pair = pairs.pairs[0]
    np.testing.assert_array_equal(pair.source_keypoints, [[212, 153], [300, 130], [330, 127]])
    np.testing.assert_array_equal(pair.target_keypoints, [[39, 145], [364, 171], [416, 173]])
    np.testing.assert_array_equal(pair.source_box, [210, 34, 475, 250])
    np.testing.assert_array_equal(pair.target_box, [36, 92, 500, 200])
    assert pair.category == "aeroplane"
    assert pair.flags == {"viewpoint_variation": 0, "scale_variation": 0, "truncation": 2, "occlusion": 2}
    assert pair.row == "test.txt row 1"
    assert pairs.pairs[1].flags["viewpoint_variation"] == 1


def test_small_layout(spair):
    (spair / "Layout" / "small").mkdir()
    (spair / "Layout" / "small" / "test.txt").write_text(f"{PAIR}\n")
    assert len(load(spair, "test", layout="small")) == 1
    with pytest.raises(ValueError, match="layout is 'medium'; expected one of large, small"):
        load(spair, "test", layout="medium")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"src_kps": [[212, 153], [300, 130]]}, r"row 1: 2 source keypoints and 3 target keypoints"),
        (
            {"src_kps": [[212, 153], [300, 130], [330, 335]]},
            r"source keypoint 3 is \(330, 335\); .* 500 x 333",
        ),
        (
            {"src_kps": [[212, 153], [300, None], [330, 1]]},
            r"src_kps is .*; expected finite numbers \[P, 2\]",
        ),
        ({"trg_kps": "none"}, r"trg_kps is none; expected finite numbers"),
        ({"src_bndbox": [475, 34, 210, 250]}, r"source box is \(475, 34, 210, 250\); expected x1 <= x2"),
        ({"trg_bndbox": [36, 92, 500]}, r"trg_bndbox is .*; expected finite numbers \[4\]"),
        ({"src_imsize": [333, 500, 3]}, r"src_imsize is 333 x 500; expected 500 x 333"),
        ({"category": "bird"}, r"category is 'bird'; expected 'aeroplane' as in test\.txt row 1"),
        ({"truncation": 4}, r"truncation is 4; expected a whole number from 0 to 3"),
        ({"src_imname": "gone.jpg"}, r"test\.txt, row 1: names 'aeroplane/gone\.jpg', which does not exist"),
    ],
)
def test_wrong_annotations(spair, fields, message):
    change(spair, **fields)
    with pytest.raises(DataError, match=message):
        load_pairs("spair-71k", spair, "test")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "000009-a-b:aeroplane",
            r"row 3: has no annotation; expected a file at .*/test/000009-a-b:aeroplane\.json",
        ),
        ("000009-a-b:unicorn", r"row 3: category is 'unicorn'; expected one of aeroplane"),
        ("000009-a-b", r"row 3: is '000009-a-b'; expected <id>-<source>-<target>:<category>"),
    ],
)
def test_wrong_lines(spair, line, message):
    with (spair / "Layout" / "large" / "test.txt").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(DataError, match=message):
        load_pairs("spair-71k", spair, "test")


def test_annotation_that_is_not_json(spair):
    path = spair / "PairAnnotation" / "test" / f"{PAIR}.json"
    path.write_text(path.read_text()[:50])
    with pytest.raises(DataError, match=r"aeroplane\.json: is not JSON"):
        load_pairs("spair-71k", spair, "test")
    path.write_text("{}")
    with pytest.raises(DataError, match=r"has no field 'src_imname'"):
        load_pairs("spair-71k", spair, "test")
