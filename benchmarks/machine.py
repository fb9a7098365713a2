"""What a result was measured on: written into every result file, and the name of its folder."""

from __future__ import annotations

import functools
import math
import platform
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent


def cpu_name() -> str:
    """Model of the CPU as the system reports it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def commit() -> str:
    """Short hash of the checkout, with "+" where it has uncommitted changes; "unknown" outside a checkout."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.strip()  # fmt: skip

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def caches() -> dict[str, int]:
    """Bytes of the caches that an input may still lie in from the call before: the GPU's L2, or the CPU's L2 and L3."""
    if torch.cuda.is_available():
        return {"L2": torch.cuda.get_device_properties(0).L2_cache_size}
    found = {}
    for folder in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            level, size = ((folder / name).read_text().strip() for name in ("level", "size"))
        except OSError:
            continue
        if level in "23" and size.endswith("K"):
            found[f"L{level}"] = int(size[:-1]) * 1024
    return found


@functools.cache
def _copy_rate(elements: int, device: str) -> float:
    a = torch.ones(elements, device=device)
    b = torch.empty_like(a)
    return 2 * a.nbytes / _fastest(lambda: b.copy_(a))


def copy_rate(moved: float, device: torch.device) -> float:
    """Bytes a second, read and written, of a copy that moves about ``moved`` bytes in all, back to back: what fits the
    caches is copied there. Measured once a power of two."""
    elements = 2 ** round(math.log2(max(moved, 2**15) / 8))
    return _copy_rate(min(elements, 2**28 if device.type == "cuda" else 2**26), device.type)


def ceilings() -> dict[str, str]:
    """What the machine reaches on a plain copy that no cache holds (bytes read and written a second) and on a matrix
    product, measured."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found = {"ceiling_bytes": copy_rate(2**31 if device.type == "cuda" else 2**28, device)}
    n = 8192 if device.type == "cuda" else 1024
    m = torch.randn(n, n, device=device)
    before = torch.get_float32_matmul_precision()
    for name in ("fp32", "tf32", "bf16") if device.type == "cuda" else ("fp32", "bf16"):
        torch.set_float32_matmul_precision("high" if name == "tf32" else "highest")
        matrix = m.bfloat16() if name == "bf16" else m
        found[f"ceiling_{name}_flops"] = 2 * n**3 / _fastest(lambda matrix=matrix: matrix @ matrix)
    torch.set_float32_matmul_precision(before)
    return {name: f"{value:.4g}" for name, value in found.items()}


def _fastest(function: Callable[[], object]) -> float:
    """Seconds a call in the fastest of ten rounds, each of a millisecond at least."""

    def seconds(calls: int) -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(calls):
            function()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return (time.perf_counter() - start) / calls

    seconds(1)
    calls = max(1, math.ceil(1e-3 / max(seconds(1), 1e-9)))
    return min(seconds(calls) for _ in range(10))


def describe() -> dict[str, str]:
    """Device, versions and commit."""
    from semimatch_kernels.info import versions

    known = versions()
    return {
        "cpu": cpu_name(),
        "threads": str(torch.get_num_threads()),
        "gpu": known["CUDA devices"],
        "python": known["python"],
        "torch": known["torch"],
        "triton": known["triton"],
        "caches": ", ".join(f"{name} {size / 2**20:g} MiB" for name, size in caches().items()) or "unknown",
        "commit": commit(),
    }


def results_folder() -> Path:
    """``benchmarks/results/<GPU or CPU>``, made."""
    name = torch.cuda.get_device_name(0) if torch.cuda.is_available() else cpu_name()
    folder = ROOT / "benchmarks" / "results" / re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    folder.mkdir(parents=True, exist_ok=True)
    return folder
