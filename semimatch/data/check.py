"""`semimatch data check DIR`: reads every list of every benchmark below a folder, says all that is wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from . import DATASETS
from .pairs import DataError
from .rows import RowChecker, benchmark_folder
from .store import decode


@dataclass
class Report:
    """What a check found.

    Attributes:
        root: the folder that was checked.
        lists: for each list that was read, the number of good rows.
        images: number of different images that the lists name and that exist; each was decoded whole.
        problems: every finding, in the order of the lists; damaged images come last.
    """

    root: Path
    lists: dict[Path, int] = field(default_factory=dict)
    images: int = 0
    problems: list[DataError] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def text(self, limit: int = 50) -> str:
        """The report for a person, with at most `limit` problems written out."""
        lines = [f"{path}: {_number(count, 'good row')}" for path, count in self.lists.items()]
        lines.append(f"{_number(self.images, 'image')} decoded")
        lines += [str(problem) for problem in self.problems[:limit]]
        hidden = Counter(problem.file for problem in self.problems[limit:])
        if hidden:
            files = ", ".join(f"{count} in {name}" for name, count in hidden.most_common(5))
            lines.append(f"... and {hidden.total()} more (most: {files})")
        lines.append("nothing wrong" if self.ok else _number(len(self.problems), "problem"))
        return "\n".join(lines)


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def check(root: Path | str, name: str | None = None, progress: bool = True) -> Report:
    """Checks every row of the lists below `root` and every image that they name.

    A row is right where its files exist, its category is known, its numbers are numbers, both sides have the
    same number of keypoints, the keypoints lie inside their images and the boxes are in order and touch their
    images. An image is right where it decodes to its end. These are the rules of the loaders, which stop at
    the first problem.

    Args:
        root: data root, or the folder of one benchmark.
        name: key of `semimatch.data.DATASETS`; None checks whatever is there.
        progress: show a bar while decoding, where stderr is a terminal.

    Raises:
        ValueError: no such name.
    """
    root = Path(root)
    if name is not None and name not in DATASETS:
        raise ValueError(f"name is {name!r}; expected one of {', '.join(DATASETS)}, or None for all")
    report = Report(root)
    images: set[Path] = set()
    names = _names_in(root) if name is None else [name]
    if not names:
        expected = "a folder with " + ", ".join(f"{benchmark.folder}/" for benchmark in DATASETS.values()) + " in it"
        report.problems.append(DataError(root, "", "holds no benchmark", expected))
    for key in names:
        try:
            images |= _check_lists(key, root, report)
        except DataError as error:
            report.problems.append(error)
    report.images = len(images)
    report.problems += _damaged(sorted(images), progress)
    return report


def _names_in(root: Path) -> list[str]:
    """The benchmarks below `root`, or the one that `root` is."""
    below = [name for name, benchmark in DATASETS.items() if (root / benchmark.folder).is_dir()]
    if below:
        return below
    if (root / "Layout").is_dir():
        return ["spair-71k"]
    # Both Proposal Flow benchmarks have a test_pairs.csv; their headers differ.
    for path in sorted(root.glob("*_pairs.csv")):
        with path.open(encoding="utf-8", errors="replace") as file:
            return ["pf-willow" if file.readline().startswith("imageA") else "pf-pascal"]
    return []


def _check_lists(name: str, root: Path, report: Report) -> set[Path]:
    """Reads every list of one benchmark into `report`; returns the images that the lists name."""
    benchmark = DATASETS[name]
    folder = benchmark_folder(root, benchmark.folder, benchmark.marker)
    lists = benchmark.lists(folder)
    if not lists:
        raise DataError(folder, "", "holds no list of pairs", f"the lists of {benchmark.folder}'s public release")
    images: set[Path] = set()
    for path, read in lists.items():
        checker = RowChecker(path, report.problems.append)
        try:
            report.lists[path] = len(read(checker))
        except DataError as error:  # the list as a whole: not text, wrong columns
            report.problems.append(error)
        images |= checker.images
    return images


def _damaged(images: Iterable[Path], progress: bool) -> list[DataError]:
    def problem(path: Path) -> DataError | None:
        try:
            decode(path)
        except DataError as error:
            return error
        return None

    paths = list(images)
    disable = None if progress else True
    with ThreadPoolExecutor() as pool:
        found = tqdm(pool.map(problem, paths), total=len(paths), desc="images", unit="image", disable=disable)
        return [error for error in found if error is not None]
