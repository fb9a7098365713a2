"""Ahead-of-time compilation of the Triton kernels, for GPUs that need not be there, and what the code needs.

Run as a program (``python aot.py 80 90``) it compiles every kernel in every shipped configuration and prints
a list of `Compiled` as JSON. A process whose kernels are interpreted cannot compile them, hence a program.
"""

from __future__ import annotations

import importlib
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import aot_levels
import aot_sides

from semimatch_kernels.triton import configs

ITEMSIZE = {"fp32": 4, "bf16": 2}
# What the kernels that multiply features are compiled for too, where that can differ: the largest tiles of one
# architecture, sizes that are multiples of 16.
HALF = "fp16"

#: The instructions that multiply matrices, of warps, of warp groups and of the fifth generation: in PTX, and in
#: machine code, looked at in some cases only: taking it apart costs as much as the compilation.
TENSOR_CORES = {"mma.sync": "HMMA", "wgmma.mma": "HGMMA", "tcgen05.mma": "UTCHMMA"}

#: Arguments that are sizes, which are multiples of 16 in some variants.
SIZES = (
    "reduced", "kept", "rows", "columns", "channels", "cells", "terms", "all_cells", "here", "entries",
    "sources", "targets", "own_cells", "longest",
)  # fmt: skip
#: Arguments that are real numbers.
REALS = ("temperature", "scale", "eps", "sigma_scale", "window", "scale_x", "scale_y")
REALS += ("alpha1", "alpha2", "threshold", "uncertainty")

#: Modules whose kernels are compiled without fused multiply-add.
UNFUSED = ("consistency", "pseudo_labels")

#: Bytes of shared memory that a block may use, by compute capability.
SHARED_LIMIT = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10}

# fmt: off
#: The kernels that take a tile of each kind from `configs.Architecture.from_features`.
FROM_FEATURES = {
    "forward": (
        "match_features.match_features_fwd_kernel", "contrastive_features.contrastive_features_fwd_kernel",
        "window_features.best_features_kernel",
    ),
    "windowed": ("window_features.window_features_fwd_kernel",),
    "slopes": (
        "match_features.match_features_slopes_kernel", "contrastive_features.contrastive_features_slopes_kernel",
        "window_features.window_features_slopes_kernel",
    ),
}

# fmt: on
#: "even": sizes and strides are multiples of 16, the reduced side is not split, every gradient is there.
#: "split": it is split, and only the gradient of coords is there. "odd": as "even", but nothing is known of sizes
#: and strides. The last two are compiled for one architecture, to save time.
VARIANTS = {80: ("even",), 90: ("even", "split", "odd"), 100: ("even",)}

#: Bytes of stack that a thread may have. For sm_100 some versions of Triton's ptxas put two registers there to
#: reach the next step of occupancy.
STACK_LIMIT = {80: 0, 90: 0, 100: 8}


@dataclass(frozen=True)
class Case:
    """One compilation."""

    kernel: str  #: module.name under semimatch_kernels.triton
    dtype: str  #: of the correlation, as Triton names it
    capability: int
    variant: str
    contiguous: tuple[str, ...]  #: the strides that are 1
    num_warps: int
    constants: tuple[tuple[str, int | str | None], ...]
    num_stages: int | None = None  #: None = Triton's default
    levels: int = 1  #: in a kernel of `levels.side_of`

    def __str__(self) -> str:
        constants = ", ".join(f"{n}={int(v) if isinstance(v, int) else v}" for n, v in self.constants)
        layout = " ".join(self.contiguous) + (f"; {self.levels} levels" if self.levels > 1 else "")
        return f"{self.kernel} {self.dtype} sm_{self.capability} {self.variant} ({constants}; {layout})"


@dataclass(frozen=True)
class Compiled:
    """A case by its text, and what its cubin needs."""

    case: str
    capability: int
    variant: str
    registers: int  #: of a thread
    stack: int  #: bytes of a thread: spilled registers
    local: int  #: bytes of local memory of a thread
    shared: int  #: bytes of a block
    load_bytes: int  #: of the widest load of entries from global memory
    fused: bool  #: whether the PTX has fused multiply-add
    products: str  #: the instruction of the tensor cores, a key of `TENSOR_CORES`; "" if there is none


def cases(capability: int) -> list[Case]:
    """Every kernel in every configuration that is shipped for one architecture, each once."""
    return list(dict.fromkeys(_cases(capability)))


def _cases(capability: int) -> Iterator[Case]:
    arch = configs.ARCHITECTURES[capability]

    def case(kernel: str, dtype: str, contiguous: tuple[str, ...], num_warps: int, **constants: int) -> Iterator[Case]:
        variants = VARIANTS[capability]
        if kernel in ("match_both.match_both_bwd_kernel", "online_softmax.merge_partials_kernel"):
            variants = tuple(variant for variant in variants if variant != "split")  # the same as "even"
        for variant in variants:
            yield Case(kernel, dtype, capability, variant, contiguous, num_warps, tuple(constants.items()))

    for dtype, itemsize in ITEMSIZE.items():
        for (reduced_fast, _, tile_itemsize), tile in arch.forward.items():
            if tile_itemsize == itemsize:
                stride = "stride_r" if reduced_fast else "stride_k"
                yield from case(
                    "match_one.match_fwd_kernel", dtype, (stride,), tile.num_warps,
                    REDUCED_FAST=reduced_fast, BLOCK_R=tile.reduced, BLOCK_K=tile.kept, UNROLL=tile.unroll,
                )  # fmt: skip
        for (reduced_fast, _, tile_itemsize), tile in arch.backward.items():
            if tile_itemsize == itemsize:
                stride = "stride_r" if reduced_fast else "stride_k"
                yield from case(
                    "match_one.match_bwd_kernel", dtype, (stride, f"grad_{stride}"), tile.num_warps,
                    REDUCED_FAST=reduced_fast, BLOCK_R=tile.reduced, BLOCK_K=tile.kept,
                )  # fmt: skip
        forward = arch.both_forward
        for width in (16, 15):  # a grid whose rows can be cut into vectors, and one whose rows cannot
            vector = configs.row_vector(forward, width, itemsize)
            for made in case(
                "match_both.match_both_fwd_kernel", dtype, ("stride_column",), forward.num_warps,
                ROWS=forward.rows, BLOCK_R=forward.block_rows, BLOCK_C=forward.block_columns,
                UNROLL=forward.unroll, VECTOR=vector, ROW_UNROLL=forward.row_step // vector,
            ):  # fmt: skip
                if width == 16 or made.variant == "odd":
                    yield made
        backward = arch.both_backward
        yield from case(
            "match_both.match_both_sides_kernel", dtype, ("stride_column",), backward.num_warps,
            BLOCK=backward.side_cells,
        )  # fmt: skip
        yield from case(
            "match_both.match_both_bwd_kernel", dtype, ("stride_column",), backward.num_warps,
            BLOCK_R=backward.block_rows, BLOCK_C=backward.block_columns,
        )  # fmt: skip
    yield from _from_correlation(capability)
    yield from _from_features(capability)
    yield from (Case(**fields) for fields in aot_levels.cases(capability))
    yield from (Case(*arguments) for arguments in aot_sides.compilations(capability, ITEMSIZE, VARIANTS[capability]))
    merge = arch.merge
    yield from case(
        "online_softmax.merge_partials_kernel", "fp32", (), merge.num_warps,
        BLOCK_PARTS=merge.reduced, BLOCK_K=merge.kept,
    )  # fmt: skip


def _from_correlation(capability: int) -> Iterator[Case]:
    """The kernels of the contrastive loss that read a correlation."""
    arch = configs.ARCHITECTURES[capability]
    for dtype, itemsize in ITEMSIZE.items():
        for name, tiles in (("fwd", arch.forward), ("bwd", arch.backward)):
            for (reduced_fast, _, tile_itemsize), tile in tiles.items():
                if tile_itemsize != itemsize:
                    continue
                stride = "stride_r" if reduced_fast else "stride_k"
                strides = (stride,) if name == "fwd" else (stride, f"grad_{stride}")
                constants = {"REDUCED_FAST": reduced_fast, "BLOCK_R": tile.reduced, "BLOCK_K": tile.kept}
                if name == "fwd":
                    constants["UNROLL"] = tile.unroll
                for variant in VARIANTS[capability]:
                    if name == "fwd" or variant != "split":  # "split" is the same as "even"
                        smooth = variant == "odd"
                        fixed = (*constants.items(), ("SMOOTH", smooth))
                        kernel = f"contrastive.contrastive_{name}_kernel"
                        yield Case(kernel, dtype, capability, variant, strides, tile.num_warps, fixed)
        yield Case("loss.goal_norms_kernel", dtype, capability, "even", (), 4, (("BLOCK_K", arch.merge.kept),))
        for variant in VARIANTS[capability]:
            sizes = {"BLOCK_PARTS": arch.merge.reduced, "BLOCK_K": arch.merge.kept, "SMOOTH": variant == "odd"}
            yield Case("loss.merge_losses_kernel", dtype, capability, variant, (), 4, tuple(sizes.items()))


def _from_features(capability: int) -> Iterator[Case]:
    """The kernels that read features: cells contiguous, as a backbone gives them, or channels."""
    arch = configs.ARCHITECTURES[capability]

    def case(
        kernel: str, dtype: str, contiguous: tuple[str, ...], tile, odd: bool | None = None, **constants: int | str
    ) -> Iterator[Case]:  # fmt: skip
        variants = ("odd",) if odd else VARIANTS[capability]
        for variant in variants:
            if variant == "split" and (not ("fwd" in kernel or "slopes" in kernel) or "window" in kernel):
                continue  # the same as "even"
            if variant == "odd" and odd is False:
                continue
            stages = getattr(tile, "num_stages", None)
            yield Case(kernel, dtype, capability, variant, contiguous, tile.num_warps, tuple(constants.items()), stages)

    # Whether to compile for sizes and strides of which nothing is known: only that, that too, or never.
    odd = {"odd": True, "ieee": None}

    def precisions(dtype: str, axis: str, size: str) -> tuple[str, ...]:
        if dtype != "fp32" or size == "ieee":
            return ("ieee",)
        return ("tf32x3", "tf32") if axis == "n" and capability == 90 else ("tf32x3",)

    def products(dtype: str, itemsize: int, axis: str, sizes: tuple[str, ...]) -> Iterator[Case]:
        strides = f"kept_stride_{axis}", f"reduced_stride_{axis}"
        for (kind, size, tile_itemsize), tile in arch.from_features.items():
            if tile_itemsize != itemsize or size not in sizes or (size == "ieee" and axis == "c" and capability != 90):
                continue
            for precision, kernel in itertools.product(precisions(dtype, axis, size), FROM_FEATURES[kind]):
                fixed = {"PRECISION": precision, "NARROW": True, **tile.constants}
                smooth = {"SMOOTH": False} if "contrastive" in kernel else {}
                if "window_features_" in kernel:
                    if axis == "c" and capability != 90:
                        continue  # to save time
                    fixed |= {"GAUSSIAN": size != "odd", "EXCLUDE": size == "odd"}
                yield from case(kernel, dtype, strides, tile, odd.get(size, False), **smooth, **fixed)
                if smooth and size in ("odd", "ieee"):  # the tiles of smoothed labels too
                    yield from case(kernel, dtype, strides, tile, True, SMOOTH=True, **fixed)
        for (size, tile_itemsize), tile in arch.products.items():
            if tile_itemsize != itemsize or not (size in sizes or (size == "even" and "large" in sizes)):
                continue
            for precision, accumulate in itertools.product(precisions(dtype, axis, size), (False, True)):
                # The gradient of the kept side takes slopes along their columns; that of the other along rows.
                strides = f"stride_{axis}", f"slopes_stride_{'cell' if accumulate else 'term'}"
                yield from case(
                    "features.product_kernel", dtype, strides, tile, odd.get(size, False),
                    PRECISION=precision, ACCUMULATE=accumulate, NARROW=True, **tile.constants,
                )  # fmt: skip

    if capability == 90:
        yield from (c for c in products(HALF, 2, "n", ("large",)) if c.variant == "even")
    for dtype, itemsize in ITEMSIZE.items():
        for axis in ("n", "c"):
            yield from products(dtype, itemsize, axis, ("small", "large", "odd", "ieee"))
            tile = arch.norms
            sizes = {"BLOCK_C": tile.channels, "BLOCK_N": tile.cells}
            for normalize in ("inside", "added", "clamped"):
                yield from case("norms.factors_kernel", dtype, (f"stride_{axis}",), tile, NORMALIZE=normalize, **sizes)
            yield from case("norms.chain_kernel", dtype, (f"stride_{axis}",), tile, **sizes)


def argument_type(name: str, dtype: str) -> str:
    """Triton's name of a kernel argument's type, which follows from the argument's name."""
    entries = ("kept_ptr", "reduced_ptr", "features_ptr", "slopes_ptr", "features_grad_ptr", "entries_ptr")
    if name.endswith("corr_ptr") or name in entries:
        return f"*{dtype}"
    if name.endswith("mask_ptr"):
        return "*u8"
    if name == "part_index_ptr":
        return "*i32"
    if name == "valid_ptr":
        return "*i8"
    if name in ("labels_ptr", "count_ptr", "cell_ptr"):
        return "*i64"
    if name.endswith(("partial_index_ptr", "side_index_ptr")):
        return "*i32"
    if name.endswith("index_ptr"):
        return "*i64"
    if name.endswith("_ptr"):
        return "*fp32"
    return "fp32" if name in REALS else "i32"


def absent(arguments: list[str], case: Case) -> list[str]:
    """The pointers of a kernel that are None in a case."""
    fixed = dict(case.constants)
    without = [] if fixed.get("SMOOTH", True) else ["norms_ptr"]
    if not fixed.get("ACCUMULATE", True):  # without a mask; the other with
        without.append("there_ptr")
    return [name for name in arguments if name in without] + _absent(arguments, case.variant)


def _absent(arguments: list[str], variant: str) -> list[str]:
    if variant == "split":
        ends = ("score_ptr", "entropy_ptr", "logsumexp_ptr")
        forward = ("filtered_grad_ptr", "row_sum_ptr", "column_sum_ptr")  # of a kernel that serves both
        if "dual_grad_ptr" in arguments:  # its first pass
            forward = ("grad_corr_ptr",)
        if "source_best_ptr" in arguments:  # nothing but what has to be there
            forward = [n for n in arguments if n.startswith(("source_", "target_box", "cell", "valid")) and "_ptr" in n]
        return [n for n in arguments if (n.startswith("grad_") and n.endswith(ends)) or n in forward]
    names = ("kept_mask_ptr", "reduced_mask_ptr", "gain_ptr")
    if "filtered_grad_ptr" in arguments:  # backward
        return [f"{side}_{n}" for side in ("row", "column") for n in ("index_ptr", "partial_index_ptr")]
    if "splits" in arguments:
        names += ("partial_ptr", "partial_index_ptr")
    return [name for name in arguments if name.removeprefix("row_") in names]


def compile_case(case: Case) -> Compiled:
    """Compile one case as the launchers would have it compiled, and read what the cubin needs."""
    import triton
    import triton.language as tl
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from semimatch_kernels.triton.launch import options

    module, _, name = case.kernel.partition(".")
    kernel = getattr(importlib.import_module(f"semimatch_kernels.triton.{module}"), name)
    dots = {"fp32": tl.float32, "bf16": tl.bfloat16, "fp16": tl.float16}
    constants = dict(case.constants)
    constants.update((stride, 1) for stride in case.contiguous if stride in kernel.arg_names)
    if "ACC" in kernel.arg_names:
        constants["ACC"] = tl.float32
    if "DOT" in kernel.arg_names:
        constants["DOT"] = dots[case.dtype]
    constants.update(dict.fromkeys(absent(kernel.arg_names, case)))
    signature, attributes, values = {}, {}, {}
    for i, (argument, parameter) in enumerate(zip(kernel.arg_names, kernel.params, strict=True)):
        if argument in constants:
            signature[argument], values[(i,)] = "constexpr", constants.pop(argument)
            continue
        types = aot_levels.types(argument, case)
        if types is not None:
            signature[argument] = types
            for path, kind in aot_levels.flat(types, (i,)):
                if kind == "constexpr":
                    values[path] = 1
                elif case.variant != "odd" or kind.startswith("*"):
                    attributes[path] = [["tt.divisibility", 16]]
            continue
        signature[argument] = argument_type(argument, case.dtype)
        size = "stride" in argument or argument in SIZES
        known = argument.endswith(("_per_program", "_ptr")) or (size and case.variant != "odd")
        if known and not parameter.do_not_specialize:
            attributes[(i,)] = [["tt.divisibility", 16]]
    assert not constants, f"{case}: no argument {list(constants)}"
    compiled = triton.compile(
        ASTSource(kernel, signature, values, attributes),
        target=GPUTarget("cuda", case.capability, 32),
        options=options(case.num_warps)
        | ({"num_stages": case.num_stages} if case.num_stages else {})
        | ({"enable_fp_fusion": False} if module in UNFUSED else {}),
    )
    return inspect_code(case, compiled.asm["ptx"], compiled.asm["cubin"], compiled.metadata.shared)


def inspect_code(case: Case, ptx: str, cubin: bytes, shared: int) -> Compiled:
    """What a cubin needs, by the cuobjdump that Triton brings, and the widest load in its PTX."""
    import triton

    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        commands = [tools / "cuobjdump", "--dump-resource-usage", file.name], [tools / "nvdisasm", file.name]
        text = subprocess.run(commands[0], capture_output=True, text=True, check=True).stdout
        products = next((name for name in TENSOR_CORES if name in ptx), "")
        if products and (case.dtype == HALF or "tf32" in dict(case.constants).values()):
            code = subprocess.run(commands[1], capture_output=True, text=True, check=True).stdout
            products = products if re.search(rf"\b{TENSOR_CORES[products]}\b", code) else ""
    found = {key: int(value) for key, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", text)}
    # Not the 64-bit ones: those load indices.
    loads = re.findall(r"\bld\.global(?:\.[\w:]+)*?(?:\.v(\d))?\.[bfsu](16|32)\b", ptx)
    widths = [int(count or 1) * int(bits) // 8 for count, bits in loads]
    widths += (int(width, 0) for width in re.findall(r"\bcp\.async\.c[ag]\.shared\.global[^;]*\], (0x\w+|\d+)", ptx))
    return Compiled(
        case=str(case),
        capability=case.capability,
        variant=case.variant,
        registers=found["REG"],
        stack=found["STACK"],
        local=found["LOCAL"],
        shared=shared,
        load_bytes=max(widths, default=0),
        fused="fma." in ptx,
        products=products,
    )


def main(capabilities: list[int]) -> None:
    work = [case for capability in capabilities for case in cases(capability)]
    with ProcessPoolExecutor(max_workers=os.cpu_count()) as pool:
        json.dump([asdict(compiled) for compiled in pool.map(compile_case, work)], sys.stdout)


if __name__ == "__main__":
    main([int(argument) for argument in sys.argv[1:]])
