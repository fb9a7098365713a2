"""The emulator of CUDA itself (tests/emulator): it runs right kernels, and finds the mistakes of wrong ones. With the
address sanitizer it finds accesses beyond a tensor or a shared array, of which the library's kernels make none."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest
from emulator.build import NoCompiler, build

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def library():
    try:
        loaded = ctypes.CDLL(str(build()))
    except NoCompiler as reason:
        pytest.skip(f"the emulator of CUDA cannot be built: {reason}")
    loaded.emulator_fault.restype = ctypes.c_char_p
    yield loaded
    loaded.emulator_set_order(0)


def _run(library, name: str, order: int = 0) -> tuple[str, list[float]]:
    out = (ctypes.c_float * 256)()
    library.emulator_set_order(order)
    return library.emulator_fault(name.encode(), out).decode(), list(out)


@pytest.mark.parametrize("order", [0, 1, 2])
def test_right_kernels_run_in_any_order(library, order):
    assert _run(library, "neighbours", order) == ("", [(i + 1) % 64 for i in range(64)] + [0] * 192)
    assert _run(library, "sum_of_warp", order)[1][:64] == [sum(range(32))] * 32 + [sum(range(32, 64))] * 32
    assert _run(library, "cluster", order) == ("", [float((i // 64 + 1) % 4) for i in range(256)])


@pytest.mark.parametrize("name", ["race", "cluster_race"])
def test_a_missing_barrier_shows_in_the_values(library, name):
    said, out = _run(library, name)
    assert said == "" and any(value != value for value in out)  # shared memory that nobody has written yet is NaN
    assert str(out) != str(_run(library, name, order=3)[1])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("one_leaves", "a block barrier at faults.cpp:.* is reached by 63 threads only"),
        ("two_places", "threads of a block meet at faults.cpp:.* and at faults.cpp:"),
        ("half_a_warp", "a warp barrier at faults.cpp:.* is reached by 16 threads only"),
        ("beyond_cluster", "the cluster has no block 2"),
        ("too_many_threads", "a block must have 1 to 32 whole warps"),
    ],
)
def test_a_mistake_is_named(library, name, message):
    with pytest.raises(RuntimeError, match=message):
        raise RuntimeError(_run(library, name)[0])
    assert _run(library, "neighbours")[0] == ""  # and the emulator goes on


SANITIZED = """
import ctypes, sys
from pathlib import Path
import torch
sys.path[:0] = [{root!r}, {root!r} + "/tests"]
library = Path({library!r})
if {fault!r}:
    ctypes.CDLL(str(library)).emulator_fault({fault!r}.encode(), (ctypes.c_float * 256)())
    sys.exit()
from emulator.build import load
loaded = load(library)
import test_cuda_ops as cases
for capability in (90, 80):
    loaded.emulator_set_capability(capability)
    for variant in cases.VARIANTS:
        for shape in ((2, (5, 7), (3, 23)), (1, (1, 1), (1, 1)), (1, (6, 12), (4, 8))):
            values, rest = cases._random(shape), cases._args(variant, shape)
            for corr in list(cases._layouts(values).values())[: 2 if shape[0] > 1 else 1]:
                cases._call(variant, True, corr, rest)
import test_cuda_features as features
for variant in features.VARIANTS:
    for shape in ((2, 5, (5, 7), (3, 23)), (1, 260, (1, 1), (1, 1))):
        rest = features._args(variant, shape)
        if rest[-1] is not torch.float64:  # this build has no double
            features._call(variant, True, features._features(shape), rest)
print("all ran")
"""


def _sanitized(library: Path, fault: str = "") -> subprocess.CompletedProcess:
    cxx = next(line.split(" = ")[1].split()[0] for line in (library.parent / "build.ninja").read_text().splitlines()
               if " = " in line)  # fmt: skip
    runtime = subprocess.check_output([cxx, "-print-file-name=libasan.so"], text=True).strip()
    program = SANITIZED.format(root=str(ROOT), library=str(library), fault=fault)
    options = {"LD_PRELOAD": runtime, "ASAN_OPTIONS": "detect_leaks=0", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", program]
    return subprocess.run(command, env={**os.environ, **options}, capture_output=True, text=True, timeout=600)


def test_no_access_beyond_tensors_and_shared_arrays():
    try:
        library = build(sanitize=True)
    except NoCompiler as reason:
        pytest.skip(f"the emulator of CUDA cannot be built: {reason}")
    except RuntimeError as error:
        if "asan" in str(error):
            pytest.skip("the compiler has no address sanitizer")
        raise
    found = _sanitized(library, "beyond_array")
    assert found.returncode != 0 and "AddressSanitizer" in found.stderr, found.stderr[-2000:]
    result = _sanitized(library)
    assert result.returncode == 0 and result.stdout.endswith("all ran\n"), result.stderr[-4000:]
