"""Pictures of what a matcher does on pairs of a list."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageOps

import semimatch_kernels as smk

from ..data.store import LoadedPairs, decode
from ..evaluation.pck import RULES, hits, threshold
from ..models import Matcher, flow_from_coords, predict_points
from .matches import draw_matches, draw_transfer


@torch.no_grad()
def save_pictures(
    matcher: Matcher,
    data: LoadedPairs,
    indices: Sequence[int],
    folder: Path | str,
    alpha: float = 0.1,
    random_points: int = 40,
    seed: int = 0,
) -> list[Path]:
    """Two PNGs a pair: keypoints with the truth, and random points of the target's box.

    Args:
        matcher: put into evaluation mode and left in it. data: the pairs.
        indices: rows of the list to draw. folder: where to; made if absent.
        alpha: correct means within alpha times the benchmark's own threshold.
        random_points, seed: how many, and of which random numbers.

    Returns:
        The files: `<row>_<category>_keypoints.png` and `..._random.png` for each row.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    matcher.eval()
    generator = torch.Generator().manual_seed(seed)
    device = matcher.backbone.mean.device
    files = []
    for index in indices:
        batch = data.batch([index])
        pair = data.pairs.pairs[index]
        corr = matcher(batch.source.to(device).float() / 255, batch.target.to(device).float() / 255)
        match = smk.match(corr, matcher.grid, matcher.temperature, per="target")
        flow = flow_from_coords(match.coords, matcher.grid).float().cpu()
        source, source_scale = _original(data, pair.source, pair.flip)
        target, target_scale = _original(data, pair.target, pair.flip)
        name = f"{index:05d}_{re.sub('[^A-Za-z0-9]+', '-', pair.category).strip('-')}"
        titles = (f"target  {pair.target.name}", f"source  {pair.source.name}")

        valid = batch.valid[0]
        points, truth = batch.target_points, batch.source_points
        length = threshold(data.pairs.threshold, truth, batch.valid, batch.source_box, data.store.size)
        predicted = predict_points(flow, points, matcher.stride)
        correct = hits(predicted, truth, batch.valid, length, [alpha])[0, 0]
        picture = draw_transfer(
            target, source, points[0, valid] * target_scale, predicted[0, valid] * source_scale,
            truth[0, valid] * source_scale, correct[valid], titles,
            f"correct: within {alpha:g} of the {RULES[data.pairs.threshold]}",
        )  # fmt: skip
        files.append(folder / f"{name}_keypoints.png")
        picture.save(files[-1])

        box = batch.target_box[0].clamp(0, data.store.size - 1)
        points = box[:2] + torch.rand(random_points, 2, generator=generator) * (box[2:] - box[:2])
        moved = predict_points(flow, points[None], matcher.stride)[0]
        column, row = (points / matcher.stride).long().clamp(max=matcher.grid[0] - 1).unbind(1)
        scores = match.score[0].cpu()[row * matcher.grid[1] + column]
        picture = draw_matches(target, source, points * target_scale, moved * source_scale, scores, titles)
        files.append(folder / f"{name}_random.png")
        picture.save(files[-1])
    return files


def _original(data: LoadedPairs, path: Path, flip: bool) -> tuple[Image.Image, torch.Tensor]:
    """The image at its own size, and what takes points of the resized image there, [2]."""
    image = decode(path)
    scale = torch.tensor(image.size) / data.store.size
    return (ImageOps.mirror(image) if flip else image), scale
