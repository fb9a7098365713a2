"""Every op against eager PyTorch, torch.compile and what else computes the same: ``make bench``.

A group (op, shape, dtype) is measured a phase at once, its peers taking turns; each peer is one entry of
pytest-benchmark's JSON, its `stats` the time with warm caches, the rest in `extra_info`.
"""

from __future__ import annotations

import functools
import statistics
import time

import pytest
import torch

from .costs import cost
from .groups import Group, groups
from .measure import Phase, Session, peers

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# Names only: which compile modes are wanted is known when the tests run.
ENTRIES = [
    pytest.param(group, phase, peer, id=f"{group}-{phase}-{peer}".replace(" ", ""))
    for group in groups(DEVICE.type == "cuda")
    for phase in group.phases
    for peer in peers(group, phase, DEVICE, "max")
]
STARTED = time.monotonic()


# One at a time: inputs of the group before would take the memory of this one.
@functools.lru_cache(maxsize=1)
def _session(group: Group, compiled: str) -> Session:
    return Session(group, DEVICE, compiled)


@functools.lru_cache(maxsize=1)
def _measured(group: Group, phase: str, compiled: str, seconds: float, budget: float) -> Phase | None:
    """None where the time of the whole run is used up."""
    if time.monotonic() - STARTED > budget:
        return None
    return _session(group, compiled).measure(phase, cost(group.subject.name, phase, group.shape).bytes, seconds)


def _quartiles(values: list[float]) -> dict[str, float]:
    q1, median, q3 = statistics.quantiles(values, n=4)
    return {"median": median, "q1": q1, "q3": q3}


@pytest.mark.parametrize(("group", "phase", "peer"), ENTRIES)
def test_kernel(request, not_measured, group, phase, peer):
    option = request.config.getoption
    found = _measured(group, phase, option("--compile"), option("--seconds"), option("--budget"))
    about = {"op": group.subject.name, "shape": group.shape_name, "dtype": group.dtype_name, "phase": phase}
    if found is None:
        not_measured.append(about | {"peer": peer, "reason": "the time of the run was used up"})
        pytest.skip("--budget")
    if peer in found.left_out:
        not_measured.append(about | {"peer": peer, "reason": found.left_out[peer]})
        pytest.skip(found.left_out[peer])
    if peer not in found.peers:
        pytest.skip("--compile")
    measured, least, shape = found.peers[peer], cost(group.subject.name, phase, group.shape), group.shape
    rounds = measured.timing.rounds
    benchmark = request.getfixturevalue("benchmark")  # not before: it complains of a test that was skipped
    benchmark.group = f"{group} {phase}"
    benchmark.extra_info |= about | {
        "batch": shape.batch, "cells": shape.cells, "channels": list(shape.channels), "peer": peer,
        "part": measured.part, "bytes": least.bytes, "flops": least.flops, "copy": found.copy,
        "memory": measured.memory, "not_captured": measured.timing.not_captured,
    }  # fmt: skip
    benchmark.extra_info |= {kind: _quartiles(rounds[kind]) for kind in ("cold", "wall") if kind in rounds}
    # The rounds were timed already, in turn with the other peers: pytest-benchmark stores them.
    benchmark._mode = "interleaved"
    stats = benchmark._make_stats(1)
    for sample in rounds["warm"]:
        stats.update(sample)
