"""``python -m benchmarks.run``: measure the kernels, and make tables and plots of the result; ``make bench``.

Arguments go to pytest, for example ``-k match --seconds 1`` or ``--compile none``.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from . import machine


def command(target: Path, *arguments: str) -> list[str]:
    """The command that measures into ``target``."""
    measure = [sys.executable, "-m", "pytest", "benchmarks/test_kernels.py", "-q", "-p", "no:xdist"]
    return [*measure, "--benchmark-quiet", f"--benchmark-json={target}", *arguments]


def main() -> None:
    """Run the benchmarks in a process of their own, then the report."""
    target = machine.results_folder() / "kernels.json"
    subprocess.run(command(target, *sys.argv[1:]), cwd=machine.ROOT, check=True)
    subprocess.run([sys.executable, "-m", "benchmarks.report", str(target)], cwd=machine.ROOT, check=True)


if __name__ == "__main__":
    main()
