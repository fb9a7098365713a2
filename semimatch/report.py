"""What an evaluation leaves for a person: tables, curve, pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from .data import LoadedPairs
from .evaluation import Protocol, Result, format_tables
from .models import Matcher
from .runfolder import write_json, write_text
from .visualize import plot_curves, save_pictures


def write_report(
    folder: Path, results: Mapping[str, Result], cards: Mapping[str, Protocol], labels: Mapping[str, dict] | None = None
) -> str:
    """report.txt, curve.png and result.json (protocol card and means of every result by its name) in ``folder``.

    ``labels``: name -> `label_quality` of the methods that use pseudo labels. Returns the text of the report.
    """
    labels = labels or {}
    label_lines = [_label_line(name, found) for name, found in labels.items()]
    text = "\n".join([format_tables(results), *label_lines, "", *_protocol_lines(cards)])
    write_text(folder / "report.txt", text + "\n")
    plot_curves(results, folder / "curve.png")
    content = {name: {"protocol": cards[name].as_dict()} | result.means() for name, result in results.items()}
    for name, found in labels.items():
        content[name]["pseudo_labels"] = found
    write_json(folder / "result.json", content)
    return text


def _protocol_lines(cards: Mapping[str, Protocol]) -> list[str]:
    """The protocol, a line a fact; where the results differ, a line each."""
    fields = {name: card.as_dict() for name, card in cards.items()}
    lines = ["protocol"]
    for fact in next(iter(fields.values())):
        values = {name: _one_line(card[fact]) for name, card in fields.items()}
        if len(set(values.values())) == 1:
            lines.append(f"  {fact}: {next(iter(values.values()))}")
        else:
            lines += [f"  {fact} ({name}): {value}" for name, value in values.items()]
    return lines


def _one_line(value: object) -> str:
    return ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)


def label_quality(log: Path) -> dict[str, float]:
    """Mean over the last third of a run's log.jsonl: coverage, the share of cells that taught, and how many of the
    labels on annotated cells lie within .05 and .10 of the source box. Empty for a method without pseudo labels."""
    rows = [json.loads(row) for row in log.read_text().splitlines()]
    rows = [row for row in rows if row["step"] * 3 > rows[-1]["step"] * 2]
    names = ("coverage", "labels_right_0.05", "labels_right_0.10")
    values = {name: [row[name] for row in rows if name in row] for name in names}
    return {name: sum(found) / len(found) for name, found in values.items() if found}


def _label_line(name: str, found: dict[str, float]) -> str:
    shares = {key: f"{100 * value:.1f} %" for key, value in found.items()}
    return (
        f"\n{name}: pseudo labels in the last third of training: {shares.get('coverage', '-')} of the cells taught; "
        f"of the labels on annotated cells {shares.get('labels_right_0.05', '-')} lie within .05 and "
        f"{shares.get('labels_right_0.10', '-')} within .10 of the source box"
    )


def write_pictures(folder: Path, matcher: Matcher, data: LoadedPairs, count: int) -> None:
    """Pictures of ``count`` pairs spread evenly over the list."""
    if count > 0:
        chosen = np.unique(np.linspace(0, len(data) - 1, min(count, len(data))).astype(int))
        save_pictures(matcher, data, chosen.tolist(), folder)
