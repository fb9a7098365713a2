"""What `match` on CUDA does by shape, alignment and architecture, in the emulator (tests/emulator): packs of 16 bytes
or single entries, clusters along rows and down columns, parts in memory. Dtypes, edge cases and odd sizes of every op
are in test_cuda_ops.py."""

from __future__ import annotations

import pytest
import torch
from test_cuda_ops import (  # noqa: F401  (fixtures)
    DTYPES,
    _args,
    _call,
    _compare,
    _in_order,
    _layouts,
    _random,
    _upstream,
    emulator,
)  # fmt: skip
from torch import Tensor

VARIANTS = ["match", "match both"]

#: batch, source grid, target grid: all of whole packs, of any dtype
SHAPES = {
    "one strip": (2, (8, 9), (2, 8)),
    "one cluster, both ways": (1, (16, 16), (16, 16)),
    "several clusters, the last not full": (1, (20, 20), (24, 30)),
    "long columns": (1, (40, 40), (2, 4)),
    "long rows": (1, (2, 4), (40, 40)),
}


@pytest.mark.parametrize("capability", [90, 80])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_packs_and_clusters_against_truth(variant, shape, capability, emulator):  # noqa: F811
    emulator.emulator_set_capability(capability)
    rest = _args(variant, SHAPES[shape])
    for dtype in DTYPES if shape == "one strip" else (torch.float32, torch.bfloat16):
        values = _random(SHAPES[shape], dtype)
        upstream = _upstream(variant, values, rest)
        for name, corr in list(_layouts(values).items())[:2]:
            _compare(variant, corr, values, rest, upstream, f"{name} {dtype}")


def _placed(values: Tensor, start: int, beside: int) -> Tensor:
    """The same values, the first one ``start`` entries into memory, and ``beside`` others (NaN) after each row."""
    batch, rows, cols = values.shape
    memory = values.new_full((batch * rows * (cols + beside) + start,), torch.nan)
    view = memory[start:].view(batch, rows, cols + beside)[..., :cols]
    return view.copy_(values)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_rows_that_do_not_begin_at_16_bytes(variant, dtype):
    shape = SHAPES["one strip"]
    rest, values = _args(variant, shape), _random(shape, dtype)
    upstream = _upstream(variant, values, rest)
    for corr in (_placed(values, 1, 0), _placed(values, 0, 1), _placed(values.mT, 1, 0).mT):
        _compare(variant, corr, values, rest, upstream, f"{dtype}")
    ours, plain = (_call(variant, True, corr, rest, upstream) for corr in (_placed(values, 16, 32), values))
    assert all(torch.equal(a, b) for a, b in zip([*ours[0], ours[1]], [*plain[0], plain[1]], strict=True))


@pytest.mark.parametrize("capability", [90, 80])
@pytest.mark.parametrize("variant", VARIANTS)
def test_any_order_of_threads_gives_the_same_bits(variant, capability, emulator):  # noqa: F811
    emulator.emulator_set_capability(capability)
    for shape in ("one cluster, both ways", "long columns"):
        rest, values = _args(variant, SHAPES[shape]), _random(SHAPES[shape])
        upstream = _upstream(variant, values, rest)
        for corr in list(_layouts(values).values())[:2]:
            runs = []
            for seed in (0, 1, 2):
                emulator.emulator_set_order(seed)
                results, grad = _call(variant, True, corr, rest, upstream)
                runs.append([*results, grad])
            assert all(torch.equal(a, b) for run in runs[1:] for a, b in zip(runs[0], run, strict=True))


@pytest.mark.parametrize("capability", [90, 80])
@pytest.mark.parametrize("variant", VARIANTS)
def test_ties_and_excluded_entries_across_blocks(variant, capability, emulator):  # noqa: F811
    """Equal entries in several blocks of a cluster: the lowest index. Whole strips, ranges, rows, columns of -inf."""
    emulator.emulator_set_capability(capability)
    shape = SHAPES["one cluster, both ways"]
    rest, excluded = _args(variant, shape), _random(shape)
    excluded[:, :130] = excluded[:, :, :100] = excluded[:, 200, :] = excluded[:, :, 255] = -torch.inf
    for values in (torch.randint(0, 3, (1, 256, 256)).float(), torch.ones(1, 256, 256), excluded):
        for name, corr in list(_layouts(values).items())[:2]:
            _compare(variant, corr, values, rest, _upstream(variant, values, rest), name)
