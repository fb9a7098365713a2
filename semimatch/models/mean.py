"""The training-free head."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

import semimatch_kernels as smk


class MeanHead(nn.Module):
    """Mean over the levels of the mutual-filtered correlations. Has no parameters."""

    def forward(self, source: Sequence[Tensor], target: Sequence[Tensor]) -> Tensor:
        """Correlation of two feature pyramids.

        Args:
            source, target: levels [B,C_l,H,W]; C_l may differ from level to level.

        Returns:
            [B,S,T], source x target cells, in the dtype of the features. Gradient: to both.
        """
        return smk.correlation(source, target, mutual=True).mean(1)
