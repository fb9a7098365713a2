"""What is wrong with a data set is said with file, row and what was expected, before any training starts."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat
from test_data_pascal import make_pascal

from semimatch.data import DATASETS, DataError, ImageStore, LoadedPairs, load_pairs
from semimatch.data.check import check

HEADER = "imageA,imageB," + ",".join(f"{axis}{n}" for axis in ("XA", "YA", "XB", "YB") for n in (1, 2))
GOOD = ["PF-dataset/duck(S)/a.png", "PF-dataset/duck(S)/b.png", "1", "30", "2", "20", "5", "6", "7", "8"]


@pytest.fixture
def willow(tmp_path) -> Path:
    """Two noise images of 40 x 30 pixels and a list of two good rows."""
    folder = tmp_path / "PF-WILLOW"
    (folder / "duck(S)").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        Image.fromarray(rng.integers(0, 256, (30, 40, 3), np.uint8)).save(folder / "duck(S)" / f"{name}.png")
    write_rows(folder, GOOD, GOOD)
    return tmp_path


def write_rows(folder: Path, *rows: list[str], header: str = HEADER) -> None:
    (folder / "test_pairs.csv").write_text("\n".join([header, *(",".join(row) for row in rows)]) + "\n")


def row(**changes: str) -> list[str]:
    """The good row with some cells replaced, by column name."""
    return [changes.get(name, cell) for name, cell in zip(HEADER.split(","), GOOD, strict=True)]


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_good_list_loads(willow):
    pairs = load_pairs("pf-willow", willow, "test")
    np.testing.assert_array_equal(pairs.pairs[1].source_keypoints, [[1, 2], [30, 20]])
    np.testing.assert_array_equal(pairs.pairs[1].target_keypoints, [[5, 7], [6, 8]])
    assert check(willow, progress=False).ok


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            row(imageB="PF-dataset/duck(S)/c.png"),
            r"names 'PF-dataset/duck\(S\)/c\.png', which does not exist; expected",
        ),
        (row(imageA="a.png"), r"imageA is 'a\.png'; expected PF-dataset/<category>/<image>"),
        (row(YA2="twenty"), r"YA2 is 'twenty'; expected a finite number"),
        (row(XB1="nan"), r"XB1 is 'nan'; expected a finite number"),
        (row(XB1="-1e39"), r"XB1 is '-1e39'; expected a finite number"),
        (row(XB1=""), r"XB1 is ''; expected a finite number"),
        (
            row(XA2="41.5"),
            r"source keypoint 2 is \(41\.5, 20\); expected a point inside a\.png, which is 40 x 30",
        ),
        (row(YB1="-3"), r"target keypoint 1 is \(5, -3\); expected a point inside b\.png"),
        (GOOD[:-1], r"9 cells; expected 10 cells as in the header"),
    ],
)
def test_wrong_row_is_named(willow, wrong, message):
    write_rows(willow / "PF-WILLOW", GOOD, wrong, GOOD)
    with pytest.raises(DataError, match=r"test_pairs\.csv, row 2: " + message) as caught:
        load_pairs("pf-willow", willow, "test")
    # The check says the same words, and goes on with the other rows.
    report = check(willow, progress=False)
    assert [str(problem) for problem in report.problems] == [str(caught.value)]
    assert list(report.lists.values()) == [2]
    assert caught.value.row == "row 2"


def test_one_pixel_beyond_the_border_is_allowed(willow):
    write_rows(willow / "PF-WILLOW", row(XA1="-1", XA2="41", YA2="31"))
    pairs = load_pairs("pf-willow", willow, "test")
    batch = LoadedPairs(pairs, ImageStore(pairs.images, size=80, progress=False)).batch([0])
    assert batch.source_points[0, 0, 0] == -2
    assert batch.valid.all()


def test_two_categories_in_a_row(willow):
    folder = willow / "PF-WILLOW"
    shutil.copytree(folder / "duck(S)", folder / "car(S)")
    write_rows(folder, row(imageB="PF-dataset/car(S)/b.png"))
    with pytest.raises(DataError, match=r"imageA is of category 'duck\(S\)' and imageB of 'car\(S\)'"):
        load_pairs("pf-willow", willow, "test")


def test_wrong_columns(willow):
    write_rows(willow / "PF-WILLOW", GOOD, header=HEADER.replace("XB", "XC"))
    with pytest.raises(DataError, match=r"test_pairs\.csv, header: columns are 'imageA.*; expected imageA,imageB,XA1"):
        load_pairs("pf-willow", willow, "test")
    assert len(check(willow, progress=False).problems) == 1


def test_missing_list_folder_and_name(willow):
    with pytest.raises(DataError, match=r"no such folder; expected a folder with PF-PASCAL/ in it"):
        load_pairs("pf-pascal", willow / "nowhere", "trn")
    with pytest.raises(DataError, match=r"does not hold SPair-71k/"):
        load_pairs("spair-71k", willow, "trn")
    (willow / "PF-PASCAL").mkdir()
    with pytest.raises(DataError, match=r"trn_pairs\.csv: no such file"):
        load_pairs("pf-pascal", willow, "trn")
    with pytest.raises(ValueError, match="name is 'caltech'; expected one of pf-willow, pf-pascal, spair-71k"):
        load_pairs("caltech", willow, "trn")
    with pytest.raises(ValueError, match="split is 'trn'; expected one of test for PF-WILLOW"):
        load_pairs("pf-willow", willow, "trn")
    assert issubclass(DataError, ValueError)
    assert list(DATASETS) == ["pf-willow", "pf-pascal", "spair-71k"]


def test_cut_off_image_is_named_when_it_is_decoded(willow):
    cut_off(willow / "PF-WILLOW" / "duck(S)" / "b.png")
    pairs = load_pairs("pf-willow", willow, "test")  # headers only, so the list is right
    with pytest.raises(DataError, match=r"duck\(S\)/b\.png: cannot be decoded .*; expected a complete image file"):
        ImageStore(pairs.images, progress=False)
    problems = check(willow, progress=False).problems
    assert len(problems) == 1 and problems[0].file.endswith("b.png")


def test_file_that_is_no_image(willow):
    (willow / "PF-WILLOW" / "duck(S)" / "b.png").write_text("not a picture")
    with pytest.raises(DataError, match=r"row 1: names 'b\.png', whose header cannot be read"):
        load_pairs("pf-willow", willow, "test")


@pytest.mark.parametrize(
    ("split", "old", "new", "message"),
    [
        ("trn", ",3,1", ",21,1", r"trn_pairs\.csv, row 2: class is '21'; expected a number from 1 to 20"),
        ("trn", ",3,1", ",bird,1", r"class is 'bird'; expected a number from 1 to 20"),
        ("trn", ",3,1", ",3,2", r"flip is '2'; expected 0 or 1"),
        ("trn", ",3,1", ",4,1", r"row 2: names 'one\.mat', which does not exist; expected a file at .*boat"),
        (
            "test",
            ",5;6,5;7,",
            ",5;6,5;x,",
            r"test_pairs\.csv, row 1: YA item 2 is 'x'; expected a finite number",
        ),
        ("test", ",5;6,5;7,", ",5;6,5,", r"XA has 2 numbers and YA has 1; expected the same number"),
        (
            "test",
            ",5;6,5;7,",
            ",5,5,",
            r"1 source keypoints and 2 target keypoints; expected the same number",
        ),
        (
            "test",
            ",5;6,5;7,",
            ",5;60,5;7,",
            r"source keypoint 2 is \(60, 7\); .* two\.jpg, which is 20 x 50 pixels",
        ),
    ],
)
def test_wrong_pascal_rows(tmp_path, split, old, new, message):
    make_pascal(tmp_path, "JPEGImages", "Annotations")
    path = tmp_path / "PF-PASCAL" / f"{split}_pairs.csv"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(DataError, match=message):
        load_pairs("pf-pascal", tmp_path, split)


def test_wrong_pascal_annotations(tmp_path):
    make_pascal(tmp_path, "JPEGImages", "Annotations")
    mat = tmp_path / "PF-PASCAL" / "Annotations" / "bird" / "one.mat"
    cut_off(mat)
    with pytest.raises(DataError, match=r"one\.mat: cannot be read .*; expected a MATLAB file"):
        load_pairs("pf-pascal", tmp_path, "trn")
    for fields, message in (
        ({"kps": np.zeros((4, 2))}, r"one\.mat: has no field 'bbox'; expected bbox \[1, 4\]"),
        ({"kps": np.zeros((2, 4)), "bbox": np.ones((1, 4))}, r"kps has shape \[2, 4\]; expected \[N, 2\]"),
        ({"kps": np.zeros((4, 2)), "bbox": np.ones((1, 3))}, r"bbox has shape \[1, 3\]; expected \[1, 4\]"),
        (
            {"kps": np.zeros((5, 2)), "bbox": np.ones((1, 4))},
            r"row 1: 5 source keypoints and 4 target keypoints",
        ),
        ({"kps": np.zeros((4, 2)), "bbox": np.array([[9, 1, 2, 3]])}, r"source box is \(9, 1, 2, 3\)"),
        ({"kps": np.zeros((4, 2)), "bbox": np.array([[50, 1, 60, 3]])}, r"overlapping one\.jpg"),
        ({"kps": np.zeros((4, 2)), "bbox": np.full((1, 4), np.nan)}, r"source box is \(nan, nan, nan, nan\)"),
    ):
        savemat(mat, fields)
        with pytest.raises(DataError, match=message):
            load_pairs("pf-pascal", tmp_path, "trn")


def test_check_gathers_everything_and_caps_what_it_prints(willow):
    make_pascal(willow, "JPEGImages", "Annotations")
    cut_off(willow / "PF-PASCAL" / "JPEGImages" / "one.jpg")
    bad = [row(XA1="x"), row(XA1="99", YB2="99"), row(imageA="PF-dataset/duck(S)/z.png")]
    write_rows(willow / "PF-WILLOW", *bad, GOOD)
    report = check(willow, progress=False)
    words = [str(problem) for problem in report.problems]
    assert [word.split(": ")[0].rpartition("/")[2] for word in words] == [
        "test_pairs.csv, row 1",
        "test_pairs.csv, row 2",
        "test_pairs.csv, row 2",
        "test_pairs.csv, row 3",
        "one.jpg",
    ]
    assert not report.ok
    text = report.text(limit=2)
    assert words[1] in text and words[2] not in text
    assert "... and 3 more" in text and "5 problems" in text
    only = check(willow, "pf-pascal", progress=False)
    assert [problem.file.rpartition("/")[2] for problem in only.problems] == ["one.jpg"]
    assert only.text().endswith("\n1 problem") and "test_pairs.csv: 1 good row\n" in text


def test_check_of_the_wrong_place(tmp_path):
    report = check(tmp_path, progress=False)
    assert "holds no benchmark; expected a folder with PF-WILLOW/, PF-PASCAL/, SPair-71k/ in it" in report.text()
    assert not check(tmp_path, "pf-willow", progress=False).ok
    with pytest.raises(ValueError, match="name is 'voc'; expected one of"):
        check(tmp_path, "voc")
    (tmp_path / "PF-PASCAL").mkdir()
    assert "holds no list of pairs" in check(tmp_path, progress=False).text()


def test_check_tells_the_two_proposal_flow_lists_apart(willow):
    make_pascal(willow, "JPEGImages", "Annotations")
    for folder, count in (("PF-WILLOW", 1), ("PF-PASCAL", 3)):
        report = check(willow / folder, progress=False)
        assert report.ok and len(report.lists) == count, report.text()


def test_store_of_another_list(willow):
    pairs = load_pairs("pf-willow", willow, "test")
    with pytest.raises(ValueError, match=r"b\.png is not in the store; expected one of the 1 images"):
        LoadedPairs(pairs, ImageStore(pairs.images[:1], progress=False))
    with pytest.raises(ValueError, match="size is 0; expected at least 1 pixel"):
        ImageStore(pairs.images, size=0)


def test_empty_selection(willow):
    pairs = load_pairs("pf-willow", willow, "test")
    nothing = pairs.subset([])
    loaded = LoadedPairs(nothing, ImageStore(pairs.images, size=16, progress=False))
    assert len(loaded) == 0
    assert loaded.batch([]).source.shape == (0, 3, 16, 16)
