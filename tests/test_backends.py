"""Choice of the backend, its reasons, and the report."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

import semimatch_kernels as smk
from semimatch_kernels import _native, info, library, schemas
from semimatch_kernels.backends import BACKENDS, BEHIND, OPS, UNMEASURED, choose, order
from semimatch_kernels.measured import MEASURED


def test_every_public_function_takes_a_backend_and_every_op_is_listed():
    import inspect

    functions = {name for name in smk.__all__ if inspect.isfunction(getattr(smk, name))}
    functions -= {"backends", "cpu_cache", "dash_threshold"}  # no ops
    assert functions == {name for name in OPS if " " not in name}  # "soft_argmax with a window" is a case of one
    for name in functions:
        assert "backend" in inspect.signature(getattr(smk, name)).parameters, name


def test_each_no_has_a_reason():
    corr = torch.zeros(1, 4, 4)
    for op in OPS:
        table = smk.backends(op, corr)
        assert list(table) == list(BACKENDS)
        assert table["reference"] is None
        for name in ("cpu", "triton", "cuda"):
            if name not in OPS[op]:
                why = " yet" if BEHIND[op] else ": it is made of PyTorch's own ops"
                assert table[name] == f"{op} has no {name} implementation{why}"
    assert "tensors are on cpu" in smk.backends("match", corr)["cuda"] or library.CUDA_REASON is not None


def test_an_explicit_backend_never_falls_back():
    with pytest.raises(smk.BackendError, match="cannot run mutual_mask here: mutual_mask has no triton"):
        smk.mutual_mask(torch.zeros(1, 4, 4), backend="triton")
    with pytest.raises(smk.BackendError, match="backend 'cuda' cannot run match here"):
        smk.match(torch.zeros(1, 4, 4), (2, 2), backend="cuda")


def test_auto_prefers_the_compiled_kernels(monkeypatch):
    corr = torch.zeros(1, 4, 4)
    assert choose("mutual_mask", "auto", corr) == "reference"
    expected = "cpu" if library.CPU_REASON is None else "reference"
    assert choose("match", "auto", corr) == expected
    monkeypatch.setattr(library, "CPU_REASON", "not built")
    assert choose("match", "auto", corr) == "reference"


def test_auto_follows_what_was_measured(monkeypatch):
    module = sys.modules[choose.__module__]  # `smk.backends` is the function
    corr = torch.zeros(1, 4, 4)
    monkeypatch.setattr(module, "MEASURED", {"cpu": {"match": {"reference": 1.0, "cpu": 2.0}}})
    assert choose("match", "auto", corr) == choose("softmax_entropy", "auto", corr) == "reference"
    monkeypatch.setattr(module, "MEASURED", {"cpu": {"match": {"triton": 1.0, "reference": 2.0}}})
    assert choose("match", "auto", corr) == ("triton" if library.TRITON_INTERPRET else "reference")
    assert order("match", "cuda") == ("triton", "cuda") and order("mutual_mask", "cpu") == ("cpu",)


def test_what_was_measured_is_of_the_ops_and_backends_that_there_are():
    for device, ops in MEASURED.items():
        for op, times in ops.items():
            assert device in UNMEASURED and set(times) <= {"reference", *schemas.OPS[op].backends}
            assert list(times.values()) == sorted(times.values()) and min(times.values()) >= 1


@pytest.mark.parametrize(
    ("value", "expected"), [("reference", "reference\n"), ("numpy", "SEMIMATCH_BACKEND: expected auto")]
)
def test_the_environment_sets_the_default(value, expected):
    code = "import torch; from semimatch_kernels.backends import choose; print(choose('match', None, torch.ones(1)))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"SEMIMATCH_BACKEND": value, "PATH": ""},
        capture_output=True,
        text=True,
    )
    assert expected in done.stdout + done.stderr


def test_info_reports_every_op_and_backend(capsys):
    info.main()
    text = capsys.readouterr().out
    for op in OPS:
        assert op in text
    assert "why not:" in text and "torch" in text and "auto on cuda" in text
    assert "2.0x: twice as fast as the reference" in text


def test_info_names_make_setup_beside_a_remedy_with_pip(monkeypatch):
    reason = "not built: no C++ compiler; remedy: install g++, then run `pip install -e . --no-build-isolation` again"
    monkeypatch.setattr(library, "CPU_REASON", reason)
    assert info.table().endswith(f"  {info.SETUP}") and "`make setup`" in info.SETUP
    for name in ("CPU_REASON", "CUDA_REASON"):
        monkeypatch.setattr(library, name, "not built: the native modules are built on Linux only")
    assert info.SETUP not in info.table()


def test_a_module_that_is_not_built_names_both_ways_to_build_it(tmp_path, monkeypatch):
    monkeypatch.setattr(_native, "_FOLDER", tmp_path)
    both = "remedy: rebuild with `pip install -e . --no-build-isolation`, or with `make setup` in a clone"
    assert _native._why_not_built("_C") == f"not built: the build has not run yet; {both}"
    (tmp_path / "_native_build.json").write_text('{"semimatch_kernels._C": null}')
    assert _native._why_not_built("_C") == f"built, but its file is gone; {both}"


def test_the_order_that_the_benchmark_writes(tmp_path):
    """Means over the groups that have more than one of ours, forward and backward together; others do not count."""
    pytest.importorskip("pytest_benchmark")
    from benchmarks.auto import orders, render
    from benchmarks.results_file import Results

    def entry(op, shape, phase, peer, median):
        return {"op": op, "shape": shape, "dtype": "fp32", "phase": phase, "peer": peer, "median": median}

    entries = [
        entry("match", "small", "forward+backward", "ours: cpu", 2.0),
        entry("match", "small", "forward+backward", "ours: reference", 1.0),
        entry("match_both", "large", "forward+backward", "ours: cpu", 1.0),
        entry("match_both", "large", "forward+backward", "ours: reference", 32.0),
        entry("match", "small", "forward", "ours: cpu", 1.0),
        entry("match", "small", "forward+backward", "eager", 0.1),
        entry("correlation", "small", "forward", "ours: cpu", 1.0),
    ]
    found = orders([Results({"gpu": "none visible"}, entries, [])])
    assert found == {"cpu": {"match": {"cpu": 1.4, "reference": 5.7}}}
    (tmp_path / "table.py").write_text(render(found))
    scope: dict = {}
    exec((tmp_path / "table.py").read_text(), scope)
    assert scope["MEASURED"] == found
    longest = {b: 123.4 for b in BACKENDS}
    assert max(map(len, render({"cuda": {"masked_contrastive_loss_features": longest}}).splitlines())) <= 120
