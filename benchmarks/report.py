"""``python -m benchmarks.report RESULT.json``: Markdown tables and plots of a result file, written beside it.

For each op, shape, dtype and phase the peers with median, spread, ratio to eager, GB/s and GFLOP/s by `costs`, share of
the machine's roofline and peak memory; first of all, where ours is not the fastest.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from itertools import groupby
from pathlib import Path

from .results_file import Results, Unreadable, load, ours, roofline

LEGEND = """\
Median and quartiles of interleaved rounds, in ms. On a GPU *warm* is a CUDA graph replayed back to back, *cold* one
replay after a write through the L2, *wall* calls from Python back to back; on the CPU *warm* is the wall time. GB/s and
GFLOP/s count what the op cannot do without (`benchmarks/costs.py`), not what an implementation moves. *Roofline* is the
share of the limit: those bytes at the rate of a copy that moves as many, given beside it (small ones fit the caches, so
do their copies), those flops at the rate of a matrix product in the dtype. Memory is the peak of a call beyond its
inputs, of a backward beyond what its forward kept. (part): computes less than the op, a bound and no rival.
*compile* is torch.compile of the eager definition; on the CPU, where a compilation takes ten seconds or more, only in
fp32 and only of forward and backward together (of the forward pass of an op without gradient)."""


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3g}"


def _mib(size: int | None) -> str:
    return "" if size is None else f"{size / 2**20:.3g} MiB"


#: Heading -> cell of a row, given the time of eager and the ceilings; a column that is empty in a table is left out.
COLUMNS: dict[str, Callable[[dict, float | None, dict], str]] = {
    "peer": lambda r, eager, ceilings: r["peer"] + (" (part)" if r.get("part") else ""),
    "warm": lambda r, eager, ceilings: _ms(r["median"]) + (" (no graph)" if r.get("not_captured") else ""),
    "quartiles": lambda r, eager, ceilings: f"{_ms(r['q1'])}-{_ms(r['q3'])}",
    "cold": lambda r, eager, ceilings: _ms(r["cold"]["median"]) if "cold" in r else "",
    "wall": lambda r, eager, ceilings: _ms(r["wall"]["median"]) if "wall" in r else "",
    "times eager": lambda r, eager, ceilings: "" if eager is None else f"{eager / r['median']:.2f}",
    "GB/s": lambda r, eager, ceilings: f"{r['bytes'] / r['median'] / 1e9:.3g}",
    "GFLOP/s": lambda r, eager, ceilings: f"{r['flops'] / r['median'] / 1e9:.3g}",
    "roofline": lambda r, eager, ceilings: "" if (s := roofline(r, ceilings)) is None else f"{s:.0%}",
    "copy GB/s": lambda r, eager, ceilings: f"{r['copy'] / 1e9:.3g}" if r.get("copy") else "",
    "memory": lambda r, eager, ceilings: _mib(r.get("memory")),
}


def title(entry: dict) -> str:
    """Op, shape with its sizes, dtype and phase."""
    size = f"B={entry['batch']}, N={entry['cells']}"
    if entry["op"] == "correlation" or entry["op"].endswith("_features"):
        runs = [(c, len(list(same))) for c, same in groupby(entry["channels"])]
        size += ", C=" + "+".join(f"{n}x{c}" if n > 1 else str(c) for c, n in runs)
    return f"{entry['op']}, {entry['shape']} ({size}), {entry['dtype']}, {entry['phase']}"


def markdown(headings: list[str], rows: list[list[str]]) -> str:
    """A table; the first column to the left."""
    lines = [headings, ["---", *["--:"] * (len(headings) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def table(results: Results) -> str:
    """One Markdown table a group, fastest first."""
    parts = []
    for rows in results.groups().values():
        eager = next((r["median"] for r in rows if r["peer"] == "eager"), None)
        rows = sorted(rows, key=lambda r: r["median"])
        cells = {name: [cell(r, eager, results.ceilings) for r in rows] for name, cell in COLUMNS.items()}
        cells = {name: column for name, column in cells.items() if any(column)}
        parts.append(f"### {title(rows[0])}\n\n" + markdown(list(cells), list(map(list, zip(*cells.values())))))  # noqa: B905
    return "\n\n".join(parts)


def losses(results: Results) -> str:
    """Where something else that computes all of the op is faster than the best of ours."""
    rows = []
    for group in results.groups().values():
        best = min((r for r in group if ours(r)), key=lambda r: r["median"], default=None)
        rivals = [r for r in group if not ours(r) and not r.get("part")]
        rival = min(rivals, key=lambda r: r["median"], default=None)
        if best is None or rival is None or rival["median"] >= best["median"]:
            continue
        ratio = f"{best['median'] / rival['median']:.2f}"
        rows.append([title(best), rival["peer"], _ms(rival["median"]), best["peer"], _ms(best["median"]), ratio])
    if not rows:
        return "Nowhere."
    return markdown(["op", "fastest", "ms", "best of ours", "ms", "times slower"], rows)


def missing(results: Results) -> str:
    """Entries without a number, with the reason."""
    lines = {f"- {e['op']}, {e['shape']}, {e['dtype']}: {e['peer']}: {e['reason']}": None for e in results.not_measured}
    return "\n".join(lines) or "Nothing."


def report(results: Results) -> str:
    """The whole page."""
    about = "\n".join(f"- {key}: {value}" for key, value in results.about.items())
    return (
        f"# Kernels\n\n{about}\n\n{LEGEND}\n\n## Where ours is not the fastest\n\n{losses(results)}\n\n"
        f"## Left out\n\n{missing(results)}\n\n## Times\n\n{table(results)}\n"
    )


def plots(results: Results, folder: Path) -> list[Path]:
    """Time, memory and share of the roofline over the number of cells, one picture an op and dtype that was measured at
    more than one size: of the forward and backward pass together where it has both."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    written = []
    for op, dtype in dict.fromkeys((e["op"], e["dtype"]) for e in results.entries):
        rows = [e for e in results.entries if (e["op"], e["dtype"]) == (op, dtype)]
        phase = "forward+backward" if any(e["phase"] == "forward+backward" for e in rows) else "forward"
        rows = [e for e in rows if e["phase"] == phase]
        if len({e["cells"] for e in rows}) < 2:
            continue
        # Per sample: the batch differs from size to size.
        views = {
            "ms a sample": lambda e: e["median"] * 1e3 / e["batch"],
            "MiB a sample": lambda e: e["memory"] / 2**20 / e["batch"] if e.get("memory") else None,
            "% of roofline": lambda e: 100 * (roofline(e, results.ceilings) or 0) or None,
        }
        # What was measured of none, as the memory on some systems, has no picture.
        views = {label: value for label, value in views.items() if any(value(e) is not None for e in rows)}
        size = (4 * len(views), 3.8)
        figure, [axes] = pyplot.subplots(1, len(views), figsize=size, layout="constrained", squeeze=False)
        for axis, (label, value) in zip(axes, views.items(), strict=True):
            for peer in dict.fromkeys(e["peer"] for e in rows):
                points = {e["cells"]: value(e) for e in rows if e["peer"] == peer}
                points = sorted((n, v) for n, v in points.items() if v is not None)
                axis.plot([n for n, _ in points], [v for _, v in points], marker="o", label=peer)
            axis.set(xscale="log", yscale="linear" if "%" in label else "log", xlabel="cells a side", ylabel=label)
        axes[0].legend(fontsize=7)
        figure.suptitle(f"{op}, {dtype}, {phase}")
        path = folder / f"{op}-{dtype}.png"
        figure.savefig(path, dpi=110)
        pyplot.close(figure)
        written.append(path)
    return written


def write(path: Path) -> list[Path]:
    """The page and the plots of result file ``path``, beside it; no plots without matplotlib."""
    results = load(path)
    page = path.with_suffix(".md")
    page.write_text(report(results), encoding="utf-8")
    try:
        return [page, *plots(results, path.parent)]
    except ImportError:
        print("no plots: matplotlib is not installed")
        return [page]


def main() -> None:
    """Write the page and the plots, print the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", type=Path)
    options = parser.parse_args()
    try:
        written = write(options.result)
    except Unreadable as error:
        parser.error(str(error))
    print(written[0].read_text(encoding="utf-8"))
    print("\n".join(f"written: {path}" for path in written))


if __name__ == "__main__":
    main()
