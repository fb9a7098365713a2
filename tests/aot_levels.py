"""What `aot` compiles of the kernels that take several levels at once, and the types of their arguments: tuples."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from semimatch_kernels.triton import configs

SQUARES = "levels.squares_kernel"
RULE = {"NORMALIZE": "added", "SCALE": "channels", "RELU": True, "POWER": 3, "NARROW": True}


def cases(capability: int) -> Iterator[dict]:
    """Fields of each `aot.Case`: the levels of a ResNet-50 at once, and one level of which nothing is known."""
    arch = configs.ARCHITECTURES[capability]

    def case(kernel: str, dtype: str, strides: tuple[str, ...], tile, even: bool, **constants) -> dict:
        return {
            "kernel": kernel, "dtype": dtype, "capability": capability, "variant": "even" if even else "odd",
            "contiguous": strides, "num_warps": tile.num_warps, "constants": tuple(constants.items()),
            "num_stages": getattr(tile, "num_stages", None), "levels": 7 if even else 1,
        }  # fmt: skip

    for (dtype, itemsize), axis in itertools.product((("fp32", 4), ("bf16", 2)), ("n", "c")):
        sides = f"src_stride_{axis}", f"trg_stride_{axis}"
        for (kind, size, tile_itemsize), tile in arch.from_features.items():
            if kind == "windowed" or tile_itemsize != itemsize or (size == "odd" and (axis == "c" or capability != 90)):
                continue
            squares = {} if size == "large" else {"squares_ptr": None}  # large grids have them from a launch before
            blocks = {"BLOCK_S": tile.kept, "BLOCK_T": tile.reduced, "BLOCK_C": tile.channels, "PARTS": tile.parts}
            kernel, strides = "correlation.correlation_kernel", sides
            if kind == "forward":
                kernel, strides = "correlation_backward.correlation_slopes_kernel", (*sides, "grad_stride_t")
            for precision in _precisions(dtype, size, axis, capability):
                fixed = {"PRECISION": precision, **RULE, **blocks, **squares}
                yield case(kernel, dtype, strides, tile, size != "odd", **fixed)
        for (size, tile_itemsize), tile in arch.products.items():
            if tile_itemsize != itemsize or size == "ieee" or (size == "odd" and (axis == "c" or capability != 90)):
                continue
            for precision, side in itertools.product(_precisions(dtype, size, axis, capability), ("cell", "term")):
                strides = f"features_stride_{axis}", f"own_stride_{axis}", f"slopes_stride_{side}"
                fixed = {"PRECISION": precision, "SCALE": "none", "NARROW": True, **tile.constants}
                kernel = "correlation_backward.correlation_product_kernel"
                yield case(kernel, dtype, strides, tile, size != "odd", **fixed)
        tile = arch.norms
        strides, blocks = (f"sides_stride_{axis}",), {"BLOCK_C": tile.channels, "BLOCK_N": tile.cells}
        yield case(SQUARES, dtype, strides, tile, True, **blocks)


def _precisions(dtype: str, size: str, axis: str, capability: int) -> tuple[str, ...]:
    if dtype != "fp32" or size.startswith("ieee"):
        return ("ieee",)
    return ("tf32x3", "tf32") if axis == "n" and capability == 90 else ("tf32x3",)


def types(name: str, case) -> tuple | None:
    """Triton's type of an argument that is a tuple over the levels, "constexpr" for a stride of 1; None for others."""
    if not case.kernel.startswith(("correlation.", "correlation_backward.", "levels.")):
        return None
    pointers, numbers = (f"*{case.dtype}",) * case.levels, ("i32",) * case.levels
    if name in ("src", "trg", "sides", "features", "own"):
        ones = ("constexpr",) * case.levels
        return (pointers, *(ones if f"{name}_stride_{axis}" in case.contiguous else numbers for axis in "bcn"))
    if name == "grads":
        return pointers
    return numbers if name == "channels" or (name == "cells" and case.kernel == SQUARES) else None


def flat(types: tuple | str, path: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], str]]:
    """(path, type) of each argument that is no tuple."""
    if isinstance(types, str):
        yield path, types
    else:
        for i, part in enumerate(types):
            yield from flat(part, (*path, i))
