"""The protocol card: everything that a PCK number depends on, stored with it."""

from __future__ import annotations

import hashlib
import platform
import subprocess
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path

import torch

PACKAGES = ("semimatch", "torch", "torchvision", "timm", "numpy", "pillow")


@dataclass(frozen=True)
class Protocol:
    """One evaluation, in words a reader can check. `describe` fills it in."""

    benchmark: str
    split: str
    selection: str  #: split that the weights were selected on, "none" where nothing was selected
    weights: str  #: file name and SHA-256, or what stands for it ("ImageNet only")
    model: dict  #: settings of the network
    temperature: float | None  #: of the soft-argmax; None = the predictor has none
    rounding: str
    size: int  #: side of the resized images, pixels
    direction: str = "target keypoints are transferred to the source image; the threshold is the source's"
    resize: str = "each axis to `size` on its own, bilinear with antialiasing; keypoints times size / side"
    correct: str = "distance <= alpha * threshold, border included, float32"
    averaging: str = "mean over pairs of each pair's share of correct keypoints; per_point: share of all keypoints"
    commit: str = "unknown"
    device: str = "cpu"
    packages: dict[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict:
        """Plain values, for JSON."""
        return asdict(self)


def describe(
    *,
    benchmark: str,
    split: str,
    selection: str,
    weights: Path | str,
    model: dict,
    temperature: float | None,
    rounding: str,
    size: int,
    device: torch.device | str,
) -> Protocol:
    """A protocol card with what the running program knows by itself: commit, package versions, device.

    Args:
        benchmark, split: of the list evaluated. selection: split that the weights were selected on.
        weights: file of weights (its name and SHA-256 are stored), or a phrase.
        model, temperature, rounding, size: as in `Protocol`.
        device: that the evaluation ran on.
    """
    if isinstance(weights, Path):
        weights = f"{weights.name} sha256:{hashlib.sha256(weights.read_bytes()).hexdigest()}"
    return Protocol(
        benchmark=benchmark,
        split=split,
        selection=selection,
        weights=weights,
        model=model,
        temperature=temperature,
        rounding=rounding,
        size=size,
        commit=_commit(),
        device=_device(torch.device(device)),
        packages={"python": platform.python_version()} | _versions(),
    )


def _versions() -> dict[str, str]:
    out = {}
    for name in PACKAGES:
        try:
            out[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            out[name] = "not installed"
    return out


def _device(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return device.type


def _commit() -> str:
    """Commit of this source tree, "+changes" where a tracked file differs; "unknown" outside a checkout."""
    here = Path(__file__).resolve()

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here.parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        # A package installed inside somebody else's checkout must not take that one's commit for its own.
        git("ls-files", "--error-unmatch", here.name)
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"
