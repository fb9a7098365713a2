"""The search of launch configurations, as far as it goes without a GPU: what it would try, and what it writes."""

from __future__ import annotations

import dataclasses
import math
import runpy
import subprocess
import sys

import pytest

pytest.importorskip("triton")

from benchmarks import groups, machine, search
from semimatch_kernels.triton import configs, table


def test_places_and_candidates():
    places = dict(search.places(configs.ARCHITECTURES[90]))
    assert places["forward", (True, "large", 4)] == configs.ARCHITECTURES[90].forward[True, "large", 4]
    assert places["both_backward", None] == configs.ARCHITECTURES[90].both_backward
    for place, tile in places.items():
        assert search.name_of(place)
        changes = search.candidates(tile)
        assert changes and all(len(change) == 1 for change in changes)
        for change in changes:
            new = dataclasses.replace(tile, **change)
            assert new != tile and new.num_warps in (2, 4, 8)
            assert all(getattr(new, name) == getattr(tile, name) for name in search.KEPT if hasattr(tile, name))


def test_every_work_is_one_that_the_tile_serves():
    """By the key of the place: the size of an entry."""
    known = {place: search.work(place) for place, _ in search.places(configs.ARCHITECTURES[90])}
    for place, task in known.items():
        if task is not None:
            width = groups.DTYPES[task.dtype].itemsize
            assert not isinstance(place[1], tuple) or width == place[1][-1], search.name_of(place)
            assert task.phase in ("forward", "backward")
    assert [place for place, task in known.items() if task is not None]
    assert search.work(("a field of tomorrow", None)) is None
    _, *sides = known["mutual", None].shapes[0]
    assert math.prod(sides) > configs.SMALL_ENTRIES, "has the tile of sides"
    for place, task in known.items():
        if task is not None and "ieee" in str(place[1]):
            assert task.dtype == "fp32", f"{search.name_of(place)}: products in tf32 have another tile"


def test_improve_walks_to_the_fastest_and_stops_at_noise():
    tile = configs.Tile(reduced=16, kept=64, unroll=1, min_cells=64)

    def measure(changes):
        tiles = [dataclasses.replace(tile, **c) for c in changes]
        return [float("inf") if t.kept > 128 else 1 + abs(t.reduced - 64) / 64 + 0.01 * (t.kept == 64) for t in tiles]

    assert search.improve(tile, measure) == {"reduced": 64}
    assert search.improve(tile, lambda changes: [1.0, *[0.98] * (len(changes) - 1)]) == {}
    assert search.improve(tile, lambda changes: [1.0, *[float("inf")] * (len(changes) - 1)]) == {}


def test_the_table_is_what_the_search_writes_and_configs_reads(tmp_path):
    assert search.TABLE.read_text() == search.render(table.FOUND), "by hand? python -m benchmarks.search writes it"
    found = {90: {("forward", (True, "large", 4)): {"reduced": 64, "num_warps": 8}, ("mutual", None): {"cells": 64}}}
    path = tmp_path / "table.py"
    path.write_text(search.render(found | {80: {}}))
    assert runpy.run_path(str(path))["FOUND"] == found
    shipped = configs.ARCHITECTURES[90]
    new = configs.with_found(shipped, found[90])
    assert new.forward[True, "large", 4].reduced == 64 and new.forward[True, "large", 4].num_warps == 8
    assert new.mutual.cells == 64
    assert new.forward[True, "large", 2] == shipped.forward[True, "large", 2] and new.backward == shipped.backward
    assert configs.with_found(shipped, {}) == shipped


def test_the_dry_run_lists_what_would_be_tried(capsys):
    before = search.TABLE.read_text()
    assert search.main(["--dry-run", "--places", "both*"]) == 0
    text = capsys.readouterr().out
    assert "both_forward: BothForward(rows=128" in text and "rows=64, rows=256" in text
    assert search.render(table.FOUND) in text and "forward[" not in text
    assert search.main(["--dry-run", "--places", "forward[True,large,4]"]) == 0
    assert capsys.readouterr().out.startswith("forward[True,large,4]: Tile(")
    assert search.main(["--dry-run", "--places", "merge"]) == 0
    assert "not searched" in capsys.readouterr().out
    assert search.TABLE.read_text() == before


@pytest.mark.skipif(search.torch.cuda.is_available(), reason="a GPU is visible")
def test_without_a_gpu_it_says_so_and_stops():
    done = subprocess.run([sys.executable, "-m", "benchmarks.search"], cwd=machine.ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "sees no GPU" in done.stderr and not done.stdout
