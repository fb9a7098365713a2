"""``python -m benchmarks.run``: measure the kernels, and make tables and plots of the result; ``make bench``.

Arguments go to pytest, for example ``-k match --seconds 1`` or ``--no-compile``.
"""

from __future__ import annotations

import subprocess
import sys

from . import machine


def main() -> None:
    """Run the benchmarks in a process of their own, then the report."""
    target = machine.results_folder() / "kernels.json"
    measure = [
        sys.executable,
        "-m",
        "pytest",
        "benchmarks/test_kernels.py",
        "-q",
        "-p",
        "no:xdist",
        "--benchmark-quiet",
    ]
    subprocess.run([*measure, f"--benchmark-json={target}", *sys.argv[1:]], cwd=machine.ROOT, check=True)
    subprocess.run([sys.executable, "-m", "benchmarks.report", str(target)], cwd=machine.ROOT, check=True)


if __name__ == "__main__":
    main()
