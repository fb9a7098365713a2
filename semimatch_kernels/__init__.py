"""Fused kernels for semantic matching: correlation, soft-argmax, entropy, contrastive loss, pseudo labels.

Every function is an op on tensors, differentiable where that makes sense, with the backends `reference` (PyTorch),
`cpu` (C++), `triton` and `cuda`. A correlation is ``C[b, s, t]``: source cell s (dim -2), target cell t (dim -1).

``python -m semimatch_kernels.info`` prints which backend runs which op on this machine, and why the others do not.
"""

from .backends import BackendError, backends
from .consistency import forward_backward_mask
from .contrastive import GaussianTarget, masked_contrastive_loss, masked_contrastive_loss_features
from .coordinates import Pixels
from .correlation import correlation
from .dual import dual_softmax, dual_softmax_features
from .epe import sparse_epe
from .matching import Match, match, match_features, softmax_entropy, softmax_entropy_features
from .memory import cpu_cache
from .mutual import mutual_filter, mutual_mask
from .pseudo_labels import POLICIES, PseudoLabels, dash_threshold, pseudo_labels
from .warp import warp, warp_lookup
from .windows import GaussianWindow, HardWindow, soft_argmax, soft_argmax_features

__all__ = [
    "POLICIES",
    "BackendError",
    "GaussianTarget",
    "GaussianWindow",
    "HardWindow",
    "Match",
    "Pixels",
    "PseudoLabels",
    "backends",
    "correlation",
    "cpu_cache",
    "dash_threshold",
    "dual_softmax",
    "dual_softmax_features",
    "forward_backward_mask",
    "masked_contrastive_loss",
    "masked_contrastive_loss_features",
    "match",
    "match_features",
    "mutual_filter",
    "mutual_mask",
    "pseudo_labels",
    "soft_argmax",
    "soft_argmax_features",
    "softmax_entropy",
    "softmax_entropy_features",
    "sparse_epe",
    "warp",
    "warp_lookup",
]


def __getattr__(name: str) -> str:
    """``__version__``, read from the installed distribution when it is asked for: that takes tens of milliseconds."""
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import metadata

    try:
        return metadata.version("semimatch")
    except metadata.PackageNotFoundError:
        return "not installed"
