"""The folder of a run."""

from __future__ import annotations

import json
import os
from pathlib import Path

import yaml

from .errors import UserError


def prepare(folder: Path) -> None:
    """Create ``folder`` and make sure that it can be written to, before any work is done."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.write_text("")
        probe.unlink(missing_ok=True)  # several devices probe at once
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be written to ({error.strerror}); expected a folder for what is to be written"
        ) from error


def write_text(path: Path, text: str) -> None:
    """Write a whole file or nothing."""
    part = path.with_name(path.name + ".part")
    part.write_text(text)
    os.replace(part, path)


def write_json(path: Path, value: dict) -> None:
    """Write ``value`` as JSON; a whole file or nothing."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def write_yaml(path: Path, value: dict) -> None:
    """Write ``value`` as YAML, in its own order; a whole file or nothing."""
    write_text(path, yaml.safe_dump(value, sort_keys=False))
