"""What a result was measured on: written into every result file, and the name of its folder."""

from __future__ import annotations

import platform
import re
import subprocess
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
