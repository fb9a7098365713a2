"""Logs of a run: one JSON object a line, and TensorBoard."""

from __future__ import annotations

import json
import time
from pathlib import Path

import torch
from torch import Tensor


class RunLog:
    """Averages what the steps report on the device, and writes a row every few steps.

    Nothing is read from the device between rows. Rows of steps after ``start`` (of a run that was interrupted after its
    last checkpoint) are dropped, so that a resumed run's log has each step once.
    """

    def __init__(self, folder: Path, start: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # slow to import, and only needed here

        self.path = folder / "log.jsonl"
        rows = self.path.read_text().splitlines() if self.path.exists() else []
        kept = [row for row in rows if _step(row) is not None and _step(row) <= start]
        self.path.write_text("".join(row + "\n" for row in kept))
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=start + 1)
        self._sums: dict[str, Tensor] = {}
        self._count, self._clock = 0, time.perf_counter()

    def add(self, values: dict[str, Tensor]) -> None:
        """Take the values of one step (device scalars)."""
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0) + value.detach().double()
        self._count += 1

    def write(self, step: int, extra: dict[str, float] | None = None) -> dict[str, float]:
        """Write the averages since the last row, and return them. Counts of labels become ratios."""
        names = list(self._sums)
        values = torch.stack([torch.as_tensor(self._sums[n]) for n in names]).tolist() if names else []
        sums = dict(zip(names, values, strict=True))
        known = sums.pop("labels_known", None)
        row: dict[str, float] = {}
        for name, value in sums.items():
            if name.startswith("labels_right"):
                if known:
                    row[name] = value / known
            else:
                row[name] = value / self._count
        now = time.perf_counter()
        row |= {"steps_per_second": self._count / max(now - self._clock, 1e-9)} | (extra or {})
        self._sums, self._count, self._clock = {}, 0, now
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step} | row) + "\n")
        for name, value in row.items():
            self._board.add_scalar(name, value, step)
        return row

    def close(self) -> None:
        """Flush TensorBoard's file."""
        self._board.close()


def _step(row: str) -> int | None:
    """The step of a row; None for one that was cut off when the machine went down."""
    try:
        return json.loads(row)["step"]
    except ValueError:
        return None
