"""Reference of the soft mutual nearest-neighbour filter."""

from __future__ import annotations

import torch
from torch import Tensor


def mutual_filter(corr: Tensor) -> Tensor:
    """C * ((C / largest of its row) * (C / largest of its column)) over the last two dims of [...,S,T].

    A largest value of exactly 0 is replaced by 1e-30. fp16 is computed in fp32, where 1e-30 exists. The gradient goes
    through the maxima, to the lowest index among ties.
    """
    c = corr.float() if corr.dtype == torch.float16 else corr
    # max(dim).values, not amax: its gradient goes to one element, as the definition says; amax would share it.
    row, column = c.max(-1, keepdim=True).values, c.max(-2, keepdim=True).values
    row, column = (torch.where(m == 0, m + 1e-30, m) for m in (row, column))
    return (c * ((c / row) * (c / column))).to(corr.dtype)
