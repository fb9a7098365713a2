"""Argument checks shared by the public functions: every message names the argument, what it was and what was
expected."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
PER = ("target", "source", "both")
REDUCTIONS = ("none", "sum", "mean")

Grid = tuple[int, int]


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype sums are taken in, and the dtype of every statistic: fp64 for fp64, else fp32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def describe(value: object) -> str:
    """A short text of an argument for error messages: shape and dtype of a tensor or array, else its repr."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)} and dtype {value.dtype}"
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{type(value).__name__} of shape {tuple(value.shape)} and dtype {value.dtype}, which is no torch.Tensor"
    if isinstance(value, (list, tuple)) and any(isinstance(v, Tensor) for v in value):
        return f"a {type(value).__name__} of {len(value)} tensors"
    text = repr(value)
    if isinstance(value, (list, tuple)) and len(text) > 200:  # features as nested lists are megabytes of digits
        return f"a {type(value).__name__} of length {len(value)}"
    return f"{text} ({type(value).__name__})"


def check_corr(corr: object, name: str = "corr", leading: str = "B") -> Tensor:
    """A correlation [B,S,T] (or [...,S,T] with ``leading='...'``) of a floating dtype and at least one cell on each
    side."""
    if not isinstance(corr, Tensor):
        raise TypeError(f"{name}: expected a tensor [{leading},S,T], got {describe(corr)}")
    if corr.layout != torch.strided:
        raise TypeError(f"{name}: expected a dense tensor, got one of layout {corr.layout}")
    if corr.dtype not in FLOATS:
        raise TypeError(f"{name}: expected dtype float32, bfloat16, float16 or float64, got {corr.dtype}")
    if (corr.dim() != 3) if leading == "B" else (corr.dim() < 2):
        raise ValueError(f"{name}: expected shape [{leading},S,T] (source x target), got {tuple(corr.shape)}")
    return corr


def check_count(value: object, name: str, least: int = 0) -> int:
    """A whole number (Python's or NumPy's, not a bool) of at least ``least``; a symbolic size of a graph passes."""
    if isinstance(value, (bool, Tensor)) or not hasattr(value, "__index__"):
        raise TypeError(f"{name}: expected a whole number, got {describe(value)}")
    if value < least:
        raise ValueError(f"{name}: expected at least {least}, got {value!r}")
    return value if isinstance(value, (int, torch.SymInt)) else int(value)


def check_grid(grid: object, cells: int | None, name: str = "grid", side: str = "source") -> Grid:
    """``grid`` = (H, W), at least one cell; H*W equal to the number of ``cells`` of ``side`` if given."""
    if type(grid) is tuple and len(grid) == 2:  # the ordinary case first: what follows is a third of a small op's time
        height, width = grid
        if type(height) is int and type(width) is int and height > 0 and width > 0 and height * width == cells:
            return grid
    if not isinstance(grid, Sequence) or isinstance(grid, str) or len(grid) != 2:
        raise TypeError(f"{name}: expected (H, W) of the {side} side, got {describe(grid)}")
    if any(isinstance(n, Sequence) for n in grid):
        raise TypeError(f"{name}: expected two integers (H, W) of the {side} side, got {grid!r}")
    height, width = check_count(grid[0], f"{name}[0]", 1), check_count(grid[1], f"{name}[1]", 1)
    if cells is not None and height * width != cells:
        raise ValueError(
            f"{name}: (H, W) = ({height}, {width}) has {height * width} cells, "
            f"but the {side} side of the correlation has {cells} (H*W must equal it)"
        )
    return height, width


def check_grids(grid: object, sources: int, targets: int, name: str = "grid") -> tuple[Grid, Grid]:
    """``grid`` = ((H, W) of the source, (H, W) of the target), as per='both' takes it."""
    if not isinstance(grid, Sequence) or len(grid) != 2 or not all(isinstance(g, Sequence) for g in grid):
        raise TypeError(f"{name}: expected (source grid, target grid), each (H, W), got {grid!r}")
    return check_grid(grid[0], sources, f"{name}[0]", "source"), check_grid(grid[1], targets, f"{name}[1]", "target")


def check_number(value: object, name: str, least: float = -math.inf) -> float:
    """A finite number (Python's or NumPy's) of at least ``least``; not a tensor, as it carries no gradient."""
    if type(value) is not float and (isinstance(value, bool) or not isinstance(value, Real)):
        raise TypeError(f"{name}: expected a number (it is not differentiable), got {describe(value)}")
    value = float(value)  # NumPy's compare in their own precision
    # By comparison, which NaN fails: torch.compile cannot trace math.isfinite of a float that it takes for dynamic.
    if not (least <= value <= 1.7976931348623157e308 and value >= -1.7976931348623157e308):
        bound = f" of at least {least:g}" if least > -1.7976931348623157e308 else ""
        raise ValueError(f"{name}: expected a finite number{bound}, got {value!r}")
    return value


def check_sigma(sigma: object) -> float:
    """Width of a Gaussian in cells, above zero, whose square is an ordinary float32."""
    value = check_number(sigma, "sigma")
    if not 1e-12 <= value <= 1e12:
        raise ValueError(f"sigma: expected a number of cells above 0, from 1e-12 to 1e12, got {sigma!r}")
    return value


def check_temperature(temperature: object) -> float:
    """A number above zero that the scores are divided by."""
    value = check_number(temperature, "temperature")
    # Beyond these bounds the quotient of an ordinary score leaves the range of float32. Literals: torch.compile takes a
    # global float for a dynamic one.
    if not 1e-30 <= value <= 1e30:
        raise ValueError(
            "temperature: expected a number above 0, from 1e-30 to 1e30 (scores are divided by it), "
            f"got {temperature!r}"
        )
    return value


def check_flag(value: object, name: str) -> bool:
    """True or False: a number or a text in its place is a mistake."""
    if not isinstance(value, bool):
        raise TypeError(f"{name}: expected True or False, got {describe(value)}")
    return value


def check_choice(value: object, name: str, choices: Sequence[str]) -> str:
    """One of ``choices``."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, choices))}, got {value!r}")
    return value  # type: ignore[return-value]


def check_shape(
    value: object, name: str, shape: tuple[int, ...], dtypes: Sequence[torch.dtype] | None = None
) -> Tensor:
    """A tensor of exactly ``shape``, and of one of ``dtypes`` if given."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a tensor of shape {shape}, got {describe(value)}")
    if tuple(value.shape) != shape:
        raise ValueError(f"{name}: expected shape {shape}, got {tuple(value.shape)}")
    if dtypes is not None and value.dtype not in dtypes:
        raise TypeError(f"{name}: expected dtype {' or '.join(str(d) for d in dtypes)}, got {value.dtype}")
    return value


def check_device(value: Tensor, name: str, like: Tensor, like_name: str) -> None:
    """``value`` must lie on the device of ``like``."""
    if value.device != like.device:
        raise ValueError(f"{name}: is on {value.device}, but {like_name} is on {like.device}; move one of them")


def check_features(src: object, trg: object, names: tuple[str, str] = ("src", "trg")) -> None:
    """Two feature maps [B,C,*grid] with the same B, C, dtype and device."""
    for value, name in zip((src, trg), names, strict=True):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name}: expected features [B,C,*grid], got {describe(value)}")
        if value.dim() < 3:
            raise ValueError(
                f"{name}: expected features [B,C,*grid] with at least 3 dimensions, got {tuple(value.shape)}"
            )
        if value.dtype not in FLOATS:
            raise TypeError(f"{name}: expected dtype float32, bfloat16, float16 or float64, got {value.dtype}")
        if value.shape[1] < 1 or 0 in value.shape[2:]:
            raise ValueError(f"{name}: expected at least one channel and one cell, got shape {tuple(value.shape)}")
    if src.shape[:2] != trg.shape[:2]:
        raise ValueError(
            f"{names[0]} and {names[1]}: expected the same batch and channels [B,C,*grid] (tokens [B,N,C] need .mT), "
            f"got {tuple(src.shape)} and {tuple(trg.shape)}"
        )
    if src.dtype != trg.dtype:
        raise TypeError(f"{names[0]} and {names[1]}: expected one dtype, got {src.dtype} and {trg.dtype}")
    check_device(trg, names[1], src, names[0])


def check_nonempty(corr: Tensor, name: str = "corr") -> None:
    """A match needs a cell to match to: both sides hold at least one cell (B may be 0)."""
    if corr.shape[-1] < 1 or corr.shape[-2] < 1:
        raise ValueError(f"{name}: expected at least one source and one target cell, got shape {tuple(corr.shape)}")


def check_normalize(normalize: object, eps: object) -> tuple[str, float]:
    """How features are normalised, as the ops have it: "none", "inside", "added" or "clamped"; and eps."""
    if isinstance(normalize, bool):
        normalize = "inside" if normalize else "none"
    elif normalize not in ("inside", "added", "clamped"):
        raise ValueError(f"normalize: expected True, False, 'inside', 'added' or 'clamped', got {normalize!r}")
    return normalize, check_number(eps, "eps", 0)


def check_mask(mask: object, name: str, shape: tuple[int, ...], like: Tensor, like_name: str) -> Tensor | None:
    """None, or a bool tensor of ``shape`` on the device of ``like``."""
    if mask is not None:
        check_device(check_shape(mask, name, shape, (torch.bool,)), name, like, like_name)
    return mask  # type: ignore[return-value]


def check_equal_grids(grid: object, sources: int, targets: int) -> tuple[Grid, Grid]:
    """(source grid, target grid) from that pair, or from the one (H, W) that both sides have."""
    if isinstance(grid, Sequence) and not any(isinstance(g, Sequence) for g in grid):
        grid = (grid, grid)
    return check_grids(grid, sources, targets)
