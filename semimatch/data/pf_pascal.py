"""PF-PASCAL (Proposal Flow, Ham et al., TPAMI 2018): 2940 / 308 / 299 pairs of 20 classes.

On disk, below `PF-PASCAL/`: `{trn,val,test}_pairs.csv` with columns source_image, target_image, class (1 to
20), and flip (trn, val) or XA, YA, XB, YB as lists separated by ";" (test). Image paths start with
"PF-dataset-PASCAL/JPEGImages/"; the images lie at that path or in `JPEGImages/`. Keypoints and boxes of an
image are in `Annotations/<class name>/<image>.mat`: `kps` [N, 2], NaN where the point is not visible, and
`bbox` [1, 4].
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
from scipy.io import loadmat

from .pairs import DataError, Pair, PairList, tight_box
from .rows import RowChecker, benchmark_folder, parse_numbers, raise_first, read_csv, require_split

NAME = "pf-pascal"
FOLDER = "PF-PASCAL"
SPLITS = ("trn", "val", "test")
THRESHOLD = "img"
MARKER = "*_pairs.csv"
RELEASE_FOLDER = "PF-dataset-PASCAL"
TEST_COORDINATES = ("XA", "YA", "XB", "YB")

# Class numbers of the lists, from 1: the categories of PASCAL VOC in alphabetical order.
CLASSES = [
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
]  # fmt: skip


def list_name(split: str) -> str:
    """File name of a split's list."""
    return f"{split}_pairs.csv"


def _wrong_columns(header: list[str]) -> str | None:
    common = ["source_image", "target_image", "class"]
    if header in ([*common, "flip"], [*common, *TEST_COORDINATES]):
        return None
    return "source_image,target_image,class,flip or source_image,target_image,class,XA,YA,XB,YB"


class _Annotations:
    """The .mat files of the images, each read once."""

    def __init__(self, folder: Path) -> None:
        self.folders = [folder / "Annotations", folder / RELEASE_FOLDER / "Annotations"]
        self._read: dict[Path, tuple[np.ndarray, np.ndarray] | DataError] = {}

    def places(self, category: str, image: Path) -> list[Path]:
        return [folder / category / f"{image.stem}.mat" for folder in self.folders]

    def __getitem__(self, path: Path) -> tuple[np.ndarray, np.ndarray]:
        """(keypoints [N, 2] with NaN for the ones not visible, box [4]), float32."""
        if path not in self._read:
            try:
                self._read[path] = _read_annotation(path)
            except DataError as error:
                self._read[path] = error
        found = self._read[path]
        if isinstance(found, DataError):
            raise found
        return found


def _read_annotation(path: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        fields = loadmat(path, variable_names=("kps", "bbox"))
    except Exception as error:  # scipy raises many kinds on a damaged file
        raise DataError(path, "", f"cannot be read ({error})", "a MATLAB file") from error
    shapes = {"kps": "[N, 2]", "bbox": "[1, 4]"}
    for field, shape in shapes.items():
        if field not in fields:
            raise DataError(path, "", f"has no field {field!r}", f"{field} {shape}")
    keypoints, box = np.asarray(fields["kps"]), np.asarray(fields["bbox"])
    if keypoints.ndim != 2 or keypoints.shape[1] != 2:
        raise DataError(path, "", f"kps has shape {list(keypoints.shape)}", shapes["kps"])
    if box.size != 4:
        raise DataError(path, "", f"bbox has shape {list(box.shape)}", shapes["bbox"])
    return keypoints.astype(np.float32), box.astype(np.float32).reshape(4)


def read(folder: Path, checker: RowChecker) -> list[Pair]:
    """Pairs of one list in the benchmark's `folder`; what is wrong is reported and left out."""
    rows = read_csv(checker.list_file, _wrong_columns, checker.report)
    return checker.pairs(rows, partial(_read_row, folder, _Annotations(folder)))


def lists(folder: Path) -> dict[Path, Callable[[RowChecker], list[Pair]]]:
    """The lists that exist in the benchmark's folder, each with what reads it."""
    files = [folder / list_name(split) for split in SPLITS]
    return {file: partial(read, folder) for file in files if file.is_file()}


def _read_row(
    folder: Path, annotations: _Annotations, row: str, cells: dict[str, str], checker: RowChecker
) -> Pair | None:
    list_file = checker.list_file
    category = _parse_class(cells["class"], list_file, row)
    flip = cells.get("flip", "0")
    if flip not in ("0", "1"):
        raise DataError(list_file, row, f"flip is {flip!r}", "0 or 1")
    images = []
    for column in ("source_image", "target_image"):
        written = PurePosixPath(cells[column])
        places = [folder / "JPEGImages" / written.name, folder / written]
        images.append(checker.find_image(row, cells[column], places))
    if "XA" in cells:
        keypoints = parse_coordinates(cells, list_file, row)
        boxes = []
        for image, points in zip(images, keypoints, strict=True):
            annotation = next((place for place in annotations.places(category, image) if place.is_file()), None)
            boxes.append(tight_box(points) if annotation is None else annotations[annotation][1])
    else:
        found = [
            annotations[checker.find(row, f"{image.stem}.mat", annotations.places(category, image))] for image in images
        ]
        keypoints = [points for points, _ in found]
        boxes = [box for _, box in found]
        if len(keypoints[0]) == len(keypoints[1]):  # otherwise make_pair reports it
            visible = ~(np.isnan(keypoints[0]).any(axis=1) | np.isnan(keypoints[1]).any(axis=1))
            keypoints = [points[visible] for points in keypoints]
    return checker.make_pair(row, images, keypoints, boxes, category, flip == "1")


def _parse_class(cell: str, list_file: Path, row: str) -> str:
    number = int(cell) if cell.isascii() and cell.isdecimal() else 0
    if not 1 <= number <= len(CLASSES):
        raise DataError(list_file, row, f"class is {cell!r}", f"a number from 1 to {len(CLASSES)}")
    return CLASSES[number - 1]


def parse_coordinates(cells: dict[str, str], list_file: Path, row: str) -> list[np.ndarray]:
    """Source and target keypoints, float32 [P, 2] each, of a row of the test list."""
    axes = {}
    for column in TEST_COORDINATES:
        items = cells[column].split(";")
        names = [f"{column} item {number}" for number in range(1, len(items) + 1)]
        axes[column] = parse_numbers(items, names, list_file, row)
    for x, y in (("XA", "YA"), ("XB", "YB")):
        if len(axes[x]) != len(axes[y]):
            what = f"{x} has {len(axes[x])} numbers and {y} has {len(axes[y])}"
            raise DataError(list_file, row, what, "the same number")
    return [np.stack([axes["XA"], axes["YA"]], axis=1), np.stack([axes["XB"], axes["YB"]], axis=1)]


def load(root: Path | str, split: str) -> PairList:
    """PF-PASCAL's pairs of one split below `root`.

    Raises:
        DataError: the list or a file it names is missing, or a row is wrong; the first finding is named.
        ValueError: no such split.

    Source: https://www.di.ens.fr/willow/research/proposalflow/
    """
    require_split(split, SPLITS, FOLDER)
    folder = benchmark_folder(root, FOLDER, MARKER)
    pairs = read(folder, RowChecker(folder / list_name(split), raise_first))
    return PairList(NAME, split, folder, THRESHOLD, pairs, list(CLASSES))


def image_pairs(list_file: Path) -> list[frozenset[str]]:
    """The unordered pair of image names of every row; needs the list only, not the images."""
    rows = read_csv(list_file, _wrong_columns, raise_first)
    columns = ("source_image", "target_image")
    return [frozenset(PurePosixPath(cells[column]).name for column in columns) for _, cells in rows]


def unseen_indices(pairs: PairList) -> list[int]:
    """Indices of the pairs that are not in the benchmark's training list, in either order.

    Of the 299 public test pairs 95 are training pairs as well; the other 204 make a test set without that
    leak.

    Raises:
        DataError: the training list is missing.
    """
    seen = set(image_pairs(pairs.root / list_name("trn")))
    return [
        index for index, pair in enumerate(pairs.pairs) if frozenset((pair.source.name, pair.target.name)) not in seen
    ]
