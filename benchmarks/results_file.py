"""A result file of pytest-benchmark as this package reads it: machine, entries, and what was not measured."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

#: What must be the same for times of two files to be compared.
MACHINE = ("cpu", "threads", "gpu")


class Unreadable(ValueError):
    """A file that is not there, or no result file; the message names it."""


@dataclass(frozen=True)
class Results:
    """Entries are the `extra_info` of test_kernels.py, with median, q1, q3 (seconds, warm) and rounds."""

    about: dict[str, str]
    entries: list[dict]
    not_measured: list[dict]

    @property
    def ceilings(self) -> dict[str, float]:
        """Bytes, and flops of each dtype, a second."""
        found = {k.removeprefix("ceiling_"): float(v) for k, v in self.about.items() if k.startswith("ceiling_")}
        return found

    def groups(self) -> dict[tuple[str, str, str, str], list[dict]]:
        """Entries by (op, shape, dtype, phase), in the order of the file."""
        out: dict[tuple, list[dict]] = defaultdict(list)
        for e in self.entries:
            out[e["op"], e["shape"], e["dtype"], e["phase"]].append(e)
        return out

    def differing(self, other: Results) -> list[str]:
        """What says that the other file is of another machine."""
        return [
            f"{key}: {self.about.get(key)} and {other.about.get(key)}"
            for key in MACHINE
            if self.about.get(key) != other.about.get(key)
        ]


def load(path: Path) -> Results:
    """Reads ``path``; raises `Unreadable`."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        entries = []
        for b in data["benchmarks"]:
            entries.append(b["extra_info"] | {k: b["stats"][k] for k in ("median", "q1", "q3", "rounds")})
        return Results(data["machine_info"]["semimatch"], entries, data.get("not_measured", []))
    except FileNotFoundError:
        raise Unreadable(f"{path}: no such file") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Unreadable(f"{path}: no result of benchmarks.run ({type(error).__name__}: {error})") from error


def key(entry: dict) -> tuple[str, str, str, str, str]:
    """What names an entry in every file."""
    return entry["op"], entry["shape"], entry["dtype"], entry["phase"], entry["peer"]


def ours(entry: dict) -> bool:
    """Whether the entry is one of our backends."""
    return entry["peer"].startswith("ours")


def roofline(entry: dict, ceilings: dict[str, float]) -> float | None:
    """Share of the machine's limit: the time that the least traffic and arithmetic take at the rates measured, over the
    time taken. Bytes at the rate of a copy that moves as many: one that fits the caches is copied there."""
    if not ceilings:
        return None
    flops = ceilings.get(f"{entry['dtype']}_flops", ceilings["fp32_flops"])
    copy = entry.get("copy") or ceilings["bytes"]
    return max(entry["bytes"] / copy, entry["flops"] / flops) / entry["median"]
