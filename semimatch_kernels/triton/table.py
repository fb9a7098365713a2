"""Launch configurations that a search on a GPU found faster than those that `configs` ships.

written by benchmarks.search
"""

#: Compute capability -> (field of `configs.Architecture`, key in it or None) -> fields of the tile that differ.
# fmt: off
FOUND: dict[int, dict[tuple, dict[str, int]]] = {}
