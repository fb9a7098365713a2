"""Data: the three benchmarks of semantic correspondence, images in memory, and an embedded data set.

pairs.py         Pair, PairList, DataError
pf_willow.py     PF-WILLOW; pf_pascal.py PF-PASCAL; spair.py SPair-71k: one loader a file
rows.py          reading and checking rows, shared by the loaders
store.py         ImageStore, LoadedPairs, Batch
willow_split.py  training and test part of PF-WILLOW that share no image
check.py         `semimatch data check`: everything that is wrong with a folder
demo.py          the embedded data set in the layouts of the three benchmarks, drawn by demo_scene.py (a
                 picture), demo_objects.py (the five categories) and demo_draw.py (shapes, materials, canvas)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from . import pf_pascal, pf_willow, spair
from .pairs import DataError, Pair, PairList
from .rows import RowChecker
from .store import Batch, ImageStore, LoadedPairs

__all__ = [
    "DATASETS",
    "Batch",
    "Benchmark",
    "DataError",
    "ImageStore",
    "LoadedPairs",
    "Pair",
    "PairList",
    "load_pairs",
]


@dataclass(frozen=True)
class Benchmark:
    """One entry of `DATASETS`.

    Attributes:
        folder: the benchmark's folder below the data root.
        marker: glob pattern of something that lies in every copy of that folder.
        splits: the splits it has.
        threshold: what its PCK threshold is relative to (see `PairList`).
        load: (root, split) -> PairList.
        lists: benchmark's folder -> the lists in it, each with what reads it.
    """

    folder: str
    marker: str
    splits: tuple[str, ...]
    threshold: str
    load: Callable[[Path | str, str], PairList]
    lists: Callable[[Path], dict[Path, Callable[[RowChecker], list[Pair]]]]


DATASETS: dict[str, Benchmark] = {
    module.NAME: Benchmark(module.FOLDER, module.MARKER, module.SPLITS, module.THRESHOLD, module.load, module.lists)
    for module in (pf_willow, pf_pascal, spair)
}


def load_pairs(name: str, root: Path | str, split: str) -> PairList:
    """The pairs of one split of one benchmark.

    Args:
        name: key of `DATASETS`: "pf-willow", "pf-pascal" or "spair-71k" (capitals do not matter).
        root: the folder that holds PF-WILLOW/, PF-PASCAL/ and SPair-71k/, or the benchmark's own folder.
        split: "trn", "val" or "test"; PF-WILLOW has "test" only.

    Raises:
        DataError: a list or file is missing, or a row is wrong; the message names file, row and what was
        expected.
        ValueError: no such name or split.
    """
    if name.lower() not in DATASETS:
        raise ValueError(f"name is {name!r}; expected one of {', '.join(DATASETS)}")
    return DATASETS[name.lower()].load(root, split)
