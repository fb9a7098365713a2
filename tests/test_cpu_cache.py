"""Memory of freed results of the C++ kernels: reused, limited, given back; whatever threads, forks and exits do."""

import gc
import multiprocessing
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

import semimatch_kernels as smk

pytestmark = pytest.mark.skipif(smk.backends("match")["cpu"] is not None, reason="the C++ kernels are not built")

MIB = 2**20


@pytest.fixture(autouse=True)
def empty():
    """Nothing kept before, the limit as it was after."""
    before = smk.cpu_cache()
    smk.cpu_cache(0)
    smk.cpu_cache(64)
    yield
    smk.cpu_cache(0)
    smk.cpu_cache(before)


def filtered(mib: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """A result of so many MiB."""
    return smk.mutual_filter(torch.ones(mib, 512, MIB // 512 // dtype.itemsize, dtype=dtype), backend="cpu")


def test_freed_memory_is_used_again():
    first = filtered(4)
    second = filtered(4)
    places = {first.data_ptr(), second.data_ptr()}
    assert len(places) == 2
    del first, second
    assert {t.data_ptr() for t in (filtered(4), filtered(4, torch.bfloat16))} <= places, "one after the other"
    held = [filtered(4), filtered(4), filtered(4)]
    assert len({t.data_ptr() for t in held} | places) == 3


def test_every_view_keeps_the_memory():
    part = filtered(2)[1, 3:5]
    other = filtered(2)
    assert part.untyped_storage().data_ptr() != other.data_ptr()
    assert (part == 1).all()


def test_another_size_does_not_get_it():
    result = filtered(4)
    place = result.data_ptr()
    del result
    assert filtered(2).data_ptr() != place


def test_small_results_are_ordinary():
    assert filtered(1).untyped_storage().resizable() is False
    assert smk.mutual_filter(torch.ones(1, 100, 100), backend="cpu").untyped_storage().resizable()


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc to see resident memory")
def test_limit():
    results = [filtered(16) for _ in range(8)]
    full = resident()
    del results
    assert 40 * MIB < full - resident() < 90 * MIB, "64 of the 128 MiB are kept"
    assert smk.cpu_cache(32) == 32 == smk.cpu_cache()
    assert 80 * MIB < full - resident() < 112 * MIB
    assert smk.cpu_cache(0) == 0
    assert full - resident() > 112 * MIB
    assert filtered(16).untyped_storage().resizable(), "the memory of results is PyTorch's"


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc to see resident memory")
def test_a_result_above_the_limit_is_not_kept_and_drives_nothing_out():
    gc.collect()  # what other tests have left is not to go in between
    large = filtered(96)
    full = resident()
    del (kept := [filtered(32)])[:]
    del large
    assert 48 * MIB < full - resident() < 80 * MIB, "32 MiB more are kept, 96 less are used"
    assert kept == []


OUT_OF_MEMORY = """
import resource
import torch
import semimatch_kernels as smk
def filtered(mib):
    return smk.mutual_filter(torch.ones(1).expand(mib, 512, 512), backend="cpu")
filtered(1)
most = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize() + (256 << 20)
resource.setrlimit(resource.RLIMIT_AS, (most, most))
results = [filtered(32) for _ in range(6)]  # 192 of the 256 MiB
del results
print(filtered(128).sum().item())
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc to see its memory")
def test_what_is_kept_is_given_back_before_memory_runs_out():
    done = run(OUT_OF_MEMORY, OMP_NUM_THREADS="1")
    assert done.stdout == f"{128 * MIB / 4}\n", done.stderr


def test_results_are_those_without():
    corr = torch.randn(4, 300, 500, requires_grad=True)
    expected, kept = [], []
    for limit, into in ((0, expected), (64, kept), (64, kept)):
        smk.cpu_cache(limit)
        loss = smk.mutual_filter(corr, backend="cpu").sum() + smk.match(corr, (15, 20), backend="cpu").entropy.sum()
        into.append(torch.autograd.grad(loss, corr)[0].clone())
    assert torch.equal(kept[0], expected[0]) and torch.equal(kept[1], expected[0])


def test_threads():
    wrong = []

    def work(value: int) -> None:
        for _ in range(20):
            result = smk.mutual_filter(torch.full((2, 512, 512), float(value)), backend="cpu")
            if not (result == value).all():
                wrong.append(value)

    threads = [threading.Thread(target=work, args=(i + 1,)) for i in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


def _in_child(kept: torch.Tensor, answers) -> None:
    torch.set_num_threads(1)  # the pool's threads are not there after a fork
    answers.put([float(kept.sum()), float(filtered(4).sum())])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_fork():
    kept = filtered(4)
    del (free := [filtered(4)])[:]
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    child = context.Process(target=_in_child, args=(kept, answers))
    child.start()
    child.join(60)
    assert child.exitcode == 0
    assert answers.get() == [float(MIB), float(MIB)]
    assert (kept == 1).all() and free == []


def run(code: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **environment}, timeout=120
    )


def test_a_result_may_outlive_everything():
    code = (
        "import torch, builtins, semimatch_kernels as smk\n"
        "builtins.kept = smk.mutual_filter(torch.ones(8, 512, 512), backend='cpu')"
    )
    done = run(code)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("value", "expected"), [("7", "7\n"), ("0", "0\n"), ("", "512\n"), ("x", "expected a whole"), ("-1", "got '-1'")]
)
def test_environment(value, expected):
    done = run("import semimatch_kernels as smk; print(smk.cpu_cache())", SEMIMATCH_CPU_CACHE_MB=value)
    assert expected == done.stdout if expected.endswith("\n") else expected in done.stderr


@pytest.mark.parametrize("value", [-1, 1.5, "3", True])
def test_bad_limit(value):
    with pytest.raises((TypeError, ValueError), match="mebibytes: expected"):
        smk.cpu_cache(value)
    assert smk.cpu_cache() == 64
