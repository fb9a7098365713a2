"""PCK curves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from ..evaluation.pck import RULES
from ..evaluation.result import Result

# Eight colours that stay apart without red-green vision (Okabe and Ito), and markers for print in grey.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
MARKERS = "osD^vPX*"


def plot_curves(results: Mapping[str, Result], path: Path | str, rule: str | None = None) -> None:
    """Draw PCK over alpha, one curve a result, and save it (PNG, or what the path's ending says).

    Args:
        results: label -> result. path: file to write. rule: threshold rule, None = the main one of the first.
    """
    if not results:
        raise ValueError("results: expected at least one result, got none")
    first = next(iter(results.values()))
    rule = rule or first.rules[0]
    # A Figure of its own, not pyplot: no global state and no display.
    figure = Figure(figsize=(6.4, 4.4), dpi=160, layout="constrained")
    axes = figure.add_subplot()
    best = 0.0
    for i, (label, result) in enumerate(results.items()):
        values = result.per_image(rule)
        best = max([best, *values[~np.isnan(values)]])
        numbers = ", ".join(f"{v:.1f} @{a:.2f}" for a, v in zip(result.alphas, values, strict=True) if a in (0.05, 0.1))
        axes.plot(
            result.alphas,
            values,
            color=COLORS[i % len(COLORS)],
            marker=MARKERS[i % len(MARKERS)],
            markersize=4.5,
            linewidth=1.8,
            label=f"{label}  ({numbers})" if numbers else label,
        )
    axes.set(
        xlim=(0, max(first.alphas) * 1.02),
        ylim=(0, 100 if best > 70 else min(100, best * 1.15 + 1)),
        xlabel=r"$\alpha$",
        ylabel="PCK (%)",
    )
    axes.set_title(f"{first.name} {first.split}, {len(first)} pairs", loc="left", fontsize=11, fontweight="bold")
    note = f"threshold: {RULES[rule].partition(',')[0]}"
    axes.text(1, 1.02, note, transform=axes.transAxes, ha="right", fontsize=8, color="#666666")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.2f}"))
    axes.grid(color="#e3e3e3", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower right", fontsize=9, framealpha=0.95, edgecolor="#dddddd")
    figure.savefig(path)
