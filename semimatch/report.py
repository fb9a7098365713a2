"""What an evaluation leaves for a person: tables, curve, pictures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from .data import LoadedPairs
from .evaluation import Protocol, Result, format_tables
from .models import Matcher
from .runfolder import write_json, write_text
from .visualize import plot_curves, save_pictures


def write_report(folder: Path, results: Mapping[str, Result], cards: Mapping[str, Protocol]) -> None:
    """report.txt, curve.png and result.json (protocol card and means of every result by its name) in ``folder``."""
    write_text(folder / "report.txt", format_tables(results) + "\n")
    plot_curves(results, folder / "curve.png")
    content = {name: {"protocol": cards[name].as_dict()} | result.means() for name, result in results.items()}
    write_json(folder / "result.json", content)


def write_pictures(folder: Path, matcher: Matcher, data: LoadedPairs, count: int) -> None:
    """Pictures of ``count`` pairs spread evenly over the list."""
    if count > 0:
        chosen = np.unique(np.linspace(0, len(data) - 1, min(count, len(data))).astype(int))
        save_pictures(matcher, data, chosen.tolist(), folder)
