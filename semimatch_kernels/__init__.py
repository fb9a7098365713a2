"""Fused kernels for semantic matching: correlation, soft-argmax, entropy, contrastive loss, pseudo labels.

Every function is an op on tensors, differentiable where that makes sense, with the backends `reference` (PyTorch),
`cpu` (C++), `triton` and `cuda`. A correlation is ``C[b, s, t]``: source cell s (dim -2), target cell t (dim -1).

``python -m semimatch_kernels.info`` prints which backend runs which op on this machine, and why the others do not.
"""

from .backends import BackendError, backends
from .consistency import forward_backward_mask
from .contrastive import masked_contrastive_loss, masked_contrastive_loss_features
from .correlation import correlation
from .epe import sparse_epe
from .matching import (
    GaussianWindow,
    HardWindow,
    Match,
    dual_softmax,
    match,
    match_features,
    soft_argmax,
    softmax_entropy,
)
from .mutual import mutual_filter
from .pseudo_labels import PseudoLabels, pseudo_labels
from .warp import warp, warp_lookup

__all__ = [
    "BackendError",
    "GaussianWindow",
    "HardWindow",
    "Match",
    "PseudoLabels",
    "backends",
    "correlation",
    "dual_softmax",
    "forward_backward_mask",
    "masked_contrastive_loss",
    "masked_contrastive_loss_features",
    "match",
    "match_features",
    "mutual_filter",
    "pseudo_labels",
    "soft_argmax",
    "softmax_entropy",
    "sparse_epe",
    "warp",
    "warp_lookup",
]
