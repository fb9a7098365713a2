"""Triton backend: kernels and their launchers; nothing here validates arguments or knows of autograd.

match.py           the four launchers of `match`, as the schemas have them
match_one.py       one direction: kernels and launchers
match_both.py      both directions in one read: kernels and launchers
tiles.py           tiles of a correlation formed from features, on the tensor cores
features.py        from-features launchers: the two sides, and the gradient by both in bounded memory
norms.py           the normalisation of features and its chain rule
correlation.py, correlation_backward.py   `correlation` and its gradient: kernels and launchers
levels.py          several levels of features in one launch
match_features.py  `match_features`: kernels and launchers
contrastive.py, contrastive_features.py, loss.py   the contrastive losses, and the rules that they share
mutual.py          `mutual_filter`: kernels and launchers
statistics.py      both sides of a correlation from one read, by tiles: what `dual_softmax` and `pseudo_labels` share
window.py, window_features.py, best_cell.py   `soft_argmax` with a window: kernels and launchers
dual.py            `dual_softmax`: kernels and launchers
consistency.py, pseudo_labels.py   the forward-backward check, and the pseudo labels that it is part of
online_softmax.py  the state that the forward kernels share, its merge rule, the second-stage kernel
gradient.py        the gradient of one entry, shared by the backward kernels
launch.py          what the launchers share: outputs, layouts, scalars, the device context
configs.py         shipped launch configurations per architecture and size class

Importing this package or configs.py does not import Triton; the other modules do, and need it.
`semimatch_kernels.backends` decides whether they are used.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable

#: op -> module that has its launcher; that of its gradient is in the same one, unless it has an entry of its own.
_MODULES = {
    "correlation": "correlation",
    "correlation_backward": "correlation_backward",
    "match": "match",
    "match_both": "match",
    "match_features": "match_features",
    "masked_contrastive_loss": "contrastive",
    "masked_contrastive_loss_features": "contrastive_features",
    "mutual_filter": "mutual",
    "soft_argmax": "window",
    "soft_argmax_features": "window_features",
    "dual_softmax": "dual",
    "forward_backward_mask": "consistency",
    "pseudo_labels": "pseudo_labels",
}


def launcher(name: str) -> Callable:
    """The function of this package that runs op ``name``; imports its module, and Triton, at the first call."""
    module = importlib.import_module(f".{_MODULES.get(name) or _MODULES[name.removesuffix('_backward')]}", __name__)
    return getattr(module, name)
