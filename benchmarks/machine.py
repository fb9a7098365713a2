"""What a result was measured on: written into every result file, and the name of its folder."""

from __future__ import annotations

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


def ceilings() -> dict[str, str]:
    """What the machine reaches on a plain copy (bytes read and written a second) and on a matrix product, measured."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    a = torch.randn(2**28 if device == "cuda" else 2**25, device=device)
    b = torch.empty_like(a)
    n = 8192 if device == "cuda" else 1024
    m = torch.randn(n, n, device=device)
    found = {"ceiling_bytes": 2 * a.nbytes / _fastest(lambda: b.copy_(a))}
    found["ceiling_fp32_flops"] = 2 * n**3 / _fastest(lambda: m @ m)
    if device == "cuda":
        half = m.bfloat16()
        found["ceiling_bf16_flops"] = 2 * n**3 / _fastest(lambda: half @ half)
    return {name: f"{value:.4g}" for name, value in found.items()}


def _fastest(function: Callable[[], object]) -> float:
    """Seconds of the fastest of ten calls."""

    def wait() -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    times = []
    for _ in range(10):
        wait()
        start = time.perf_counter()
        function()
        wait()
        times.append(time.perf_counter() - start)
    return min(times)


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
        "commit": commit(),
    }


def results_folder() -> Path:
    """``benchmarks/results/<GPU or CPU>``, made."""
    name = torch.cuda.get_device_name(0) if torch.cuda.is_available() else cpu_name()
    folder = ROOT / "benchmarks" / "results" / re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    folder.mkdir(parents=True, exist_ok=True)
    return folder
