"""``python -m benchmarks.search``: search launch configurations of the Triton kernels on this GPU, rewrite the table.

For each place (a tile of `configs.Architecture`) a workload that runs with it; from the tile in use to the fastest
neighbour, one field doubled or halved, until none is faster by more than `GAIN`. A candidate that fails the truth gate
or does not compile is dropped. What was found is written to ``semimatch_kernels/triton/table.py``, which `configs`
reads at import: nothing is searched for in a user's step. ``--dry-run``: lists places and candidates and prints the
table as it is, on any machine.
"""

from __future__ import annotations

import argparse
import dataclasses
import fnmatch
import functools
import math
import pprint
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

import semimatch_kernels as smk
from semimatch_kernels.triton import configs, table

from .elsewhere import TEMPERATURE, side
from .groups import DTYPES, precision
from .measure import excess, results_and_gradients
from .timing import interleaved, step, stream

TABLE = Path(table.__file__)
#: A candidate must be faster by this share; less is noise, and not worth a line.
GAIN = 0.03
Place = tuple[str, object]  # a field of Architecture, and the key in it or None

#: Fields that are no powers of two of a tile, or that decide about the order of sums for every shape.
KEPT = ("min_cells", "parts", "row_bytes", "row_step")
LIMITS = {"num_warps": (2, 8), "num_stages": (1, 5), "unroll": (1, 16)}
LARGEST = 256


# --- what there is to choose


def places(architecture: configs.Architecture) -> Iterator[tuple[Place, object]]:
    """Every tile of ``architecture``, with its place."""
    for field in dataclasses.fields(architecture):
        value = getattr(architecture, field.name)
        if dataclasses.is_dataclass(value):
            yield (field.name, None), value
        elif isinstance(value, dict):
            yield from (((field.name, key), tile) for key, tile in value.items())


def candidates(tile) -> list[dict[str, int]]:
    """The neighbours of a tile: the fields that differ, one in each."""
    found = []
    for field in dataclasses.fields(tile):
        value = getattr(tile, field.name)
        if field.name in KEPT:
            continue
        low, high = LIMITS.get(field.name, (1, LARGEST))
        near = (value - 1, value + 1) if field.name == "num_stages" else (value // 2, value * 2)
        found += [{field.name: n} for n in near if low <= n <= high and n != value]
    return found


def name_of(place: Place) -> str:
    """ "forward[True,large,4]" """
    field, key = place
    parts = key if isinstance(key, tuple) else (key,)
    return field if key is None else f"{field}[{','.join(map(str, parts))}]"


# --- what is run with it


@dataclass(frozen=True)
class Work:
    """A function of one or two inputs of ``shape``, forward or backward; ``dtype`` as in `groups.DTYPES`."""

    function: Callable[..., object]
    shapes: list[tuple[int, ...]]
    dtype: str
    phase: str


def work(place: Place) -> Work | None:
    """What runs with the tile at ``place``; None where nothing is known, so that it is not searched."""
    field, key = place
    if field in ("forward", "backward"):
        fast, size, itemsize = key
        return _match(size, "source" if fast else "target", "fp32" if itemsize == 4 else "bf16", field)
    if field in ("both_forward", "both_backward"):
        return _match("large", "both", "fp32", field.removeprefix("both_"))
    if field == "from_features":
        kernel, size, itemsize = key
        if kernel == "windowed":
            windowed = functools.partial(smk.soft_argmax_features, window=smk.GaussianWindow(5.0))
            return _features(size, itemsize, "forward", windowed)
        return _features(size, itemsize, "forward" if kernel == "forward" else "backward")
    if key == ("ieee, levels", 4):
        return Work(lambda s, t: smk.correlation(s, t, backend="triton"), [(4, 1024, 64, 64)] * 2, "fp32", "backward")
    if field == "products":
        return _features(*key, "backward")
    if field == "norms":
        return _features("small", 2, "forward")
    if field == "mutual":  # a small one has the tile of "sides"
        return Work(lambda c: smk.mutual_filter(c, backend="triton"), [_matrix("large")], "fp32", "forward")
    if field == "sides":
        return Work(lambda c: smk.dual_softmax(c, TEMPERATURE, backend="triton"), [_matrix(key)], "fp32", "forward")
    return None


def _matrix(size: str) -> tuple[int, int, int]:
    return (10, 256, 256) if size == "small" else (8, 4096, 4096)


def _match(size: str, per: str, dtype: str, phase: str) -> Work:
    shape = _matrix(size)
    grid = side(shape[1])
    grids = (grid, grid) if per == "both" else grid
    return Work(lambda c: smk.match(c, grids, TEMPERATURE, per, backend="triton"), [shape], dtype, phase)


def _features(size: str, itemsize: int, phase: str, function: Callable = smk.match_features) -> Work:
    edge = {"small": 16, "odd": 63}.get(size, 64)
    shape = (10 if edge == 16 else 4, 1024, edge, edge)
    # the ordinary tiles of float32 serve products in tf32
    dtype = "bf16" if itemsize == 2 else "fp32" if size == "ieee" else "tf32"
    grid = (edge, edge)
    return Work(lambda s, t: function(s, t, grid, TEMPERATURE, backend="triton"), [shape] * 2, dtype, phase)


# --- the search


def improve(tile, measure: Callable[[list[dict[str, int]]], list[float]]) -> dict[str, int]:
    """The fields to change of ``tile``: from neighbour to neighbour while one is faster. ``measure`` gives the seconds
    of several changes in one run, infinite for those that are wrong or do not compile."""
    best: dict[str, int] = {}
    while True:
        current = dataclasses.replace(tile, **best)
        steps = [best | c for c in candidates(current)]
        now, *times = measure([best, *steps])
        fastest = min(range(len(times)), key=times.__getitem__, default=None)
        if fastest is None or not times[fastest] < now * (1 - GAIN):
            return {name: value for name, value in best.items() if value != getattr(tile, name)}
        best = steps[fastest]


def on_gpu(place: Place, task: Work, capability: int, seconds: float) -> Callable[[list[dict[str, int]]], list[float]]:
    """`improve`'s measure: each change is put in its place, captured in a graph, and the graphs take turns."""
    torch.manual_seed(0)
    inputs = [torch.randn(shape, device="cuda").mul_(0.3).to(DTYPES[task.dtype]) for shape in task.shapes]
    shipped = configs.ARCHITECTURES[capability]

    def use(change: dict[str, int]) -> None:
        configs.ARCHITECTURES[capability] = configs.with_found(shipped, {place: change})
        configs._of_device.cache_clear()

    def run() -> list[Tensor]:
        return results_and_gradients(task.function, inputs, len(inputs))

    expected = run()

    def measure(changes: list[dict[str, int]]) -> list[float]:
        try:
            steps = {}
            for i, change in enumerate(changes):
                use(change)
                try:
                    # The shipped tile passed the tests: what differs from it by more than rounding is wrong.
                    if excess(run(), expected, expected, DTYPES[task.dtype], slack=4) is None:
                        plain = step(task.function, inputs, len(inputs), task.phase)
                        steps[i] = lambda plain=plain, change=change: (use(change), plain())[1]
                except Exception as error:  # out of shared memory or registers, or refused by the compiler
                    print(f"  {change}: {type(error).__name__}")
            timings = interleaved(steps, seconds)
            medians = {i: sorted(t.rounds["warm"])[len(t.rounds["warm"]) // 2] for i, t in timings.items()}
            return [medians.get(i, math.inf) for i in range(len(changes))]
        finally:
            use({})

    return measure


def render(found: dict[int, dict[Place, dict[str, int]]]) -> str:
    """The text of the table."""
    entries = {c: dict(sorted(places.items(), key=repr)) for c, places in sorted(found.items()) if places}
    text = pprint.pformat(entries, width=66, sort_dicts=False)
    return (
        '"""Launch configurations that a search on a GPU found faster than those that `configs` ships.\n\n'
        'written by benchmarks.search\n"""\n\n'
        "#: Compute capability -> (field of `configs.Architecture`, key in it or None) -> fields of the tile that "
        "differ.\n# fmt: off\n"
        f"FOUND: dict[int, dict[tuple, dict[str, int]]] = {text}\n"
    )


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0, or 2 without a GPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry-run", action="store_true", help="list places and candidates, print the table")
    parser.add_argument("--places", default="*", help="pattern of names, as 'forward*' (default all)")
    parser.add_argument("--seconds", type=float, default=0.05, help="time spent on each candidate")
    options = parser.parse_args(arguments)
    if not options.dry_run and not torch.cuda.is_available():
        print("search: PyTorch sees no GPU; --dry-run lists what would be searched", file=sys.stderr)
        return 2
    capability = 90
    if torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability()
        capability = max(c for c in configs.ARCHITECTURES if c <= 10 * major + minor)
    found = {c: dict(entries) for c, entries in table.FOUND.items()}
    for place, tile in places(configs.ARCHITECTURES[capability]):
        if not fnmatch.fnmatchcase(name_of(place), options.places.replace("[", "[[]")):
            continue
        task = work(place)
        print(f"{name_of(place)}: {tile}")
        if task is None:
            print("  not searched: no workload is known for it")
        elif options.dry_run:
            print("  " + ", ".join(f"{k}={v}" for c in candidates(tile) for k, v in c.items()))
        else:
            with stream(), precision(task.dtype):
                change = improve(tile, on_gpu(place, task, capability, options.seconds))
            print(f"  {change or 'stays'}")
            if change:
                entries = found.setdefault(capability, {})
                entries[place] = entries.get(place, {}) | change
                TABLE.write_text(render(found), encoding="utf-8")  # at once: a search may be interrupted
    if options.dry_run:
        print(f"\n{TABLE.name}:\n\n{render(found)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
