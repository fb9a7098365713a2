"""The groups that are measured: an op at a shape in a dtype, in up to three phases; and in which order."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from .costs import Shape
from .subjects import SUBJECTS, Subject

PHASES = ("forward", "backward", "forward+backward")
PHASES_CPU = ("forward", "forward+backward")  # `make bench` has five minutes
DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16}

#: SemiMatch's own size and levels; 32^2 cells as in CATs++; 64^2 and 128^2 cells; 256^2 from features alone.
SEMIMATCH = Shape(10, 256, (256, *[1024] * 6))
MATRIX = {
    "semimatch": SEMIMATCH,
    "n1024": Shape(8, 1024, (1024,)),
    "n4096": Shape(8, 4096, (768,)),
    "n16384": Shape(1, 16384, (768,)),
}
FEATURES = {
    "semimatch": Shape(10, 256, (1024,)),
    "n1024": Shape(8, 1024, (1024,)),
    "n4096": Shape(8, 4096, (1024,)),
    "n4096 single": Shape(1, 4096, (1024,)),
    "n16384": Shape(1, 16384, (1024,)),
    "n65536": Shape(1, 65536, (256,)),
}
# A CPU core does in a minute what a GPU does in milliseconds.
MATRIX_CPU = {"n256": replace(SEMIMATCH, batch=8), "n1024": Shape(8, 1024, (256,))}
FEATURES_CPU = {"n1024 single": Shape(1, 1024, (256,)), "n4096 single": Shape(1, 4096, (256,))}

#: Shape and dtype of each op that the project has set itself a goal for: measured first, in this order.
GOALS = {
    "match_features": ("n4096", "bf16"),
    "masked_contrastive_loss_features": ("n4096", "bf16"),
    "match": ("n4096", "fp32"),
    "match_both": ("n4096", "fp32"),
    "pseudo_labels": ("semimatch", "fp32"),
    "mutual_filter": ("semimatch", "fp32"),
    "correlation": ("semimatch", "fp32"),
}


@dataclass(frozen=True)
class Group:
    """What is measured on the same inputs."""

    subject: Subject
    shape_name: str
    shape: Shape
    dtype_name: str
    differentiable: tuple[str, ...] = PHASES

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.dtype_name]

    @property
    def goal(self) -> bool:
        return GOALS.get(self.subject.name) == (self.shape_name, self.dtype_name)

    @property
    def phases(self) -> tuple[str, ...]:
        return self.differentiable if self.subject.differentiable else PHASES[:1]

    def __str__(self) -> str:
        return f"{self.subject.name}-{self.shape_name}-{self.dtype_name}".replace(" ", "_")


def groups(cuda: bool) -> list[Group]:
    """All groups of this kind of device, those with a goal first: a run may have a limit of time."""
    found, phases = [], PHASES if cuda else PHASES_CPU
    for subject in SUBJECTS:
        from_features = subject.op.endswith("_features")
        shapes = (FEATURES if from_features else MATRIX) if cuda else FEATURES_CPU if from_features else MATRIX_CPU
        for name, shape in shapes.items():
            if not cuda:
                dtypes = ["fp32", "bf16"] if name == "n256" else ["fp32"]
            elif name == "n65536":
                dtypes = ["bf16"]
            else:
                dtypes = ["fp32", "tf32", "bf16"] if subject.product else ["fp32", "bf16"]
            found += [Group(subject, name, replace(shape, width=DTYPES[d].itemsize), d, phases) for d in dtypes]
    order = {name: i for i, name in enumerate(GOALS)}
    return sorted(found, key=lambda g: order[g.subject.name] if g.goal else len(GOALS))


@contextlib.contextmanager
def precision(dtype_name: str) -> Iterator[None]:
    """Products of float32 in tf32 or not, as PyTorch's own setting has it."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if dtype_name == "tf32" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
