"""Reading and checking the rows of a list, shared by the loaders and by `semimatch data check`.

Everything found wrong goes to a `report` function: the loaders pass `raise_first`, which stops at the first
finding, the check passes a list's `append` and gets all of them, in the same words.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from .pairs import DataError, Pair

Report = Callable[[DataError], None]
Row = TypeVar("Row")

# Annotators click on the outermost pixel and some tools count pixels from 1: a keypoint may lie this far
# outside.
BORDER_TOLERANCE = 1.0
LARGEST_NUMBER = 1e9  # pixels; keeps what cannot be float32 out


def raise_first(error: DataError) -> None:
    """The `report` of the loaders."""
    raise error


def benchmark_folder(root: Path | str, folder: str, marker: str) -> Path:
    """The folder of a benchmark below `root`, or `root` itself where it is that folder.

    Args:
        root: what the user gave as data root.
        folder: the benchmark's public folder name, "PF-PASCAL" for example.
        marker: a file or folder that every copy of the benchmark has (glob pattern).

    Raises:
        DataError: neither place has the benchmark.
    """
    root = Path(root)
    if (root / folder).is_dir():
        return root / folder
    if root.is_dir() and any(root.glob(marker)):
        return root
    what = f"does not hold {folder}/" if root.is_dir() else "no such folder"
    raise DataError(root, "", what, f"a folder with {folder}/ in it, or that folder itself (with {marker} in it)")


def require_split(split: str, splits: Sequence[str], benchmark: str) -> None:
    """Raises ValueError where `benchmark` has no such split."""
    if split not in splits:
        raise ValueError(f"split is {split!r}; expected one of {', '.join(splits)} for {benchmark}")


def read_text(path: Path) -> str:
    """Text of a list or annotation; DataError where there is no such file or it is not text."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DataError(path, "", "no such file", "the file of the benchmark's public release") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(path, "", f"cannot be read ({error})", "a readable text file") from error


def read_csv(
    path: Path, columns: Callable[[list[str]], str | None], report: Report
) -> Iterator[tuple[str, dict[str, str]]]:
    """Rows of a CSV list with a header, as ("row 17", {column: cell}).

    Args:
        path: the list.
        columns: looks at the header and returns what it should have been, or None where it is right.
        report: receives rows of the wrong length, which are left out.
    """
    lines = csv.reader(read_text(path).splitlines())
    header = next(lines, [])
    wanted = columns(header)
    if wanted is not None:
        shown = ",".join(header)
        shown = shown if len(shown) <= 80 else shown[:77] + "..."
        raise DataError(path, "header", f"columns are {shown!r}", wanted)
    for number, cells in enumerate(lines, start=1):
        if not cells:
            continue
        if len(cells) != len(header):
            error = DataError(path, f"row {number}", f"{len(cells)} cells", f"{len(header)} cells as in the header")
            report(error)
            continue
        yield f"row {number}", dict(zip(header, cells, strict=True))


def parse_numbers(cells: Sequence[str], names: Sequence[str], path: Path, row: str) -> np.ndarray:
    """Cells as float32 [len(cells)]; `names` says in a DataError which cell is not a finite number."""
    values = []
    for name, cell in zip(names, cells, strict=True):
        try:
            value = float(cell)
        except ValueError:
            value = float("nan")
        if not abs(value) < LARGEST_NUMBER:  # false for NaN
            raise DataError(path, row, f"{name} is {cell!r}", "a finite number")
        values.append(value)
    return np.array(values, np.float32)


class RowChecker:
    """Makes the `Pair`s of one list after checking them against the headers of their images.

    Args:
        list_file: the list the rows come from.
        report: receives every finding.

    Attributes:
        images: the image files that rows named and that exist, whether or not the rest of the row was right.
    """

    def __init__(self, list_file: Path, report: Report) -> None:
        self.list_file = list_file
        self.report = report
        self.images: set[Path] = set()
        self._sizes: dict[Path, tuple[int, int] | DataError] = {}
        self._found: dict[tuple[Path | str, ...], Path | None] = {}

    def pairs(
        self, rows: Iterable[tuple[str, Row]], read_row: Callable[[str, Row, RowChecker], Pair | None]
    ) -> list[Pair]:
        """The pairs `read_row` makes of the rows; rows that raise DataError are reported and left out."""
        pairs = []
        for row, content in rows:
            try:
                pair = read_row(row, content, self)
            except DataError as error:
                self.report(error)
                continue
            if pair is not None:
                pairs.append(pair)
        return pairs

    def find_image(self, row: str, written: str, places: Sequence[Path | str]) -> Path:
        """As `find`, for an image; it becomes one of `images`."""
        path = self.find(row, written, places)
        self.images.add(path)
        return path

    def find(self, row: str, written: str, places: Sequence[Path | str]) -> Path:
        """The first of `places` that exists; DataError for the path `written` in the list where none does."""
        key = tuple(places)
        if key not in self._found:
            self._found[key] = next((path for path in map(Path, places) if path.is_file()), None)
        found = self._found[key]
        if found is None:
            expected = "a file at " + " or ".join(str(place) for place in places)
            raise DataError(self.list_file, row, f"names {written!r}, which does not exist", expected)
        return found

    def image_size(self, path: Path, row: str) -> tuple[int, int]:
        """(width, height) from the header of an image; DataError where it is not one."""
        if path not in self._sizes:
            try:
                with Image.open(path) as image:
                    self._sizes[path] = image.size
            except Exception as error:  # Pillow's plug-ins raise many kinds on a damaged header
                what = f"names {path.name!r}, whose header cannot be read ({type(error).__name__}: {error})"
                self._sizes[path] = DataError(self.list_file, row, what, "an image file")
        size = self._sizes[path]
        if isinstance(size, DataError):
            raise DataError(self.list_file, row, size.what, size.expected)
        return size

    def make_pair(
        self,
        row: str,
        images: Sequence[Path],
        keypoints: Sequence[np.ndarray],
        boxes: Sequence[np.ndarray],
        category: str,
        flip: bool = False,
        flags: Mapping[str, int] | None = None,
    ) -> Pair | None:
        """The checked pair, or None where something was reported.

        Args:
            row: "row 17".
            images: source and target file.
            keypoints: source and target [P, 2], pixels.
            boxes: source and target [4], x1, y1, x2, y2.
            category, flip, flags: as in `Pair`.
        """
        findings = len(keypoints[0]) != len(keypoints[1])
        if findings:
            what = f"{len(keypoints[0])} source keypoints and {len(keypoints[1])} target keypoints"
            self.report(DataError(self.list_file, row, what, "the same number"))
        for side, image, points, box in zip(("source", "target"), images, keypoints, boxes, strict=True):
            try:
                self._check_side(row, side, image, points, box)
            except DataError as error:
                findings = True
                self.report(error)
        if findings:
            return None
        return Pair(
            source=images[0],
            target=images[1],
            source_keypoints=keypoints[0],
            target_keypoints=keypoints[1],
            source_box=boxes[0],
            target_box=boxes[1],
            category=category,
            flip=flip,
            flags={} if flags is None else flags,
            row=f"{self.list_file.name} {row}",
        )

    def _check_side(self, row: str, side: str, image: Path, points: np.ndarray, box: np.ndarray) -> None:
        width, height = self.image_size(image, row)
        limit = np.array([width, height], np.float32) + BORDER_TOLERANCE
        outside = ~((points >= -BORDER_TOLERANCE) & (points <= limit)).all(axis=1)  # true for NaN too
        if outside.any():
            number = int(outside.argmax())
            x, y = points[number]
            what = f"{side} keypoint {number + 1} is ({x:g}, {y:g})"
            expected = f"a point inside {image.name}, which is {width} x {height} pixels"
            raise DataError(self.list_file, row, what, expected)
        x1, y1, x2, y2 = box
        # Written so that NaN fails; a single keypoint has a tight box of no extent, which is a box.
        if not (x1 <= x2 and y1 <= y2 and x1 <= width and y1 <= height and x2 >= 0 and y2 >= 0):
            what = f"{side} box is ({x1:g}, {y1:g}, {x2:g}, {y2:g})"
            expected = f"x1 <= x2 and y1 <= y2, overlapping {image.name}, which is {width} x {height} pixels"
            raise DataError(self.list_file, row, what, expected)
