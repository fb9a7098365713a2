"""Evaluation: keypoint transfer scored by PCK.

pck.py        thresholds and hits            protocol.py  Protocol: what a number depends on
evaluator.py  evaluate: one pass, all        result.py    Result: means, tables, result.json
              thresholds and alphas
"""

from __future__ import annotations

from .evaluator import ALPHAS, evaluate
from .pck import RULES, hits, threshold
from .protocol import Protocol, describe
from .result import Result, format_tables, read_results, write_results

__all__ = [
    "ALPHAS",
    "Protocol",
    "RULES",
    "Result",
    "describe",
    "evaluate",
    "format_tables",
    "hits",
    "read_results",
    "threshold",
    "write_results",
]
