"""One pass over a list of pairs: every alpha and every threshold rule at once."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..data.store import Batch, LoadedPairs
from ..models import Matcher, predict_points
from .pck import hits, threshold
from .result import Result

ALPHAS = (0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.08, 0.09, 0.10, 0.15)

#: (source images, target images, target points) -> flow [B,2,H,W] in cells, target to source, or source
#: points [B,P,2].
Predictor = Callable[[Tensor, Tensor, Tensor], Tensor]


def evaluate(
    predict: Matcher | Predictor,
    data: LoadedPairs,
    *,
    alphas: Sequence[float] = ALPHAS,
    rules: Sequence[str] | None = None,
    rounding: str = "bilinear",
    batch_size: int = 16,
    device: torch.device | str | None = None,
    cache_bytes: int = 2 << 30,
    progress: bool = True,
) -> Result:
    """Transfer the target keypoints of every pair to its source image and score them.

    Args:
        predict: a `Matcher`, put into evaluation mode meanwhile; or any callable that takes source and target
            images, float32 [B,3,size,size] in 0..1, and target points, float32 [B,P,2] in pixels, and returns
            a flow [B,2,H,W] (x, y) in cells on the target's grid that points into the source, or the source
            points [B,P,2] themselves. What it returns at padding does not matter.
        data: the pairs and their images.
        alphas: fractions of the threshold.
        rules: threshold rules (`pck.RULES`), the first of which is the main one; None = the benchmark's own,
            and for PF-WILLOW the padded one of the release beside it.
        rounding: how a point is read off a flow (`models.predict_points`).
        batch_size: pairs at a time. It changes no number: all means are over pairs or points.
        device: where to compute; None = the device of the matcher's weights, the CPU for a callable.
        cache_bytes: memory for the features of images that occur in several pairs (a `Matcher` only).
        progress: show a bar, where stderr is a terminal.

    Warns:
        RuntimeWarning: predictions that are NaN or infinite. They count as wrong; `Result.missing` has their number.

    Raises:
        TypeError, ValueError: what ``predict`` returned is no tensor or has no such shape, or a rule or rounding does
            not exist.
    """
    if not callable(predict):
        raise TypeError(f"predict: expected a Matcher or a function, got {type(predict).__name__}")
    if not isinstance(data, LoadedPairs):
        raise TypeError(f"data: expected LoadedPairs, got {type(data).__name__}")
    pairs = data.pairs
    if rules is None:
        rules = [pairs.threshold] + (["bbox-kp-padded"] if pairs.name == "pf-willow" else [])
    size = data.store.size
    # Pairs of one image stand together, so that its features are made once even where not all fit in memory.
    order = sorted(range(len(data)), key=lambda i: (pairs.pairs[i].category, str(pairs.pairs[i].source), i))
    found = np.zeros((len(rules), len(data), len(alphas)), np.int64)
    lengths = np.zeros((len(rules), len(data)), np.float32)
    points, missing = np.zeros(len(data), np.int64), np.zeros(len(data), np.int64)
    is_matcher = isinstance(predict, Matcher)
    if device is None:
        device = predict.backbone.mean.device if is_matcher else torch.device("cpu")
    cache = _FeatureCache(predict, data, device, cache_bytes) if is_matcher else None
    bar = tqdm(total=len(data), desc="evaluate", unit="pair", disable=None if progress else True, leave=False)
    with bar, _evaluation_mode(predict), torch.no_grad():
        for first in range(0, len(order), batch_size):
            rows = order[first : first + batch_size]
            batch = data.batch(rows).to(device)
            if cache is not None:
                out = predict.flow(predict.correlate(*cache.pair(rows, batch)))
            else:
                out = predict(batch.source.float() / 255, batch.target.float() / 255, batch.target_points)
            predicted = _points(out, batch, size, rounding)
            points[rows] = batch.valid.sum(1).cpu().numpy()
            missing[rows] = (batch.valid & ~predicted.isfinite().all(2)).sum(1).cpu().numpy()
            for i, rule in enumerate(rules):
                length = threshold(rule, batch.source_points, batch.valid, batch.source_box, size)
                correct = hits(predicted, batch.source_points, batch.valid, length, alphas)
                found[i, rows] = correct.sum(2).T.cpu().numpy()
                lengths[i, rows] = length.cpu().numpy()
            bar.update(len(rows))
    if missing.any():
        warnings.warn(
            f"predict: returned NaN or infinity for {missing.sum()} of {points.sum()} keypoints, in "
            f"{(missing > 0).sum()} of {len(data)} pairs; they count as wrong",
            RuntimeWarning,
            stacklevel=2,
        )
    return Result(
        name=pairs.name,
        split=pairs.split,
        alphas=tuple(alphas),
        rules=tuple(rules),
        hits=found,
        lengths=lengths,
        points=points,
        missing=missing,
        rows=[pair.row for pair in pairs.pairs],
        images=[(pair.source.name, pair.target.name) for pair in pairs.pairs],
        categories=[pair.category for pair in pairs.pairs],
        flags=[dict(pair.flags) for pair in pairs.pairs],
    )


def _points(out: Tensor, batch: Batch, size: int, rounding: str) -> Tensor:
    """Predicted source points [B,P,2] from what a predictor returned."""
    count, width = batch.target_points.shape[:2]
    if not isinstance(out, Tensor):
        raise TypeError(f"predict: returned {type(out).__name__}; expected a torch.Tensor, a flow or points")
    if out.dim() == 4 and out.shape[:2] == (count, 2) and size % out.shape[3] == 0 and out.shape[2] == out.shape[3]:
        return predict_points(out.float(), batch.target_points, size // out.shape[3], rounding)
    if out.shape == (count, width, 2):
        return out
    raise ValueError(
        f"predict: returned {list(out.shape)}; expected a flow [{count},2,n,n] with n a divisor of {size}, "
        f"or points [{count},{width},2]"
    )


@contextmanager
def _evaluation_mode(predict: object) -> Iterator[None]:
    """Every module of a matcher in evaluation mode, and afterwards each in the mode that it had."""
    modules = list(predict.modules()) if isinstance(predict, torch.nn.Module) else []
    before = [module.training for module in modules]
    try:
        for module in modules:
            module.training = False
        yield
    finally:
        for module, mode in zip(modules, before, strict=True):
            module.training = mode


class _FeatureCache:
    """Features of images, made once while they fit into ``limit`` bytes; the least recently used go first."""

    def __init__(self, matcher: Matcher, data: LoadedPairs, device: torch.device | str, limit: int) -> None:
        self.matcher, self.data, self.device, self.limit = matcher, data, device, limit
        self.bytes = 0
        self.kept: OrderedDict[tuple[str, bool], list[Tensor]] = OrderedDict()

    def pair(self, rows: Sequence[int], batch: Batch) -> tuple[list[Tensor], list[Tensor]]:
        """Features of the source and of the target images of these rows."""
        records = [self.data.pairs.pairs[row] for row in rows]
        keys = [[(str(getattr(r, side)), r.flip) for r in records] for side in ("source", "target")]
        pictures = dict(zip(keys[0], batch.source, strict=True)) | dict(zip(keys[1], batch.target, strict=True))
        have = {key: self.kept[key] for key in pictures if key in self.kept}
        missing = [key for key in pictures if key not in have]
        if missing:
            images = torch.stack([pictures[key] for key in missing]).to(self.device).float() / 255
            levels = self.matcher.features(images)
            for i, key in enumerate(missing):
                have[key] = [level[i].clone() for level in levels]
        for key, levels in have.items():
            self._keep(key, levels)
        source, target = ([torch.stack(level) for level in zip(*(have[k] for k in side), strict=True)] for side in keys)
        return source, target

    def _keep(self, key: tuple[str, bool], levels: list[Tensor]) -> None:
        if key not in self.kept:
            self.bytes += _size(levels)
            self.kept[key] = levels
        self.kept.move_to_end(key)
        while self.bytes > self.limit and self.kept:
            self.bytes -= _size(self.kept.popitem(last=False)[1])


def _size(levels: list[Tensor]) -> int:
    return sum(level.numel() * level.element_size() for level in levels)
