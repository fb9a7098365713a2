"""Launch configurations: tiles per layout, size class and item size, and how work is split, per architecture.

Nothing is searched for at run time. The tiles were chosen from the compiled code
(tests/test_triton_compile.py keeps them free of spills): enough 16-byte loads in flight to cover the
latency of DRAM, at most 168 registers in the usual case so that three programs share an SM, and few
instructions per entry, because at full bandwidth an H100 has about 38 instruction slots for a float32 entry
that it reads and 19 for a bfloat16 one.

Splits depend on shapes and the architecture alone, so that sums keep one order and results repeat to the
last bit.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from functools import cache

import torch

from .table import FOUND

#: Up to this many entries in a correlation its size class is "small" (short programs), else "large" (loops).
SMALL_ENTRIES = 512 * 512


@dataclass(frozen=True)
class Tile:
    """A one-direction kernel's tile."""

    reduced: int  #: cells of the reduced side per tile
    kept: int  #: cells of the kept side per tile
    unroll: int  #: tiles of a loop step, all loaded before any is used (forward only)
    min_cells: int  #: fewest reduced cells that are worth a program of their own
    num_warps: int = 4

    @property
    def step(self) -> int:
        return self.reduced * self.unroll


# Rows are the side of the larger stride, columns that of the smaller.
@dataclass(frozen=True)
class BothForward:
    """match_both's tiles: one for the pass over a block's columns, one for that over its rows."""

    rows: int  #: rows of a program
    block_rows: int  #: rows per tile, first pass
    block_columns: int  #: columns per tile and per block, first pass
    unroll: int  #: tiles of a loop step, first pass
    row_step: int  #: columns of a loop step, second pass; of float32, 32 are one cache line of each row
    row_bytes: int  #: most bytes of a row that a thread loads at once, second pass
    num_warps: int = 4


@dataclass(frozen=True)
class BothBackward:
    """match_both_backward's tiles."""

    side_cells: int  #: rows or columns of a program of match_both_sides_kernel
    block_rows: int  #: rows of a program
    block_columns: int  #: columns per tile; fewer than threads, or vectors go through shared memory
    num_warps: int = 4


@dataclass(frozen=True)
class FeatureTile:
    """Tile of a kernel that forms entries from features."""

    kept: int  #: cells of the kept side, rows of the product
    reduced: int  #: cells of the reduced side, columns of the product
    channels: int  #: terms of a step of the product
    num_warps: int
    num_stages: int  #: steps whose loads are in flight
    parts: int = 1  #: of a tile's columns, which are taken one after the other once the product is there
    min_cells: int = 512  #: fewest reduced cells that are worth a program of their own

    @property
    def constants(self) -> dict[str, int]:
        return {"BLOCK_K": self.kept, "BLOCK_R": self.reduced, "BLOCK_C": self.channels, "PARTS": self.parts}

    @property
    def longest(self) -> int:
        return max(self.kept, self.reduced, self.channels)


@dataclass(frozen=True)
class ProductTile:
    """Tile of the gradient by features: slopes times features."""

    channels: int
    cells: int
    terms: int  #: of a step of the product
    num_warps: int
    num_stages: int
    parts: int = 1  #: of a tile's columns, as in `FeatureTile`

    @property
    def constants(self) -> dict[str, int]:
        sizes = {"BLOCK_C": self.channels, "BLOCK_N": self.cells, "BLOCK_TERMS": self.terms}
        return {**sizes, "PARTS": self.parts}

    @property
    def longest(self) -> int:
        return max(self.channels, self.cells, self.terms)


@dataclass(frozen=True)
class NormTile:
    """Tile of the kernels that read features once, cell by cell."""

    channels: int
    cells: int
    num_warps: int = 4


Tiles = dict[tuple[bool, str, int], Tile]
"""Key: (the reduced side is the one of the smaller stride, size class, bytes of an entry)."""


@dataclass(frozen=True)
class Architecture:
    """All that is chosen for one compute capability."""

    programs: int  #: programs that fill the device a few times over; with fewer, the reduced side is split
    cache_bytes: int  #: a correlation up to this size stays in L2 from one launch to the next
    forward: Tiles
    backward: Tiles
    both_forward: BothForward
    both_backward: BothBackward
    merge: Tile  #: second stage: parts and kept cells per tile
    from_features: dict[tuple[str, str, int], FeatureTile]
    """Key: (forward, windowed or slopes; size class, "odd" where loads cannot be joined, "ieee" where float32 is
    multiplied on the ordinary cores; bytes of an entry)."""
    products: dict[tuple[str, int], ProductTile]  #: by (even, odd, ieee or that of levels; bytes of an entry)
    norms: NormTile
    mutual: NormTile  #: tiles of a correlation: cells along its contiguous side, "channels" along the other
    sides: dict[str, NormTile]  #: the same of kernels that sum along both sides, by size class
    product_programs: int  #: `programs` of the kernels that form entries from features, which use much of an SM
    scratch_bytes: int  #: slopes of at least this size are kept at once; they stay in L2 between two launches


_FORWARD: Tiles = {
    (False, "small", 4): Tile(reduced=32, kept=16, unroll=8, min_cells=1024),
    (False, "small", 2): Tile(reduced=16, kept=32, unroll=8, min_cells=1024),
    (False, "large", 4): Tile(reduced=4, kept=128, unroll=8, min_cells=512),
    (False, "large", 2): Tile(reduced=4, kept=128, unroll=8, min_cells=512),
    (True, "small", 4): Tile(reduced=128, kept=4, unroll=2, min_cells=2048),
    (True, "small", 2): Tile(reduced=128, kept=8, unroll=2, min_cells=2048),
    (True, "large", 4): Tile(reduced=128, kept=4, unroll=8, min_cells=2048),
    (True, "large", 2): Tile(reduced=128, kept=4, unroll=8, min_cells=2048),
}
_BACKWARD: Tiles = {
    (False, "small", 4): Tile(reduced=16, kept=64, unroll=1, min_cells=64),
    (False, "small", 2): Tile(reduced=16, kept=64, unroll=1, min_cells=64),
    (False, "large", 4): Tile(reduced=16, kept=64, unroll=1, min_cells=256),
    (False, "large", 2): Tile(reduced=16, kept=64, unroll=1, min_cells=256),
    (True, "small", 4): Tile(reduced=128, kept=8, unroll=1, min_cells=256),
    (True, "small", 2): Tile(reduced=128, kept=8, unroll=1, min_cells=256),
    (True, "large", 4): Tile(reduced=128, kept=8, unroll=1, min_cells=1024),
    (True, "large", 2): Tile(reduced=128, kept=8, unroll=1, min_cells=1024),
}


# Entries from features. On sm_90 the largest tile that a program can hold: with 128 x 128, L2 has to feed 12 TB/s to
# keep the tensor cores busy. The forward has no registers for it beside the results of its kept cells.
def _from_features(capability: int, reduced: int, parts: int, stages: int) -> dict[tuple[str, str, int], FeatureTile]:
    large = FeatureTile(128, reduced, channels=64, num_warps=8, num_stages=stages, parts=parts)
    wide = FeatureTile(kept=128, reduced=64, channels=32, num_warps=8, num_stages=3)
    tiles = {
        ("small", 4): FeatureTile(kept=64, reduced=64, channels=32, num_warps=4, num_stages=3, min_cells=64, parts=2),
        ("small", 2): FeatureTile(kept=64, reduced=64, channels=64, num_warps=4, num_stages=4, min_cells=64, parts=2),
        ("large", 4): wide,
        ("large", 2): large,
        ("odd", 4): FeatureTile(kept=64, reduced=64, channels=32, num_warps=8, num_stages=2, min_cells=256),
        ("odd", 2): FeatureTile(kept=64, reduced=64, channels=64, num_warps=8, num_stages=2, min_cells=256),
        ("ieee", 4): FeatureTile(kept=64, reduced=64, channels=8, num_warps=8, num_stages=3, min_cells=64),
    }
    table = {(kernel, *key): tile for kernel in ("forward", "slopes") for key, tile in tiles.items()}
    table["forward", "ieee", 4] = FeatureTile(32, 64, channels=8, num_warps=4, num_stages=3, min_cells=64)
    if capability == 80:  # operands go through registers: less of everything
        for kernel, size in itertools.product(("forward", "slopes"), ("small", "large", "odd")):
            least = table[kernel, size, 4].min_cells
            table[kernel, size, 4] = FeatureTile(64, 64, channels=16, num_warps=8, num_stages=3, min_cells=least)
    narrow = FeatureTile(128, 64, channels=64, num_warps=8, num_stages=stages)
    square = FeatureTile(128, 128, channels=64, num_warps=8, num_stages=stages, parts=4)
    table["forward", "large", 2] = narrow if capability == 80 else square
    # With a window each row has a place of its own beside its results: that takes registers too.
    table |= {("windowed", *key): table[("forward", *key)] for key in tiles}
    table["windowed", "large", 2] = narrow
    return table


def _products(capability: int, cells: int, parts: int, stages: int) -> dict[tuple[str, int], ProductTile]:
    return {
        ("even", 4): ProductTile(128, cells=64, terms=16 if capability == 80 else 32, num_warps=8, num_stages=3),
        ("even", 2): ProductTile(channels=128, cells=cells, terms=64, num_warps=8, num_stages=stages, parts=parts),
        ("odd", 4): ProductTile(channels=64, cells=64, terms=32, num_warps=8, num_stages=2),
        ("odd", 2): ProductTile(channels=64, cells=64, terms=64, num_warps=8, num_stages=2),
        ("ieee", 4): ProductTile(channels=64, cells=64, terms=16, num_warps=8, num_stages=3),
        # With 3 stages, ptxas goes for a step of occupancy that leaves too few registers.
        ("ieee, levels", 4): ProductTile(channels=128, cells=64, terms=16, num_warps=8, num_stages=4),
    }


def _shipped(
    capability: int, multiprocessors: int, l2_bytes: int, reduced: int, parts: int, stages: int
) -> Architecture:
    return Architecture(
        programs=8 * multiprocessors,
        cache_bytes=l2_bytes // 2,
        forward=_FORWARD,
        backward=_BACKWARD,
        both_forward=BothForward(rows=128, block_rows=4, block_columns=128, unroll=8, row_step=32, row_bytes=16),
        both_backward=BothBackward(side_cells=128, block_rows=16, block_columns=64),
        merge=Tile(reduced=16, kept=32, unroll=1, min_cells=1),
        from_features=_from_features(capability, reduced, parts, stages),
        products=_products(capability, reduced, parts, stages),
        norms=NormTile(channels=32, cells=64),
        mutual=NormTile(channels=16, cells=128, num_warps=8),
        sides={
            "small": NormTile(channels=64, cells=64, num_warps=8),
            "large": NormTile(channels=64, cells=128, num_warps=8),
        },
        product_programs=2 * multiprocessors,
        scratch_bytes=l2_bytes // 2,
    )


#: By compute capability: A100, H100 and H200, B200.
ARCHITECTURES: dict[int, Architecture] = {
    80: _shipped(80, multiprocessors=108, l2_bytes=40 << 20, reduced=128, parts=2, stages=3),
    90: _shipped(90, multiprocessors=132, l2_bytes=50 << 20, reduced=256, parts=4, stages=4),
    100: _shipped(100, multiprocessors=148, l2_bytes=126 << 20, reduced=128, parts=2, stages=4),
}


def with_found(shipped: Architecture, found: dict[tuple, dict[str, int]]) -> Architecture:
    """``shipped`` with the tiles of `table.FOUND` in their places."""
    for (name, key), fields in found.items():
        tiles = getattr(shipped, name)
        new = replace(tiles, **fields) if key is None else {**tiles, key: replace(tiles[key], **fields)}
        shipped = replace(shipped, **{name: new})
    return shipped


ARCHITECTURES = {c: with_found(shipped, FOUND.get(c, {})) for c, shipped in ARCHITECTURES.items()}

#: Triton's interpreter takes about the same time for a tile of any size, so few and large ones; the other
#: numbers make small inputs take every path.
INTERPRETER = Architecture(
    programs=4,
    cache_bytes=8192,
    forward=dict.fromkeys(_FORWARD, Tile(reduced=32, kept=64, unroll=2, min_cells=64)),
    backward=dict.fromkeys(_BACKWARD, Tile(reduced=64, kept=128, unroll=1, min_cells=128)),
    both_forward=BothForward(rows=128, block_rows=64, block_columns=64, unroll=2, row_step=32, row_bytes=64),
    both_backward=BothBackward(side_cells=128, block_rows=64, block_columns=128),
    merge=Tile(reduced=2, kept=64, unroll=1, min_cells=1),
    from_features=dict.fromkeys(
        _from_features(0, 0, 0, 0),
        FeatureTile(kept=64, reduced=32, channels=32, num_warps=4, num_stages=1, parts=2, min_cells=32),
    ),
    products=dict.fromkeys(
        _products(0, 0, 0, 0), ProductTile(channels=32, cells=64, terms=64, num_warps=4, num_stages=1, parts=2)
    ),
    norms=NormTile(channels=32, cells=64),
    mutual=NormTile(channels=64, cells=64),
    sides=dict.fromkeys(("small", "large"), NormTile(channels=64, cells=64)),
    product_programs=8,
    scratch_bytes=4096,
)


@cache
def _of_device(index: int) -> Architecture:
    major, minor = torch.cuda.get_device_capability(index)
    not_newer = [capability for capability in ARCHITECTURES if capability <= 10 * major + minor]
    return ARCHITECTURES[max(not_newer, default=min(ARCHITECTURES))]


def architecture(device: torch.device) -> Architecture:
    """What is chosen for ``device``: for the newest architecture not newer than it, or the interpreter."""
    return _of_device(device.index) if device.type == "cuda" else INTERPRETER


def tile(tiles: Tiles, reduced_fast: bool, itemsize: int, reduced: int, kept: int) -> Tile:
    """The tile of one direction. float64, which only the interpreter runs, takes that of float32."""
    size = "small" if reduced * kept <= SMALL_ENTRIES else "large"
    return tiles[reduced_fast, size, min(itemsize, 4)]


def side_tile(corr: torch.Tensor) -> NormTile:
    """The tile of the statistics of both sides of ``corr`` [B,S,T]."""
    size = "small" if corr.shape[1] * corr.shape[2] <= SMALL_ENTRIES else "large"
    return architecture(corr.device).sides[size]


def split(programs: int, wanted: int, cells: int, step: int, least: int) -> tuple[int, int]:
    """Split ``cells`` into ranges until ``programs`` programs a range are ``wanted``: (ranges, cells of a
    range).

    A range is a multiple of ``step`` and, the last apart, not shorter than ``least``.
    """
    ranges = max(1, min(-(-wanted // programs), cells // least))
    each = -(-cells // (ranges * step)) * step
    return -(-cells // each), each


def row_vector(tile: BothForward, width: int, itemsize: int) -> int:
    """Cells of a row that one thread loads at once: a power of two, never across the end of a grid row."""
    return min(width & -width, tile.row_bytes // itemsize, tile.row_step)
