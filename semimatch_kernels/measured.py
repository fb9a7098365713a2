"""Which of the backends was faster where it was measured: the order of ``backend="auto"``.

written by benchmarks.auto
"""

#: Kind of device -> fused op -> backend -> times as long as the fastest, the fastest first.
MEASURED: dict[str, dict[str, dict[str, float]]] = {}
