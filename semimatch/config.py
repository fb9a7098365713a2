"""Every setting of a run, as typed dataclasses. YAML files in `configs/` and command-line flags fill them in.

Defaults are SemiMatch's (supplement, Tab. 1); the shipped configurations change what their data needs.
"""

from __future__ import annotations

import math
import os
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch

from .data import DATASETS
from .errors import UserError


@dataclass
class DataConfig:
    """What to train and evaluate on."""

    name: Literal["pf-willow", "pf-pascal", "spair-71k"] = "pf-pascal"
    """Benchmark whose public layout lies under `root`."""
    root: Path = Path("data")
    """Folder that holds PF-WILLOW/, PF-PASCAL/ and SPair-71k/."""
    train: str = "trn"
    """Split to train on."""
    val: str | None = "val"
    """Split to select the weights on; null = keep the last."""
    test: str = "test"
    """Split to report."""
    willow_split: int | None = None
    """PF-WILLOW only: number of the leak-free split of its images into train and test."""


@dataclass
class ModelConfig:
    """The network. Stored with the weights, and checked when they are loaded."""

    backbone: Literal["resnet101", "efficientnet-lite0"] = "resnet101"
    """Feature extractor."""
    levels: list[int] | None = None
    """Taps of the backbone; null = its own default."""
    pretrained: bool = True
    """Start from ImageNet weights."""
    head: Literal["cats", "mean"] = "cats"
    """`cats` = transformer aggregator; `mean` = training-free mean of the filtered correlations."""
    temperature: float = 0.1
    """Of the soft-argmax, at training and at test."""
    projection: int = 128
    """Channels that features are projected to for the aggregator."""
    depth: int = 1
    """Blocks of the aggregator."""
    mlp_ratio: int = 4
    """Width of the aggregator's MLPs, in token widths."""
    zero_init: bool = False
    """Start the aggregator as the identity: the untrained network is the training-free matcher."""
    center: bool = False
    """Subtract the mean over the cells of an image from its features."""


#: What the settings of `training_free` were chosen on, for the protocol card.
TRAINING_FREE_SELECTION = "temperature and centring chosen on all pairs of PF-WILLOW"


def training_free(model: ModelConfig) -> ModelConfig:
    """The matcher without training on the same backbone. Temperature and centring were chosen on the 900 pairs of
    PF-WILLOW, where temperatures from .01 to .02 differ by 0.1 PCK."""
    return replace(model, head="mean", temperature=0.01, center=True, pretrained=True)


@dataclass
class AugmentConfig:
    """Augmentation of the training pairs."""

    crop: float = 0.5
    """Probability of a random crop that keeps the object box."""
    photometric: float = 0.2
    """Probability of each photometric operation."""
    keyout: float = 0.2
    """Probability to blank each annotated point of the strong view."""
    tps: float = 0.4
    """Largest shift of a control point of the strong view's spline, in half images."""


@dataclass
class SemiConfig:
    """The semi-supervised part: pseudo labels of a clean view teach a strongly augmented one."""

    temperature: float = 0.1
    """Of the softmax behind labels and contrastive loss."""
    threshold: float = 0.5
    """Least probability of a pseudo label, 0 to 1; 0 = every label."""
    uncertainty: float = 1.5
    """A label of entropy H counts exp(-uncertainty * H); 0 = all the same."""
    forward_backward: bool = True
    """Keep only labels that lead back to where they came from."""
    weight: float | None = None
    """Weight of the contrastive loss; null = dynamic (its value is scaled to that of the supervised loss)."""
    shared_view: bool = False
    """Label from the weak view instead of a clean one: one backbone pass less."""


@dataclass
class OptimConfig:
    """AdamW and its schedule."""

    steps: int = 147_000
    """Optimiser steps."""
    batch_size: int = 10
    """Pairs a step, on each device."""
    lr: float = 3e-5
    """Learning rate of the head."""
    lr_backbone: float = 3e-6
    """Learning rate of the backbone; 0 = frozen, in evaluation mode."""
    weight_decay: float = 0.05
    """Of AdamW."""
    milestones: list[int] = field(default_factory=lambda: [44_100, 64_680])
    """Steps at which both rates are multiplied by `gamma`."""
    gamma: float = 0.5
    """See `milestones`."""


@dataclass
class RunConfig:
    """Where and how to run."""

    out: Path = Path("runs/semimatch")
    """Folder for weights, logs, results and pictures."""
    seed: int = 0
    """Of the weights, the order of the pairs and every augmentation."""
    accelerator: str = "auto"
    """Of Lightning Fabric: auto, cpu, cuda."""
    devices: int = 1
    """Devices to train on, data-parallel."""
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    """Of Lightning Fabric."""
    log_every: int = 10
    """Steps between log rows."""
    save_every: int = 500
    """Steps between checkpoints; the last step and an interrupt are always saved."""
    eval_every: int = 0
    """Steps between evaluations on the validation split; 0 = only after the last step."""
    pictures: int = 8
    """Test pairs to draw."""


@dataclass
class Config:
    """A run of `semimatch fit`."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    semi: SemiConfig = field(default_factory=SemiConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    run: RunConfig = field(default_factory=RunConfig)
    methods: list[Literal["supervised", "semimatch"]] = field(default_factory=lambda: ["semimatch"])
    """What to train, one after the other from the same start, and to report side by side."""
    init_from: Path | None = None
    """Weights to start from (weights only; optimiser and step start anew)."""

    def as_dict(self) -> dict:
        """Plain values, for YAML and JSON."""
        return _plain(asdict(self))


def _plain(value):
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return str(value) if isinstance(value, Path) else value


def check(config: Config) -> None:
    """Raise UserError that names the first setting that cannot be."""
    optim, run = config.optim, config.run
    positive = {
        "optim.steps": optim.steps, "optim.batch_size": optim.batch_size, "optim.lr": optim.lr,
        "model.temperature": config.model.temperature, "semi.temperature": config.semi.temperature,
        "model.projection": config.model.projection, "model.depth": config.model.depth,
        "model.mlp_ratio": config.model.mlp_ratio,
        "run.log_every": run.log_every, "run.save_every": run.save_every, "run.devices": run.devices,
    }  # fmt: skip
    if not 0 <= run.seed < 2**31:
        raise UserError(f"run.seed is {run.seed}; expected a whole number from 0 to 2147483647")
    for name, value in positive.items():
        if not 0 < value < math.inf:
            raise UserError(f"{name} is {value}; expected a finite number above 0")
    at_least_0 = {
        "semi.uncertainty": config.semi.uncertainty, "semi.weight": config.semi.weight,
        "optim.lr_backbone": optim.lr_backbone, "optim.weight_decay": optim.weight_decay,
        "run.eval_every": run.eval_every, "run.pictures": run.pictures, "data.willow_split": config.data.willow_split,
    }  # fmt: skip
    for name, value in at_least_0.items():
        if value is not None and not 0 <= value < math.inf:
            raise UserError(f"{name} is {value}; expected a finite number of at least 0")
    probabilities = {
        "augment.crop": config.augment.crop, "augment.photometric": config.augment.photometric,
        "augment.keyout": config.augment.keyout, "semi.threshold": config.semi.threshold,
    }  # fmt: skip
    for name, value in probabilities.items():
        if not 0 <= value <= 1:
            raise UserError(f"{name} is {value}; expected a probability, 0 to 1")
    if not config.methods or len({*config.methods}) < len(config.methods):
        raise UserError(f"methods is {config.methods}; expected supervised, semimatch or both, each once")
    if optim.milestones and min(optim.milestones) <= 0:
        raise UserError(f"optim.milestones is {optim.milestones}; expected steps above 0")
    most = max(os.cpu_count() or 1, torch.cuda.device_count())
    if run.devices > most:
        raise UserError(f"run.devices is {run.devices}; expected at most {most}, what this machine has")
    if config.model.head == "mean":
        raise UserError("model.head is 'mean', which has nothing to train; expected 'cats' (or use `semimatch eval`)")
    splits = DATASETS[config.data.name].splits
    if config.data.willow_split is not None:
        if config.data.name != "pf-willow":
            raise UserError(f"data.willow_split is set for {config.data.name}; expected only with data.name pf-willow")
        return
    if config.data.name == "pf-willow":
        raise UserError(
            "data.willow_split is null; PF-WILLOW has no training split of its own, expected a number, 0 for example"
        )
    for name in ("train", "val", "test"):
        value = getattr(config.data, name)
        if value is not None and value not in splits:
            raise UserError(f"data.{name} is {value!r}; expected one of {', '.join(splits)}")
