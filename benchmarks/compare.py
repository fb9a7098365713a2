"""``python -m benchmarks.compare OLD.json NEW.json``: did anything of ours get slower?

Medians of both files and their ratio, with the range that the quartiles of both allow. Exit status 0: no; 1: one of
ours is slower by more than ``--tolerance`` and by more than the spread, or is gone; 2: nothing was compared, as a file
cannot be read, or the files are of different machines, whose times say nothing about the code (``--across-machines``
compares them all the same).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .report import markdown
from .results_file import Results, Unreadable, key, load, ours


def compare(old: Results, new: Results, tolerance: float) -> tuple[str, list[str]]:
    """Markdown of all entries of ``old``, and the names of ours that got slower or are gone."""
    after = {key(e): e for e in new.entries}
    rows, worse = [], []
    for was in old.entries:
        name, now = key(was), after.get(key(was))
        if now is None:
            verdict = "gone"
            if ours(was):
                worse.append(", ".join(name))
            rows.append([*name, f"{was['median'] * 1e3:.3g}", "", "", "", verdict])
            continue
        ratio = now["median"] / was["median"]
        low, high = now["q1"] / was["q3"], now["q3"] / was["q1"]
        slower, faster = ratio > 1 + tolerance and low > 1, ratio < 1 - tolerance and high < 1
        verdict = "slower" if slower else "faster" if faster else ""
        if slower and ours(was):
            worse.append(", ".join(name))
        times = [f"{e['median'] * 1e3:.3g}" for e in (was, now)]
        rows.append([*name, *times, f"{ratio:.2f}", f"{low:.2f}-{high:.2f}", verdict])
    headings = ["op", "shape", "dtype", "phase", "peer", "before, ms", "after, ms", "ratio", "range", ""]
    return markdown(headings, rows), worse


def main(arguments: list[str] | None = None) -> int:
    """Print the comparison; the exit status as above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--tolerance", type=float, default=0.1, help="slower by this share counts (default 0.1)")
    parser.add_argument("--across-machines", action="store_true", help="compare files of different machines")
    options = parser.parse_args(arguments)
    try:
        old, new = load(options.old), load(options.new)
    except Unreadable as error:
        parser.error(str(error))
    differing = old.differing(new)
    if differing and not options.across_machines:
        print("The files are of different machines:", *differing, sep="\n  ", file=sys.stderr)
        return 2
    text, worse = compare(old, new, options.tolerance)
    print(text)
    if worse:
        print("\nSlower or gone:", *worse, sep="\n  ")
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
