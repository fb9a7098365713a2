"""For `aot`: the kernels of the mutual filter, the windowed soft-argmax, the dual softmax and the pseudo labels."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from semimatch_kernels.triton import configs, consistency


def mutual(capability: int, itemsizes: dict[str, int], variants: Sequence[str]) -> Iterator[tuple]:
    """Arguments of `aot.Case` for the mutual filter; "split" is its forward. Rows or columns contiguous."""
    arch = configs.ARCHITECTURES[capability]
    tiles = [("split", tile) for tile in (arch.sides["small"], arch.mutual)]
    tiles += [(variant, arch.mutual) for variant in variants if variant != "split"]
    for dtype, (variant, tile), side in itertools.product(itemsizes, tiles, ("row", "column")):
        block = (tile.cells, tile.channels) if side == "row" else (tile.channels, tile.cells)
        sizes, strides = (("BLOCK_R", block[0]), ("BLOCK_C", block[1])), (f"stride_{side}",)
        fixed = (("HAS_EPS", variant == "odd"), *sizes)
        if variant == "split":
            yield "mutual.maxima_kernel", dtype, capability, "even", strides, tile.num_warps, sizes
            strides += ("grad_b", "grad_level", "grad_row", "grad_column")
        yield "mutual.filter_kernel", dtype, capability, variant, strides, tile.num_warps, fixed
    for name in ("merge_maxima_kernel", "take_from_maxima_kernel"):
        sizes = (("BLOCK", arch.mutual.cells),)
        yield f"mutual.{name}", "fp32", capability, "even", (), arch.mutual.num_warps, sizes


def compilations(capability: int, itemsizes: dict[str, int], variants: Sequence[str]) -> Iterator[tuple]:
    """Arguments of `aot.Case`."""
    arch = configs.ARCHITECTURES[capability]
    yield from mutual(capability, itemsizes, variants)
    merge = arch.merge
    blocks = {"BLOCK_PARTS": merge.reduced, "BLOCK": merge.kept}

    def case(kernel: str, dtype: str, variant: str, contiguous: tuple[str, ...], num_warps: int, **constants) -> tuple:
        return kernel, dtype, capability, variant, contiguous, num_warps, tuple(constants.items())

    for variant in variants:
        odd = variant == "odd"
        for dtype, itemsize in itemsizes.items():
            for (reduced_fast, size, of), tile in arch.forward.items():
                if of != itemsize:
                    continue
                stride = ("stride_r" if reduced_fast else "stride_k",)
                sizes = {"REDUCED_FAST": reduced_fast, "BLOCK_R": tile.reduced, "BLOCK_K": tile.kept}
                sizes["UNROLL"] = tile.unroll
                if variant == "split":
                    continue
                if size == "large":
                    yield case("best_cell.best_cell_kernel", dtype, variant, stride, tile.num_warps, **sizes)
                yield case(
                    "window.window_fwd_kernel", dtype, variant, stride, tile.num_warps, GAUSSIAN=not odd, **sizes
                )  # fmt: skip
            for (reduced_fast, _, of), tile in arch.backward.items():
                if of != itemsize:
                    continue
                side = "r" if reduced_fast else "k"
                for exclude in (False, True) if variant != "split" else ():
                    yield case(
                        "window.window_bwd_kernel", dtype, variant, (f"stride_{side}", f"grad_stride_{side}"),
                        tile.num_warps, GAUSSIAN=not exclude and not odd, EXCLUDE=exclude, REDUCED_FAST=reduced_fast,
                        BLOCK_R=tile.reduced, BLOCK_K=tile.kept,
                    )  # fmt: skip
            for side in ("row", "column"):
                stride = f"stride_{side}"
                for tile in arch.sides.values():
                    sizes = {"BLOCK_R": tile.cells, "BLOCK_C": tile.channels}
                    if side == "column":
                        sizes = {"BLOCK_R": tile.channels, "BLOCK_C": tile.cells}
                    if variant != "split":
                        kernel = "statistics.tile_statistics_kernel"
                        yield case(kernel, dtype, variant, (stride,), tile.num_warps, **sizes)
                    if tile is not arch.sides["small"]:
                        continue
                    if variant != "split":
                        yield case("dual.dual_fwd_kernel", dtype, variant, (stride,), tile.num_warps, LOG=odd, **sizes)
                    strides = (stride, f"grad_{side}", *(() if variant == "split" else (f"out_stride_{side}",)))
                    yield case("dual.dual_bwd_kernel", dtype, variant, strides, tile.num_warps, LOG=odd, **sizes)
            if variant != "split":
                yield case(
                    "window.square_fwd_kernel", dtype, variant, ("stride_k",), merge.num_warps,
                    BLOCK_R=merge.reduced, BLOCK_K=merge.kept,
                )  # fmt: skip
            if odd or dtype == "fp32":  # it reads entries with eps only
                yield case(
                    "pseudo_labels.labels_kernel", dtype, variant, ("stride_t",), consistency.OPTIONS["num_warps"],
                    EPS=odd, BILINEAR=not odd, BLOCK_S=arch.sides["small"].cells, **blocks,
                )  # fmt: skip
        if variant != "split":
            yield case("dual.merge_lines_kernel", "fp32", variant, (), merge.num_warps, **blocks)
            yield case(
                "consistency.forward_backward_kernel", "fp32", variant, (), 4, BILINEAR=not odd, BLOCK=consistency.BLOCK
            )  # fmt: skip
