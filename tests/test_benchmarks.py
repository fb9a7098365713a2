"""The benchmarks: what is measured, that nothing wrong gets a number, and what is made of the numbers."""

from __future__ import annotations

import itertools
import json
import math
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks import compare, costs, groups, machine, measure, memory, report, results_file, run, subjects, timing
from benchmarks.elsewhere import Peer
from semimatch_kernels.backends import OPS

CPU = torch.device("cpu")
SMALL = costs.Shape(2, 16, (4, 3))


def _subject(name):
    return next(s for s in subjects.SUBJECTS if s.name == name)


def _group(name, dtype="fp32", shape=SMALL):
    return groups.Group(_subject(name), "small", shape, dtype)


# --- what is measured


def test_every_public_op_is_measured_or_left_out_for_a_reason():
    measured = {s.op for s in subjects.SUBJECTS}
    assert measured | set(subjects.LEFT_OUT) == set(OPS)
    assert not measured & set(subjects.LEFT_OUT)
    assert set(groups.GOALS) <= {s.name for s in subjects.SUBJECTS}


@pytest.mark.parametrize("cuda", [False, True])
def test_groups(cuda):
    found = groups.groups(cuda)
    assert len({str(g) for g in found}) == len(found)
    assert {g.subject.name for g in found} == {s.name for s in subjects.SUBJECTS}
    assert all(g.shape.width == g.dtype.itemsize for g in found)
    if cuda:
        goals = [g.goal for g in found]
        assert sum(goals) == len(groups.GOALS) and all(goals[: len(groups.GOALS)])
        assert {g.dtype_name for g in found if g.subject.product} == {"fp32", "tf32", "bf16"}


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("subject", subjects.SUBJECTS, ids=lambda s: s.name)
def test_every_peer_that_runs_here_passes_the_gate_and_is_timed(subject, dtype):
    """Eager, other libraries and our backends, in every phase of a small group."""
    group = groups.Group(subject, "small", costs.Shape(1, 16, (8, 4), 4), dtype)
    session = measure.Session(group, CPU, "none")
    for phase in group.phases:
        least = costs.cost(subject.name, phase, group.shape)
        assert least.bytes > 0
        found = session.measure(phase, least.bytes, 0.0)
        named = measure.peers(group, phase, CPU, "none")
        assert set(found.peers) | set(found.left_out) == set(named)
        assert {"eager", "ours: reference"} <= set(found.peers) and found.copy > 1e6
        assert all(len(m.timing.rounds["warm"]) >= timing.ROUNDS for m in found.peers.values())
        if dtype == "fp32":
            assert not found.left_out


def test_a_new_backend_is_a_row(monkeypatch):
    group = _group("soft_argmax_window")
    no = "it is not built"
    monkeypatch.setattr(measure, "reason_against", lambda op, backend, *_: None if backend == "reference" else no)
    assert measure.OURS + "cpu" not in measure.peers(group, "forward", CPU, "none")
    monkeypatch.setattr(measure, "reason_against", lambda op, backend, device, dtype: None)
    assert {measure.OURS + "cpu", measure.OURS + "cuda"} <= set(measure.peers(group, "forward", CPU, "none"))
    assert measure.OURS + "triton" not in measure.peers(group, "forward", CPU, "none")  # the interpreter


def test_compile_peers():
    group, shape = _group("match"), costs.Shape(1, 1024, (4,))
    assert not measure.compile_modes(group, CPU, "forward", "goals")  # one compilation a group on the CPU
    without_kernel = groups.Group(_subject("correlation"), "n1024", shape, "fp32")
    assert set(measure.compile_modes(without_kernel, CPU, "backward", "goals")) == {"compile"}
    labels = groups.Group(_subject("pseudo_labels"), "n1024", shape, "fp32")
    assert set(measure.compile_modes(labels, CPU, "forward", "default")) == {"compile"}
    assert not measure.compile_modes(without_kernel, CPU, "backward", "none")
    cuda = torch.device("cuda")
    goal = groups.Group(_subject("match"), "n4096", SMALL, "fp32")
    asked = {"none": 0, "default": 1, "goals": 2, "max": 2}
    assert {name: len(measure.compile_modes(goal, cuda, "forward", name)) for name in asked} == asked
    assert len(measure.compile_modes(group, cuda, "forward", "goals")) == 1


# --- the gate


def test_a_wrong_kernel_of_ours_is_an_error_and_a_wrong_peer_is_left_out(monkeypatch):
    group = _group("match")

    def wrong(corr, backend="reference"):
        coords, *rest = group.subject.plain(corr)
        return (coords + 1e-4, *rest)

    table = {"eager": Peer(group.subject.plain), "theirs": Peer(wrong), "breaks": Peer(lambda c: 1 / 0)}
    monkeypatch.setattr(measure, "peers", lambda *a: table)
    found = measure.Session(group, CPU, "none").measure("forward", 1e5, 0.0)
    assert set(found.peers) == {"eager"}
    assert "result 0: error 1.00e-04" in found.left_out["theirs"] and "ZeroDivisionError" in found.left_out["breaks"]
    table[measure.OURS + "cpu"] = Peer(wrong)
    with pytest.raises(AssertionError, match=r"match-small-fp32, ours: cpu: result 0: error 1.00e-04"):
        measure.Session(group, CPU, "none").measure("forward", 1e5, 0.0)


def test_a_wrong_gradient_and_a_nan_do_not_pass():
    group = _group("match")

    def detached(corr):
        coords, *rest = group.subject.plain(corr)
        return (coords + (corr.sum() - corr.sum().detach()), *rest)

    inputs = group.subject.inputs(SMALL, CPU, torch.float32)
    gate = measure.Gate(group, inputs, 1)
    assert gate.reason_against(Peer(group.subject.plain)) is None
    assert gate.reason_against(Peer(detached)).startswith("result 4")
    assert gate.reason_against(Peer(lambda c: [t * torch.nan for t in timing.floats(group.subject.plain(c))]))
    assert "results and gradients" in gate.reason_against(Peer(lambda c: group.subject.plain(c)[:2]))


def test_a_part_is_compared_with_that_part():
    gate = measure.Gate(group := _group("match"), group.subject.inputs(SMALL, CPU, torch.float32), 1)
    coords = Peer(lambda c: group.subject.plain(c)[0], part=lambda c: group.subject.plain(c)[0])
    assert gate.reason_against(coords) is None
    assert gate.reason_against(Peer(coords.call)) is not None


def test_a_matrix_too_large_for_float64_is_judged_by_the_reference(monkeypatch):
    monkeypatch.setattr(measure, "LARGEST_TRUTH", 1)
    group = _group("match_features")
    gate = measure.Gate(group, group.subject.inputs(SMALL, CPU, torch.float32), 2)
    assert gate.reason_against(Peer(lambda s, t: group.subject.ours(s, t, backend="reference"))) is None
    assert list(gate._known) == [gate._reference]


# --- times, memory, the machine


def test_interleaved_rounds_and_phases():
    calls = []
    steps = {"a": lambda: calls.append("a"), "b": lambda: (calls.append("b"), time.sleep(2 * timing.LONG))}
    found = timing.interleaved(steps, 0.0)
    assert len(found["a"].rounds["warm"]) == len(found["b"].rounds["warm"]) == timing.ROUNDS
    assert min(found["b"].rounds["warm"]) >= 2 * timing.LONG > min(found["a"].rounds["warm"])
    turns = "".join(name for name, _ in itertools.groupby(calls))
    assert turns == "ab" * (1 + timing.ROUNDS) and calls.count("b") == 2 + timing.ROUNDS  # the first turn warms up
    x = torch.randn(3)
    for phase, kind in (("forward", torch.Tensor), ("backward", tuple), ("forward+backward", tuple)):
        call = timing.step(lambda v: v * v, [x], 1, phase)
        assert isinstance(call(), kind) and isinstance(call(), kind)  # again and again
    assert not timing.step(lambda v: v * v, [x.requires_grad_()], 1, "forward")().requires_grad


def test_phases_add_up():
    for subject in subjects.SUBJECTS:
        parts = [costs.cost(subject.name, phase, SMALL) for phase in groups.PHASES]
        assert parts[0] + parts[1] == parts[2]


@pytest.mark.skipif(memory.peak(lambda: None, CPU) is None, reason="this system does not tell")
def test_peak_memory():
    size = 2**25
    assert memory.peak(lambda: torch.ones(size // 4), CPU) == pytest.approx(size, rel=0.05)

    def twice():
        return [torch.ones(size // 4).sum(), torch.ones(size // 4)]  # the first is gone when the second is made

    assert memory.peak(twice, CPU) == pytest.approx(size, rel=0.05)
    assert memory.peak(lambda: torch.ones(9), CPU) < size // 8  # not what was before
    kept = torch.ones(size // 4)
    assert memory.peak(lambda: kept.sum(), CPU) < size // 8


def test_copy_rate_is_of_the_size_asked_for(monkeypatch):
    asked = []
    monkeypatch.setattr(machine, "_copy_rate", lambda elements, device: asked.append(elements) or 1.0)
    machine.copy_rate(8 * 2**20, CPU)
    machine.copy_rate(1, CPU)
    machine.copy_rate(1e15, CPU)
    assert asked == [2**20, 2**12, 2**26]


def test_tf32_is_torchs_own_setting():
    before = torch.get_float32_matmul_precision()
    with groups.precision("tf32"):
        assert torch.get_float32_matmul_precision() == "high"
    with groups.precision("fp32"):
        assert torch.get_float32_matmul_precision() == "highest"
    assert torch.get_float32_matmul_precision() == before


# --- result files


def _entry(peer, median, op="match", cells=256, **more):
    return {
        "op": op, "shape": f"n{cells}", "dtype": "fp32", "phase": "forward+backward", "batch": 2, "cells": cells,
        "channels": [256, 1024, 1024], "peer": peer, "part": False, "bytes": 1e6, "flops": 1e6, "copy": 2e10,
        "memory": 2**20, "not_captured": None, "median": median, "q1": median * 0.95, "q3": median * 1.05, "rounds": 9,
    } | more  # fmt: skip


def _file(path: Path, entries, gpu="none visible", **about) -> Path:
    """As pytest-benchmark writes it."""
    stats = ("median", "q1", "q3", "rounds")
    content = {
        "machine_info": {"semimatch": {"cpu": "x", "threads": "1", "gpu": gpu, "ceiling_bytes": "1e10",
                                       "ceiling_fp32_flops": "1e11"} | about},
        "benchmarks": [
            {"extra_info": {k: v for k, v in e.items() if k not in stats}, "stats": {k: e[k] for k in stats}}
            for e in entries
        ],
        "not_measured": [{"op": "match", "shape": "n1", "dtype": "fp32", "phase": "forward", "peer": "theirs",
                          "reason": "out of memory"}],
    }  # fmt: skip
    path.write_text(json.dumps(content))
    return path


def test_the_page(tmp_path):
    cold = {"cold": {"median": 5e-3, "q1": 5e-3, "q3": 5e-3}, "wall": {"median": 6e-3, "q1": 6e-3, "q3": 6e-3}}
    entries = [
        _entry("eager", 4e-3),
        _entry("ours: cpu", 2e-3),
        _entry("theirs", 1e-3, **cold, not_captured="it syncs"),
        _entry("bmm", 1e-4, part=True),
        _entry("eager", 1e-3, op="correlation"),
        _entry("ours: cpu", 5e-4, op="correlation"),
    ]
    text = report.report(results_file.load(_file(tmp_path / "r.json", entries)))
    losing = text.partition("not the fastest")[2].partition("## ")[0]
    assert "| match, n256 (B=2, N=256), fp32, forward+backward | theirs | 1 | ours: cpu | 2 | 2.00 |" in losing
    assert "correlation" not in losing and "bmm" not in losing
    assert "match, n1, fp32: theirs: out of memory" in text
    assert "*compile* is torch.compile of the eager definition; on the CPU" in text  # why most groups have no such row
    assert "### correlation, n256 (B=2, N=256, C=256+2x1024), fp32, forward+backward" in text
    # 1e6 bytes at 2e10 a second are 50 us, of 2 ms 2.5 %; the flops are cheaper
    assert "| ours: cpu | 2 | 1.9-2.1 |  |  | 2.00 | 0.5 | 0.5 | 2% | 20 | 1 MiB |" in text
    assert "| theirs | 1 (no graph) | 0.95-1.05 | 5 | 6 | 4.00 |" in text and "bmm (part)" in text
    assert "cold" not in text.partition("### correlation")[2]


def test_plots(tmp_path):
    pytest.importorskip("matplotlib")
    entries = [_entry(p, cells * 1e-5, cells=cells, memory=None if p == "eager" else 9) for p in ("eager", "ours: cpu")
               for cells in (256, 1024)]  # fmt: skip
    path = _file(tmp_path / "r.json", [*entries, _entry("eager", 1.0, op="mutual_filter")])
    assert [p.name for p in report.write(path)] == ["r.md", "match-fp32.png"]
    assert (tmp_path / "match-fp32.png").stat().st_size > 1000
    of_none = [_entry("ours: cpu", cells * 1e-5, cells=cells, memory=None) for cells in (256, 1024)]
    assert len(report.write(_file(tmp_path / "no memory.json", of_none))) == 2


def test_the_committed_results_can_be_read():
    found = list((machine.ROOT / "benchmarks" / "results").glob("*/kernels.json"))
    assert found
    for path in found:
        results = results_file.load(path)
        assert results.entries and results.ceilings["bytes"] > 1e8
        assert all(math.isfinite(results_file.roofline(e, results.ceilings)) for e in results.entries)


def test_compare(tmp_path, capsys):
    old = _file(tmp_path / "old.json", [_entry("ours: cpu", 1e-3), _entry("eager", 1e-3)])
    same = _file(tmp_path / "same.json", [_entry("ours: cpu", 1.05e-3), _entry("eager", 3e-3)])
    assert compare.main([str(old), str(same)]) == 0
    assert "| 1 | 3 | 3.00 | 2.71-3.32 | slower |" in capsys.readouterr().out  # a peer's matter
    slow = _file(tmp_path / "slow.json", [_entry("ours: cpu", 1.5e-3), _entry("eager", 1e-3)])
    assert compare.main([str(old), str(slow)]) == 1
    assert compare.main([str(old), str(slow), "--tolerance", "0.6"]) == 0
    noisy = _file(tmp_path / "noisy.json", [_entry("ours: cpu", 1.5e-3, q1=0.9e-3)])
    assert compare.main([str(old), str(noisy)]) == 0  # within the spread
    assert compare.main([str(old), str(_file(tmp_path / "gone.json", [_entry("eager", 1e-3)]))]) == 1
    assert "ours: cpu" in capsys.readouterr().out.partition("Slower or gone:")[2]
    other = _file(tmp_path / "other.json", [_entry("ours: cpu", 1e-3), _entry("eager", 1e-3)], gpu="H100")
    assert compare.main([str(old), str(other)]) == 2
    assert "gpu: none visible and H100" in capsys.readouterr().err
    assert compare.main([str(old), str(other), "--across-machines"]) == 0


@pytest.mark.parametrize("text", [None, "", "{", "[]", '{"rows": []}'])
def test_what_is_no_result_is_no_comparison(tmp_path, capsys, monkeypatch, text):
    """Not the exit status of "slower", and the message names the file."""
    good, bad = _file(tmp_path / "good.json", [_entry("ours: cpu", 1e-3)]), tmp_path / "bad.json"
    if text is not None:
        bad.write_text(text)
    monkeypatch.setattr(sys, "argv", ["report", str(bad)])
    for call in (lambda: compare.main([str(good), str(bad)]), report.main):
        with pytest.raises(SystemExit) as ended:
            call()
        assert ended.value.code == 2 and f"{bad}: no " in capsys.readouterr().err


@pytest.mark.parametrize("status", [0, 1, "interrupted", "nothing"])
def test_an_earlier_result_is_replaced_by_a_whole_one_alone(tmp_path, capfd, monkeypatch, status):
    earlier = _file(tmp_path / "r.json", [_entry("eager", 1e-3)])
    before = earlier.read_text()
    whole = _file(tmp_path / "new.json", [_entry("eager", 2e-3)])
    code = "import shutil, sys; shutil.copy(*sys.argv[1:3]); sys.exit(int(sys.argv[3]))"

    def command(target, *arguments):
        assert arguments == ("-k", "a and b") and target != earlier
        if status == "interrupted":
            raise KeyboardInterrupt
        if status == "nothing":
            return [sys.executable, "-c", "pass"]
        return [sys.executable, "-c", code, str(whole), str(target), str(status)]

    monkeypatch.setattr(run, "command", command)
    ended = run.main(["-k", "a and b", "--to", str(earlier)])
    out, err = capfd.readouterr()
    if status == 0:
        assert ended == 0 and earlier.read_text() == whole.read_text() and "# Kernels" in out
        assert not list(tmp_path.glob("*.part"))
    else:
        assert ended == {"interrupted": 130}.get(status, 1)
        assert earlier.read_text() == before and f"{earlier} is as it was" in err
        assert ("what was measured is in" in err) == (status == 1)


def test_a_result_file_needs_a_folder(tmp_path, capsys):
    with pytest.raises(SystemExit):
        run.main(["--to", str(tmp_path / "none" / "r.json")])
    assert "--to: no folder" in capsys.readouterr().err
