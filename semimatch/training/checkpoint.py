"""What a run keeps on disk: `weights.safetensors` (to use) and `checkpoint.pt` (to resume)."""

from __future__ import annotations

import json
import os
import pickle
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from ..config import ModelConfig
from ..errors import UserError

#: Settings that change the tensors of the network; weights with other values of them do not fit.
ARCHITECTURE = ("backbone", "levels", "head", "projection", "depth", "mlp_ratio")


class CheckpointError(UserError):
    """A file of weights or a checkpoint that cannot be used; the message names the file and what was expected."""


def save_weights(path: Path, matcher: nn.Module, model: ModelConfig, about: dict) -> None:
    """Write the parameters and buffers with the model's settings and ``about`` (method, step, ...) in the header;
    atomic."""
    tensors = {name: t.detach().cpu().contiguous() for name, t in matcher.state_dict().items()}
    part = path.with_suffix(".part")
    save_file(tensors, part, metadata={"model": json.dumps(asdict(model)), "about": json.dumps(about)})
    os.replace(part, path)


def read_header(path: Path) -> tuple[ModelConfig, dict]:
    """The model's settings and ``about`` of a file of weights."""
    if path.is_dir():
        raise CheckpointError(f"{path}: is a folder; expected the file weights.safetensors in that of a run")
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file; expected weights.safetensors of a run") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path}: not a complete safetensors file ({error}); expected weights of a run"
        ) from error
    if "model" not in header:
        raise CheckpointError(
            f"{path}: has no model settings in its header; expected weights written by `semimatch fit`"
        )
    try:
        return ModelConfig(**json.loads(header["model"])), json.loads(header.get("about", "{}"))
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path}: model settings of another version ({error}); expected those of this one"
        ) from error


def load_weights(path: Path, matcher: nn.Module, model: ModelConfig) -> None:
    """Fill ``matcher``, built from ``model``, with the weights at ``path``; their architecture must be the same."""
    stored, _ = read_header(path)
    check_architecture(path, asdict(stored), model)
    matcher.load_state_dict(load_file(path))


def check_architecture(path: Path, stored: dict, model: ModelConfig) -> None:
    """Raise `CheckpointError` that names the first setting in which a file's network differs from the one asked for."""
    for name in ARCHITECTURE:
        if stored[name] != getattr(model, name):
            raise CheckpointError(
                f"{path}: holds a network with model.{name} = {stored[name]!r}; "
                f"expected {getattr(model, name)!r}, as this run's settings say"
            )


def read_checkpoint(path: Path, model: ModelConfig) -> dict:
    """The state of an interrupted run, on the CPU."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        stored = state["settings"]["model"]
    except (OSError, RuntimeError, EOFError, KeyError, TypeError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); expected checkpoint.pt of a run, complete") from error
    check_architecture(path, stored, model)
    return state
