"""``python -m benchmarks.run``: measure the kernels, and make tables and plots of the result; ``make bench``.

Arguments go to pytest, for example ``-k match --seconds 1`` or ``--compile none``. An earlier result is replaced
by a whole one alone: it stays as it is where the run fails or is interrupted.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from . import machine


def command(target: Path, *arguments: str) -> list[str]:
    """The command that measures into ``target``."""
    measure = [sys.executable, "-m", "pytest", "benchmarks/test_kernels.py", "-q", "-p", "no:xdist"]
    return [*measure, "--benchmark-quiet", f"--benchmark-json={target}", *arguments]


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmarks in a process of their own, then the report; the exit status of what failed, else 0."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--to", type=Path, metavar="FILE", help="result file (default results/<machine>/kernels.json)")
    options, for_pytest = parser.parse_known_args(arguments)
    target = (options.to or machine.results_folder() / "kernels.json").resolve()
    if not target.parent.is_dir():
        parser.error(f"--to: no folder {target.parent}")
    part = target.with_name(f"{target.name}.part")
    part.unlink(missing_ok=True)
    try:
        status = subprocess.run(command(part, *for_pytest), cwd=machine.ROOT).returncode
    except KeyboardInterrupt:
        status = 130
    if status or not part.exists():
        kept = f"; what was measured is in {part}" if part.exists() else ""
        print(f"\nbenchmarks.run: no result (exit status {status}), {target} is as it was{kept}", file=sys.stderr)
        return status or 1
    part.replace(target)
    return subprocess.run([sys.executable, "-m", "benchmarks.report", str(target)], cwd=machine.ROOT).returncode


if __name__ == "__main__":
    sys.exit(main())
