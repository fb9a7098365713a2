"""PF-WILLOW (Proposal Flow, Ham et al., CVPR 2016): 900 test pairs with 10 keypoints each.

On disk: `PF-WILLOW/test_pairs.csv` with columns imageA, imageB, XA1.., YA1.., XB1.., YB1.., whose image paths
start with "PF-dataset/<category>/"; the images lie below `PF-WILLOW/` at that path or without its first
component. The category is the image's folder. The benchmark has no boxes: they are the tight boxes of the
keypoints.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np

from .pairs import DataError, Pair, PairList, tight_box
from .rows import RowChecker, benchmark_folder, parse_numbers, raise_first, read_csv, require_split

NAME = "pf-willow"
FOLDER = "PF-WILLOW"
SPLITS = ("test",)
THRESHOLD = "bbox-kp"
LIST = "test_pairs.csv"
MARKER = LIST


def list_columns(points: int) -> list[str]:
    """Header of a list with that many keypoints a side."""
    axes = ("XA", "YA", "XB", "YB")
    return ["imageA", "imageB", *(f"{axis}{number}" for axis in axes for number in range(1, points + 1))]


def _wrong_columns(header: list[str]) -> str | None:
    points = max((len(header) - 2) // 4, 1)
    return None if header == list_columns(points) else "imageA,imageB,XA1..n,YA1..n,XB1..n,YB1..n"


def read(folder: Path, checker: RowChecker) -> list[Pair]:
    """Pairs of the list in the benchmark's `folder`; what is wrong is reported and left out."""
    rows = read_csv(checker.list_file, _wrong_columns, checker.report)
    return checker.pairs(rows, partial(_read_row, folder))


def lists(folder: Path) -> dict[Path, Callable[[RowChecker], list[Pair]]]:
    """The lists that exist in the benchmark's folder, each with what reads it."""
    return {folder / LIST: partial(read, folder)} if (folder / LIST).is_file() else {}


def _read_row(folder: Path, row: str, cells: dict[str, str], checker: RowChecker) -> Pair | None:
    images, categories = [], []
    for column in ("imageA", "imageB"):
        written = PurePosixPath(cells[column])
        if len(written.parts) < 2:
            what = f"{column} is {cells[column]!r}"
            raise DataError(checker.list_file, row, what, "PF-dataset/<category>/<image>")
        places = [folder / written, folder / PurePosixPath(*written.parts[1:])]
        images.append(checker.find_image(row, cells[column], places))
        categories.append(written.parent.name)
    if categories[0] != categories[1]:
        what = f"imageA is of category {categories[0]!r} and imageB of {categories[1]!r}"
        raise DataError(checker.list_file, row, what, "two images of one category")
    names = list(cells)[2:]
    values = parse_numbers([cells[name] for name in names], names, checker.list_file, row)
    axes = values.reshape(4, -1)  # XA, YA, XB, YB
    keypoints = [np.stack([axes[0], axes[1]], axis=1), np.stack([axes[2], axes[3]], axis=1)]
    boxes = [tight_box(points) for points in keypoints]
    return checker.make_pair(row, images, keypoints, boxes, categories[0])


def load(root: Path | str, split: str = "test") -> PairList:
    """PF-WILLOW's pairs below `root`.

    Raises:
        DataError: the list or a file it names is missing, or a row is wrong; the first finding is named.
        ValueError: `split` is not "test".

    Source: https://www.di.ens.fr/willow/research/proposalflow/
    """
    require_split(split, SPLITS, FOLDER)
    folder = benchmark_folder(root, FOLDER, MARKER)
    pairs = read(folder, RowChecker(folder / LIST, raise_first))
    return PairList(NAME, split, folder, THRESHOLD, pairs, sorted({pair.category for pair in pairs}))
