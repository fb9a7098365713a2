"""Ahead-of-time compilation of the Triton kernels for GPUs that are not there: registers, spills, shared memory as JSON.

Run as a program (``python aot.py 80 90``) it compiles every kernel in every shipped configuration and prints a list of
`Compiled`. It must not run in a process whose kernels are interpreted, hence the program: the tests start it once.
"""

from __future__ import annotations

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

from semimatch_kernels.triton import configs

DTYPES = {"fp32": 4, "bf16": 2}
#: bytes of shared memory that a thread block may use
SHARED_LIMIT = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10}
VARIANTS = ("even", "odd")


@dataclass(frozen=True)
class Case:
    """One compilation: a kernel (module.name under semimatch_kernels.triton) with its constants."""

    kernel: str
    dtype: str  #: of the correlation
    capability: int
    variant: str  #: "even": sizes and strides are multiples of 16, as usual; "odd": nothing is known of them
    fast: str  #: the stride that is 1
    num_warps: int
    constants: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Compiled:
    """A case and what the cubin needs."""

    case: Case
    registers: int
    stack: int  #: bytes of stack a thread: spilled registers
    local: int  #: bytes of local memory a thread
    shared: int  #: bytes of shared memory a block


def cases(capability: int) -> Iterator[Case]:
    """Every kernel in every configuration shipped for one architecture."""
    arch = configs.ARCHITECTURES[capability]
    seen: set[Case] = set()

    def case(kernel: str, dtype: str, fast: str, num_warps: int, **constants: int) -> Iterator[Case]:
        for variant in VARIANTS:
            made = Case(kernel, dtype, capability, variant, fast, num_warps, tuple(constants.items()))
            if made not in seen:
                seen.add(made)
                yield made

    for dtype, itemsize in DTYPES.items():
        for (reduced_fast, _, bytes_), tile in arch.forward.items():
            if bytes_ == itemsize:
                yield from case(
                    "match_one.match_fwd_kernel", dtype, "stride_r" if reduced_fast else "stride_k", tile.num_warps,
                    REDUCED_FAST=reduced_fast, BLOCK_R=tile.reduced, BLOCK_K=tile.kept, UNROLL=tile.unroll,
                )  # fmt: skip
        for (reduced_fast, _, bytes_), tile in arch.backward.items():
            if bytes_ == itemsize:
                yield from case(
                    "match_one.match_bwd_kernel", dtype, "stride_r" if reduced_fast else "stride_k", tile.num_warps,
                    REDUCED_FAST=reduced_fast, BLOCK_R=tile.reduced, BLOCK_K=tile.kept,
                )  # fmt: skip
        both = arch.both_forward
        for width in (16, 15):  # a grid whose rows can be cut into vectors, and one that cannot
            vector = configs.row_vector(both, width, itemsize)
            yield from case(
                "match_both.match_both_fwd_kernel", dtype, "stride_column", both.num_warps,
                ROWS=both.rows, BLOCK_R=both.block_rows, BLOCK_C=both.block_columns, UNROLL=both.unroll,
                VECTOR=vector, ROW_UNROLL=both.row_step // vector,
            )  # fmt: skip
        both = arch.both_backward
        yield from case(
            "match_both.match_both_bwd_kernel", dtype, "stride_column", both.num_warps,
            BLOCK_R=both.block_rows, BLOCK_C=both.block_columns,
        )  # fmt: skip
    merge = arch.merge
    yield from case(
        "online_softmax.merge_partials_kernel", "fp32", "", merge.num_warps, BLOCK_PARTS=merge.reduced, BLOCK_K=merge.kept
    )


def argument_type(name: str, dtype: str) -> str:
    """Triton's name for the type of a kernel argument, by its name."""
    if name.endswith("corr_ptr"):
        return f"*{dtype}"
    if name.endswith("partial_index_ptr"):
        return "*i32"
    if name.endswith("index_ptr"):
        return "*i64"
    if name.endswith("_ptr"):
        return "*fp32"
    return "fp32" if name in ("temperature", "scale") else "i32"


def compile_case(case: Case) -> Compiled:
    """Compile one case and read its resources from the cubin."""
    import importlib

    import triton
    import triton.language as tl
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    module, _, name = case.kernel.partition(".")
    kernel = getattr(importlib.import_module(f"semimatch_kernels.triton.{module}"), name)
    constants: dict[str, object] = {"ACC": tl.float32, **dict(case.constants)}
    if case.fast:
        constants[case.fast] = 1
        grad_stride = {"stride_r": "grad_stride_r", "stride_k": "grad_stride_k"}.get(case.fast, "")
        if grad_stride in kernel.arg_names:
            constants[grad_stride] = 1
    signature, attributes = {}, {}
    for i, (argument, parameter) in enumerate(zip(kernel.arg_names, kernel.params, strict=True)):
        if argument in constants:
            signature[argument] = "constexpr"
            continue
        signature[argument] = argument_type(argument, case.dtype)
        size = "stride" in argument or argument in ("reduced", "kept", "rows", "columns")
        known = size and case.variant == "even" or argument.endswith("_per_program") or argument.endswith("_ptr")
        if known and not parameter.do_not_specialize:
            attributes[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(
        kernel, signature, {(kernel.arg_names.index(n),): v for n, v in constants.items()}, attributes
    )
    compiled = triton.compile(
        source, target=GPUTarget("cuda", case.capability, 32), options={"num_warps": case.num_warps}
    )
    return resources(case, compiled.asm["cubin"], compiled.metadata.shared)


def resources(case: Case, cubin: bytes, shared: int) -> Compiled:
    """Registers, stack and local memory of a cubin, by the cuobjdump that Triton brings."""
    import triton

    cuobjdump = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(cuobjdump), "--dump-resource-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = {key: int(value) for key, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", text)}
    return Compiled(case, found["REG"], found["STACK"], found["LOCAL"], shared)


def main(capabilities: list[int]) -> None:
    work = [case for capability in capabilities for case in cases(capability)]
    with ProcessPoolExecutor(max_workers=os.cpu_count()) as pool:
        done = list(pool.map(compile_case, work))
    json.dump([asdict(compiled) for compiled in done], sys.stdout)


if __name__ == "__main__":
    main([int(argument) for argument in sys.argv[1:]])
