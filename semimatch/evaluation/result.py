"""What an evaluation found, its means, and how it is stored and printed."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .pck import RULES
from .protocol import Protocol

FORMAT = 1
#: Names of the values of SPair-71k's difficulty flags.
FLAG_VALUES = {
    "viewpoint_variation": ("easy", "medium", "hard"),
    "scale_variation": ("easy", "medium", "hard"),
    "truncation": ("none", "source", "target", "both"),
    "occlusion": ("none", "source", "target", "both"),
}


@dataclass(frozen=True, eq=False)
class Result:
    """N pairs scored at A alphas by R threshold rules. Means are percentages, float64 [A].

    Attributes:
        name, split: of the list of pairs.
        alphas: the A fractions. rules: the R rules (`pck.RULES`), the main one first.
        hits: int64 [R,N,A], keypoints within alpha * L.
        lengths: float32 [R,N], L in pixels of the resized image.
        points: int64 [N], keypoints of each pair. missing: int64 [N], those whose prediction was NaN or infinite.
        rows, images, categories, flags: N entries each, as in `data.Pair`; images are file names (source,
            target).
    """

    name: str
    split: str
    alphas: tuple[float, ...]
    rules: tuple[str, ...]
    hits: np.ndarray
    lengths: np.ndarray
    points: np.ndarray
    missing: np.ndarray
    rows: list[str]
    images: list[tuple[str, str]]
    categories: list[str]
    flags: list[dict[str, int]]

    def __len__(self) -> int:
        return len(self.points)

    def _rule(self, rule: str | None) -> int:
        if rule is None:
            return 0
        if rule not in self.rules:
            raise ValueError(f"rule is {rule!r}; expected one of {', '.join(self.rules)}")
        return self.rules.index(rule)

    def pck(self, rule: str | None = None) -> np.ndarray:
        """PCK of each pair, float64 [N,A]; NaN for a pair without keypoints. ``rule`` None = the main one."""
        with np.errstate(invalid="ignore"):
            return 100 * self.hits[self._rule(rule)] / self.points[:, None]

    def per_image(self, rule: str | None = None) -> np.ndarray:
        """Mean over the pairs that have keypoints; NaN where none has."""
        return self.pck(rule)[self.points > 0].mean(0) if (self.points > 0).any() else self._nothing()

    def per_point(self, rule: str | None = None) -> np.ndarray:
        """Share of all keypoints; NaN where there is none."""
        total = self.points.sum()
        return 100 * self.hits[self._rule(rule)].sum(0) / total if total else self._nothing()

    def _nothing(self) -> np.ndarray:
        return np.full(len(self.alphas), np.nan)

    def select(self, indices: Sequence[int], split: str) -> Result:
        """The result on some of the pairs, under another name: a clean subset, a category."""
        index = np.asarray(indices, np.int64)
        lists = {field: [getattr(self, field)[i] for i in index] for field in ("rows", "images", "categories", "flags")}
        arrays = (self.hits[:, index], self.lengths[:, index], self.points[index], self.missing[index])
        return Result(self.name, split, self.alphas, self.rules, *arrays, **lists)

    def by_category(self) -> dict[str, Result]:
        """The result on each category, sorted by name."""
        return {
            name: self.select([i for i, c in enumerate(self.categories) if c == name], f"{self.split}, {name}")
            for name in sorted(set(self.categories))
        }

    def by_flag(self) -> dict[str, dict[int, Result]]:
        """The result on the pairs of each value of each difficulty flag; empty where there are no flags."""
        out: dict[str, dict[int, Result]] = {}
        for flag in sorted({flag for flags in self.flags for flag in flags}):
            rows: dict[int, list[int]] = {}
            for i, flags in enumerate(self.flags):
                if flag in flags:
                    rows.setdefault(flags[flag], []).append(i)
            out[flag] = {v: self.select(rows[v], f"{self.split}, {flag}={v}") for v in sorted(rows)}
        return out

    def means(self) -> dict:
        """Plain values: per rule the means over pairs and over points; whole, per category, per flag."""
        out = self._overall()
        out["categories"] = {name: part._overall() for name, part in self.by_category().items()}
        out["flags"] = {
            flag: {str(value): part._overall() for value, part in parts.items()}
            for flag, parts in self.by_flag().items()
        }
        return out

    def _overall(self) -> dict:
        def at_alphas(values: np.ndarray) -> dict[str, float | None]:
            return {
                f"{a:g}": None if np.isnan(v) else round(float(v), 4) for a, v in zip(self.alphas, values, strict=True)
            }

        pck = {
            rule: {"per_image": at_alphas(self.per_image(rule)), "per_point": at_alphas(self.per_point(rule))}
            for rule in self.rules
        }
        counts = {"pairs": len(self), "points": int(self.points.sum()), "missing": int(self.missing.sum())}
        return counts | {"pck": pck}

    def _table(self) -> list[dict]:
        return [
            {
                "row": self.rows[i],
                "source": self.images[i][0],
                "target": self.images[i][1],
                "category": self.categories[i],
                "flags": self.flags[i],
                "points": int(self.points[i]),
                "missing": int(self.missing[i]),
                "length": {rule: round(float(self.lengths[r, i]), 4) for r, rule in enumerate(self.rules)},
                "hits": {rule: self.hits[r, i].tolist() for r, rule in enumerate(self.rules)},
            }
            for i in range(len(self))
        ]


def write_results(
    path: Path | str, result: Result, protocol: Protocol, subsets: Mapping[str, Result] | None = None
) -> None:
    """Write result.json: protocol, means (percent), table of pairs. The file appears whole or not at all.

    Args:
        subsets: further means to store beside those of the whole list, by name.
    """
    path = Path(path)
    content = {
        "format": FORMAT,
        "benchmark": result.name,
        "split": result.split,
        "alphas": list(result.alphas),
        "rules": {rule: RULES[rule] for rule in result.rules},
        "protocol": protocol.as_dict(),
        "means": result.means(),
        "subsets": {name: subset.means() for name, subset in (subsets or {}).items()},
        "table": result._table(),
    }
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(part, path)


def read_results(path: Path | str) -> tuple[Result, Protocol]:
    """What `write_results` wrote, without the subsets.

    Raises:
        ValueError: the file is missing, cut off or of another format; the message names it.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']!r}")
        table, rules = content["table"], tuple(content["rules"])
        count, alphas = len(table), tuple(content["alphas"])
        result = Result(
            name=content["benchmark"],
            split=content["split"],
            alphas=alphas,
            rules=rules,
            hits=np.array([[r["hits"][k] for r in table] for k in rules], np.int64).reshape(
                len(rules), count, len(alphas)
            ),
            lengths=np.array([[r["length"][k] for r in table] for k in rules], np.float32).reshape(len(rules), count),
            points=np.array([r["points"] for r in table], np.int64),
            missing=np.array([r.get("missing", 0) for r in table], np.int64),  # not counted at first
            rows=[r["row"] for r in table],
            images=[(r["source"], r["target"]) for r in table],
            categories=[r["category"] for r in table],
            flags=[r["flags"] for r in table],
        )
        return result, Protocol(**content["protocol"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"{path}: cannot be read ({reason}); expected result.json, format {FORMAT}") from error


def format_tables(results: Mapping[str, Result], alphas: Sequence[float] = (0.05, 0.10)) -> str:
    """Plain-text tables of one or several results on the same list.

    Args:
        results: label -> result; all of the same list, alphas and rules.
        alphas: which to show in the tables per category and per flag.
    """
    first = next(iter(results.values()))
    for label, other in results.items():
        if (other.rows, other.alphas, other.rules) != (first.rows, first.alphas, first.rules):
            raise ValueError(f"results[{label!r}]: is of other pairs, alphas or rules; expected those of the first")
    lines = [f"{first.name} {first.split}: {len(first)} pairs, {first.points.sum()} keypoints. PCK in percent."]
    for label, result in results.items():
        if count := result.missing.sum():
            where = f"{(result.missing > 0).sum()} of {len(result)} pairs"
            lines.append(f"{label}: {count} predictions, in {where}, are NaN or infinite; they count as wrong.")
    for rule in first.rules:
        lines += ["", f"threshold {rule}: {RULES[rule]}"]
        heads = [f"{a:.2f}" for a in first.alphas]
        body = [[label, "pairs", *_numbers(result.per_image(rule))] for label, result in results.items()]
        body += [[label, "points", *_numbers(result.per_point(rule))] for label, result in results.items()]
        lines += _align([["", "mean over", *heads], *body], left=2)
    chosen = [j for j, a in enumerate(first.alphas) if a in alphas]
    categories = [(name, name) for name in first.by_category()]
    groups = {"category": {label: result.by_category() for label, result in results.items()}}
    names: dict[str, list] = {"category": categories}
    for flag, parts in first.by_flag().items():
        groups[flag] = {label: result.by_flag()[flag] for label, result in results.items()}
        words = FLAG_VALUES.get(flag, ())
        names[flag] = [(value, words[value] if 0 <= value < len(words) else str(value)) for value in parts]
    for group, parts_of in groups.items():
        lines += ["", f"per {group.replace('_', ' ')}, threshold {first.rules[0]}, mean over pairs"]
        head = ["", "pairs", *(f"{label} @{alphas[j]:.2f}" for label in results for j in range(len(chosen)))]
        body = []
        for key, word in names[group]:
            cells = [cell for label in results for cell in _numbers(parts_of[label][key].per_image()[chosen])]
            body.append([word, str(len(parts_of[next(iter(results))][key])), *cells])
        lines += _align([head, *body], left=1)
    return "\n".join(lines)


def _numbers(values: np.ndarray) -> list[str]:
    return ["-" if np.isnan(v) else f"{v:.1f}" for v in values]


def _align(rows: list[list[str]], left: int) -> list[str]:
    """Columns padded to one width, the first ``left`` of them to the left."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    ]
