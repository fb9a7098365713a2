"""Pairs of images with corresponding keypoints, and the one error class of this package."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import UserError

THRESHOLDS = ("img", "bbox", "bbox-kp")


class DataError(UserError):
    """Something in a data set is wrong.

    The message is always "<file>, <row>: <what is wrong>; expected <what was expected>", so that the person
    who reads it can go to the place. The parts are kept as attributes for `semimatch data check`.

    Args:
        file: the list, annotation or image that is wrong.
        row: the row of a list as in `Pair.row`, without the file name, or "" where the file as a whole is
        wrong.
        what: what was found.
        expected: what should have been there.
    """

    def __init__(self, file: Path | str, row: str, what: str, expected: str) -> None:
        self.file = str(file)
        self.row = row
        self.what = what
        self.expected = expected
        place = f"{file}, {row}" if row else str(file)
        super().__init__(f"{place}: {what}; expected {expected}")


@dataclass(frozen=True, eq=False)
class Pair:
    """One row of a benchmark's list. Coordinates are pixels (x, y) of the original images.

    Keypoint i of the source corresponds to keypoint i of the target; only points visible in both are kept, so
    P may be 0 in a training list.

    Attributes:
        source, target: image files.
        source_keypoints, target_keypoints: float32 [P, 2].
        source_box, target_box: float32 [4], x1, y1, x2, y2 of the object; the tight box of the keypoints
            where the benchmark gives none (PF-WILLOW).
        category: name of the object category.
        flip: whether both images of the row are to be mirrored (PF-PASCAL training rows).
        flags: difficulty of the pair as SPair-71k states it, otherwise empty.
        row: "test_pairs.csv row 17", for messages; rows count from 1 and a header does not count.
    """

    source: Path
    target: Path
    source_keypoints: np.ndarray
    target_keypoints: np.ndarray
    source_box: np.ndarray
    target_box: np.ndarray
    category: str
    flip: bool
    flags: Mapping[str, int]
    row: str


@dataclass(frozen=True, eq=False)
class PairList:
    """The pairs of one split of one benchmark.

    Attributes:
        name: key of `semimatch.data.DATASETS`, "pf-willow" for example.
        split: "trn", "val" or "test", or the name that `subset` gave.
        root: folder of the benchmark (it holds the lists).
        threshold: what the PCK threshold is relative to by the benchmark's own rule: "img" the image,
            "bbox" the object's box, "bbox-kp" the tight box of the keypoints.
        pairs: the rows in the order of the list.
        categories: names of all categories of the benchmark; their order numbers them.
    """

    name: str
    split: str
    root: Path
    threshold: str
    pairs: list[Pair]
    categories: list[str]

    def __post_init__(self) -> None:
        if self.threshold not in THRESHOLDS:
            raise ValueError(f"threshold is {self.threshold!r}; expected one of {', '.join(THRESHOLDS)}")

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def images(self) -> list[Path]:
        """Every image of the list once, sorted."""
        return sorted({path for pair in self.pairs for path in (pair.source, pair.target)})

    def subset(self, indices: Iterable[int], split: str | None = None) -> PairList:
        """The rows `indices` in that order, as a list of its own. The categories keep their numbers."""
        pairs = [self.pairs[int(index)] for index in indices]
        return PairList(self.name, split or self.split, self.root, self.threshold, pairs, self.categories)


def tight_box(keypoints: np.ndarray) -> np.ndarray:
    """Smallest box round keypoints [P, 2]: float32 [4] x1, y1, x2, y2; zeros where P is 0."""
    if not len(keypoints):
        return np.zeros(4, np.float32)
    return np.concatenate([keypoints.min(axis=0), keypoints.max(axis=0)]).astype(np.float32)
