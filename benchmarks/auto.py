"""``python -m benchmarks.auto``: write the order in which ``backend="auto"`` tries backends, from the results measured.

Takes every ``results/*/kernels.json``: for each fused op and kind of device, how many times as long as the fastest of
ours each backend takes, the geometric mean over shapes and dtypes, forward and backward together where there is one.
Written to ``semimatch_kernels/measured.py``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections import defaultdict
from pathlib import Path

from semimatch_kernels import measured
from semimatch_kernels.backends import BEHIND

from .machine import ROOT
from .measure import OURS
from .results_file import Results, load, ours
from .subjects import SUBJECTS

TABLE = Path(measured.__file__)
Orders = dict[str, dict[str, dict[str, float]]]

FUSED = {s.name: BEHIND[s.op] for s in SUBJECTS}


def orders(results: list[Results]) -> Orders:
    """Device -> fused op -> backend -> times as long as the fastest, the fastest first."""
    ratios: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for result in results:
        device = "cpu" if result.about["gpu"] == "none visible" else "cuda"
        for (op, _, _, phase), entries in result.groups().items():
            both = any(e["op"] == op and e["phase"] == "forward+backward" for e in result.entries)
            times = {e["peer"].removeprefix(OURS): e["median"] for e in entries if ours(e)}
            if len(times) < 2 or phase != ("forward+backward" if both else "forward"):
                continue
            for backend, seconds in times.items():
                ratios[device, FUSED[op]][backend].append(seconds / min(times.values()))
    found: Orders = {}
    for (device, op), by_backend in sorted(ratios.items()):
        means = {b: round(statistics.geometric_mean(r), 1) for b, r in by_backend.items()}
        found.setdefault(device, {})[op] = dict(sorted(means.items(), key=lambda item: item[1]))
    return found


def render(found: Orders) -> str:
    """The text of the table."""
    lines = []
    for device, ops in found.items():
        rows = [f'        "{op}": {json.dumps(times)},' for op, times in ops.items()]
        lines += [f'    "{device}": {{', *rows, "    },"]
    text = "\n".join(["{", *lines, "}"]) if lines else "{}"
    return (
        '"""Which of the backends was faster where it was measured: the order of ``backend="auto"``.\n\n'
        'written by benchmarks.auto\n"""\n\n'
        "#: Kind of device -> fused op -> backend -> times as long as the fastest, the fastest first.\n"
        f"MEASURED: dict[str, dict[str, dict[str, float]]] = {text}\n"
    )


def main(arguments: list[str] | None = None) -> int:
    """Write the table; exit status 1 where nothing was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args(arguments)
    files = sorted((ROOT / "benchmarks" / "results").glob("*/kernels.json"))
    found = orders([load(path) for path in files])
    if not found:
        print("no results of more than one backend under benchmarks/results; run make bench", file=sys.stderr)
        return 1
    TABLE.write_text(render(found), encoding="utf-8")
    print(TABLE.read_text(encoding="utf-8"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
