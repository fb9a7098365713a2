"""``python -m benchmarks.report RESULT.json [OTHER.json]``: tables and plots of a result file, or two compared.

The tables are Markdown: for each op, shape, dtype and phase the peers with median, spread, ratio to eager, GB/s and
GFLOP/s by `costs`, and the share of the machine's roofline where the file has its ceilings. With two files: the ratio
of the second's medians to the first's; exit status 1 where one is slower by more than ``--tolerance``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path


def load(path: Path) -> tuple[dict, list[dict]]:
    """(machine, entries) of a pytest-benchmark file; times in seconds."""
    data = json.loads(path.read_text(encoding="utf-8"))
    entries = []
    for b in data["benchmarks"]:
        stats = b["stats"]
        entries.append(b["extra_info"] | {k: stats[k] for k in ("median", "q1", "q3", "rounds")})
    return data["machine_info"]["semimatch"], entries


def groups(entries: list[dict]) -> dict[tuple[str, str, str, str], list[dict]]:
    """Entries by (op, shape, dtype, phase), in the order of the file."""
    out: dict[tuple, list[dict]] = defaultdict(list)
    for e in entries:
        out[e["op"], e["shape"], e["dtype"], e["phase"]].append(e)
    return out


def roofline(entry: dict, ceilings: dict[str, float]) -> float | None:
    """Share of the machine's limit: the time that the least traffic and arithmetic would take over the time taken."""
    if not ceilings:
        return None
    flops = ceilings.get(f"{entry['dtype']}_flops", ceilings["fp32_flops"])
    return max(entry["bytes"] / ceilings["bytes"], entry["flops"] / flops) / entry["median"]


def table(entries: list[dict], ceilings: dict[str, float]) -> str:
    """One Markdown table a group."""
    parts = []
    for (op, shape, dtype, phase), rows in groups(entries).items():
        first = rows[0]
        size = f"B={first['batch']}, N={first['cells']}"
        if op == "correlation" or op.endswith("_features"):
            size += f", C={'+'.join(map(str, first['channels']))}"
        lines = [f"### {op}, {shape} ({size}), {dtype}, {phase}", ""]
        lines += [
            "| peer | median | quartiles | times eager | GB/s | GFLOP/s | roofline |",
            "|---|--:|--:|--:|--:|--:|--:|",
        ]
        eager = next((r["median"] for r in rows if r["peer"] == "eager"), None)
        for r in sorted(rows, key=lambda r: r["median"]):
            share = roofline(r, ceilings)
            cells = [
                r["peer"],
                f"{r['median'] * 1e3:.3g} ms",
                f"{r['q1'] * 1e3:.3g}-{r['q3'] * 1e3:.3g}",
                "" if eager is None else f"{eager / r['median']:.2f}",
                f"{r['bytes'] / r['median'] / 1e9:.3g}",
                f"{r['flops'] / r['median'] / 1e9:.3g}",
                "" if share is None else f"{share:.0%}",
            ]
            lines.append("| " + " | ".join(cells) + " |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def compare(old: list[dict], new: list[dict], tolerance: float) -> tuple[str, bool]:
    """Markdown of the medians of both files and their ratio; and whether one of ours got slower beyond ``tolerance``
    by more than the spread of both."""

    def key(e: dict) -> tuple:
        return e["op"], e["shape"], e["dtype"], e["phase"], e["peer"]

    before = {key(e): e for e in old}
    lines = ["| op | shape | dtype | phase | peer | before | after | ratio |", "|---|---|---|---|---|--:|--:|--:|"]
    slower = False
    for e in new:
        was = before.get(key(e))
        if was is None:
            continue
        ratio = e["median"] / was["median"]
        worse = e["peer"].startswith("ours") and ratio > 1 + tolerance and e["q1"] > was["q3"]
        slower |= worse
        times = f"{was['median'] * 1e3:.3g} ms | {e['median'] * 1e3:.3g} ms"
        lines.append(f"| {' | '.join(key(e))} | {times} | {ratio:.2f}{' slower' if worse else ''} |")
    return "\n".join(lines), slower


def plots(entries: list[dict], folder: Path) -> list[Path]:
    """Time over the number of cells, one picture an op; for ops that were measured at more than one size."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    written = []
    for op in dict.fromkeys(e["op"] for e in entries):
        rows = [e for e in entries if e["op"] == op]
        phase = "forward+backward" if any(e["phase"] != "forward" for e in rows) else "forward"
        rows = [e for e in rows if e["phase"] == phase and e["dtype"] == rows[0]["dtype"]]
        if len({e["cells"] for e in rows}) < 2:
            continue
        figure, axes = pyplot.subplots(figsize=(5, 3.5), layout="constrained")
        for peer in dict.fromkeys(e["peer"] for e in rows):
            # per sample: the batch differs from size to size
            points = sorted((e["cells"], e["median"] * 1e3 / e["batch"]) for e in rows if e["peer"] == peer)
            axes.plot(*zip(*points, strict=True), marker="o", label=peer)
        axes.set(xscale="log", yscale="log", xlabel="cells a side", ylabel="ms a sample", title=f"{op}, {phase}")
        axes.legend(fontsize=7)
        path = folder / f"{op}.png"
        figure.savefig(path, dpi=110)
        pyplot.close(figure)
        written.append(path)
    return written


def main() -> None:
    """Print, and write beside the result file: the same name with .md, and plots."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", type=Path)
    parser.add_argument("other", type=Path, nargs="?", help="a second result, compared with the first")
    parser.add_argument("--tolerance", type=float, default=0.1, help="slower by this share counts (default 0.1)")
    options = parser.parse_args()
    about, entries = load(options.result)
    if options.other is not None:
        text, slower = compare(entries, load(options.other)[1], options.tolerance)
        print(text)
        sys.exit(1 if slower else 0)
    ceilings = {k.removeprefix("ceiling_"): float(v) for k, v in about.items() if k.startswith("ceiling_")}
    header = "\n".join(f"- {key}: {value}" for key, value in about.items())
    text = f"# Kernels\n\n{header}\n\n{table(entries, ceilings)}\n"
    options.result.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)
    for path in plots(entries, options.result.parent):
        print(f"written: {path}")


if __name__ == "__main__":
    main()
