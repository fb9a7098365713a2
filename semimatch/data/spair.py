"""SPair-71k (Min et al., 2019): 53,340 training, 5,384 validation and 12,234 test pairs of 18 categories.

On disk, below `SPair-71k/`: `Layout/{large,small}/{trn,val,test}.txt`, a line a pair
("<id>-<source>-<target>:<category>"); `PairAnnotation/<split>/<line>.json` with keypoints visible in both
images, boxes and difficulty flags; and `JPEGImages/<category>/`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from .pairs import DataError, Pair, PairList
from .rows import RowChecker, benchmark_folder, raise_first, read_text, require_split

NAME = "spair-71k"
FOLDER = "SPair-71k"
SPLITS = ("trn", "val", "test")
LAYOUTS = ("large", "small")
THRESHOLD = "bbox"
MARKER = "Layout"

CATEGORIES = [
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair",
    "cow", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "train", "tvmonitor",
]  # fmt: skip

# Largest value of each difficulty flag. Truncation and occlusion: 0 none, 1 source, 2 target, 3 both.
FLAGS = {"viewpoint_variation": 2, "scale_variation": 2, "truncation": 3, "occlusion": 3}
_NUMBERS = {
    f"{side}_{key}": shape
    for side in ("src", "trg")
    for key, shape in (("kps", (-1, 2)), ("bndbox", (4,)), ("imsize", (3,)))
}


def layout_file(folder: Path, split: str, layout: str) -> Path:
    """The list of one split."""
    return folder / "Layout" / layout / f"{split}.txt"


def read(folder: Path, split: str, checker: RowChecker) -> list[Pair]:
    """Pairs of one list in the benchmark's `folder`; what is wrong is reported and left out."""
    lines = read_text(checker.list_file).splitlines()
    # disable=None: no bar where stderr is not a terminal.
    progress = tqdm(lines, desc=f"SPair-71k {split}", unit="pair", disable=None, leave=False)
    rows = ((f"row {number}", line) for number, line in enumerate(progress, start=1) if line)
    return checker.pairs(rows, partial(_read_row, folder, split))


def lists(folder: Path) -> dict[Path, Callable[[RowChecker], list[Pair]]]:
    """The lists that exist in the benchmark's folder, each with what reads it."""
    files = {layout_file(folder, split, layout): split for layout in LAYOUTS for split in SPLITS}
    return {file: partial(read, folder, split) for file, split in files.items() if file.is_file()}


def _read_row(folder: Path, split: str, row: str, line: str, checker: RowChecker) -> Pair | None:
    list_file = checker.list_file
    name, colon, category = line.rpartition(":")
    if not (name and colon):
        raise DataError(list_file, row, f"is {line!r}", "<id>-<source>-<target>:<category>")
    if category not in CATEGORIES:
        raise DataError(list_file, row, f"category is {category!r}", f"one of {', '.join(CATEGORIES)}")
    # Text instead of Path objects: making those takes longer than reading the small files.
    path = f"{folder}/PairAnnotation/{split}/{line}.json"
    fields = _read_annotation(path, list_file, row)
    if fields["category"] != category:
        raise DataError(path, "", f"category is {fields['category']!r}", f"{category!r} as in {list_file.name} {row}")
    numbers = {key: _parse_array(fields[key], shape, key, path) for key, shape in _NUMBERS.items()}
    flags = {key: _parse_flag(fields[key], key, path) for key in FLAGS}
    images = []
    for side in ("src", "trg"):
        written = f"{category}/{fields[f'{side}_imname']}"
        image = checker.find_image(row, written, [f"{folder}/JPEGImages/{written}"])
        images.append(image)
        size = checker.image_size(image, row)
        stated = numbers[f"{side}_imsize"]
        if tuple(stated[:2]) != size:
            what = f"{side}_imsize is {stated[0]:g} x {stated[1]:g}"
            raise DataError(path, "", what, f"{size[0]} x {size[1]}, the size of {written}")
    keypoints = [numbers["src_kps"], numbers["trg_kps"]]
    boxes = [numbers["src_bndbox"], numbers["trg_bndbox"]]
    return checker.make_pair(row, images, keypoints, boxes, category, flags=flags)


def _read_annotation(path: str, list_file: Path, row: str) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            fields = json.loads(file.read())
    except FileNotFoundError:
        raise DataError(list_file, row, "has no annotation", f"a file at {path}") from None
    except ValueError as error:
        raise DataError(path, "", f"is not JSON ({error})", "the annotation of a pair") from error
    for key in ("src_imname", "trg_imname", "category", *_NUMBERS, *FLAGS):
        if not isinstance(fields, dict) or key not in fields:
            raise DataError(path, "", f"has no field {key!r}", "the fields of SPair-71k's pair annotations")
    return fields


def _parse_array(value: Any, shape: tuple[int, ...], key: str, path: str) -> np.ndarray:
    try:
        array = np.array(value, np.float32).reshape(shape)
    except (TypeError, ValueError):
        array = np.array(np.nan)
    if not np.isfinite(array).all():
        shown = "[P, 2]" if len(shape) == 2 else str(list(shape))
        raise DataError(path, "", f"{key} is {str(value)[:80]}", f"finite numbers {shown}")
    return array


def _parse_flag(value: Any, key: str, path: str) -> int:
    if value not in range(FLAGS[key] + 1):
        raise DataError(path, "", f"{key} is {value!r}", f"a whole number from 0 to {FLAGS[key]}")
    return int(value)


def load(root: Path | str, split: str, layout: str = "large") -> PairList:
    """SPair-71k's pairs of one split below `root`.

    Args:
        root: the data root or the benchmark's folder.
        split: "trn", "val" or "test".
        layout: "large", the benchmark, or "small", its smaller lists.

    Raises:
        DataError: the list or a file it names is missing, or a row is wrong; the first finding is named.
        ValueError: no such split or layout.

    Source: https://cvlab.postech.ac.kr/research/SPair-71k/
    """
    require_split(split, SPLITS, FOLDER)
    if layout not in LAYOUTS:
        raise ValueError(f"layout is {layout!r}; expected one of {', '.join(LAYOUTS)}")
    folder = benchmark_folder(root, FOLDER, MARKER)
    pairs = read(folder, split, RowChecker(layout_file(folder, split, layout), raise_first))
    return PairList(NAME, split, folder, THRESHOLD, pairs, list(CATEGORIES))
