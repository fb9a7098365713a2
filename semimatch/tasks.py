"""``semimatch eval`` and ``semimatch match``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import semimatch_kernels as smk

from .config import TRAINING_FREE_SELECTION, ModelConfig, training_free
from .data import DATASETS, ImageStore, LoadedPairs, load_pairs
from .data.store import decode
from .data.willow_split import split_pairs
from .errors import UserError
from .evaluation import describe, evaluate, write_results
from .models import Matcher, build_matcher
from .report import write_pictures, write_report
from .runfolder import prepare
from .training.checkpoint import load_weights, read_header
from .visualize import draw_matches

#: What `semimatch eval` leaves in its folder.
WRITTEN = ("result.json", "pairs.json", "report.txt", "curve.png", "matches")


def load_matcher(weights: Path | None, backbone: str | None, device: str) -> tuple[Matcher, ModelConfig, dict]:
    """A matcher ready to use, its settings, and what its file says of itself; without ``weights`` the training-free
    one."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {device}: not usable here ({error}); expected cpu, cuda or auto") from error
    if weights is None:
        model = training_free(ModelConfig(backbone=backbone or "efficientnet-lite0"))
        matcher, about = build_matcher(model), {}
    else:
        if backbone is not None:
            raise UserError("--backbone and --weights: expected one of the two; weights bring their own backbone")
        model, about = read_header(weights)
        model.pretrained = False  # everything is in the file
        matcher = build_matcher(model)
        load_weights(weights, matcher, model)
    return matcher.to(device).eval(), model, about


def evaluate_command(
    data: str, data_root: Path, split: str, willow_split: int | None, weights: Path | None, backbone: str | None,
    out: Path | None, pictures: int, device: str, overwrite: bool = False,
) -> None:  # fmt: skip
    """Evaluate on one benchmark, print the tables, and leave result.json, pairs.json, report.txt, curve.png and
    matches/ in ``out``. A folder that holds any of them, or a run, is refused unless ``overwrite``."""
    out = out or Path("runs") / f"eval-{data}"
    held = next((name for name in (*WRITTEN, "config.yaml") if (out / name).exists()), None)
    if held is not None and not overwrite:
        raise UserError(f"{out}: holds {held} already; expected another --out, or --overwrite to replace the result")
    if pictures < 0:
        raise UserError(f"--pictures {pictures}: expected at least 0")
    if split not in DATASETS[data].splits:
        raise UserError(
            f"--split {split}: {data} has no such split; expected one of {', '.join(DATASETS[data].splits)}"
        )
    pairs = load_pairs(data, data_root, split)
    if willow_split is not None:
        if data != "pf-willow":
            raise UserError(f"--willow-split: is for pf-willow, not {data}; expected no such flag")
        if willow_split < 0:
            raise UserError(f"--willow-split {willow_split}: expected at least 0")
        _, pairs = split_pairs(pairs, willow_split)
    matcher, model, about = load_matcher(weights, backbone, device)
    loaded = LoadedPairs(pairs, ImageStore(pairs.images))
    prepare(out)
    result = evaluate(matcher, loaded)
    card = describe(
        benchmark=data, split=pairs.split if willow_split is None else f"test part of willow split {willow_split}",
        selection=about.get("selection", TRAINING_FREE_SELECTION), weights=weights or "ImageNet only, training-free",
        model=asdict(model), temperature=matcher.temperature, rounding="bilinear", size=loaded.store.size,
        device=matcher.backbone.mean.device,
    )  # fmt: skip
    name = about.get("method", "training-free")
    text = write_report(out, {name: result}, {name: card})
    write_results(out / "pairs.json", result, card)
    for old in (out / "matches").glob("[0-9]*_*.png"):  # of the result that is replaced
        old.unlink()
    write_pictures(out / "matches", matcher, loaded, pictures)
    print(text)
    print(f"\nresult.json (protocol and means), pairs.json (every pair), report.txt, curve.png and matches/ in {out}/")


def match_command(images: list[Path], output: Path, weights: Path | None, points: int, device: str) -> None:
    """Draw the most certain mutually consistent matches of two images of any size."""
    if points < 1:
        raise UserError(f"--points {points}: expected at least 1")
    if output.suffix.lower() not in Image.registered_extensions():
        raise UserError(f"--output {output}: expected the name of a picture, out.png for example")
    if any(output.resolve() == path.resolve() for path in images):
        raise UserError(f"--output {output}: is one of the images; expected another name")
    pictures = [decode(path, photograph=True) for path in images]
    prepare(output.parent)
    matcher, _, _ = load_matcher(weights, None, device)
    size = matcher.grid[0] * matcher.stride
    batch = torch.stack([_tensor(picture.resize((size, size), Image.Resampling.BILINEAR)) for picture in pictures])
    with torch.no_grad():
        source, target = (matcher.features(image[None].to(matcher.backbone.mean.device)) for image in batch)
        per_target, per_source = smk.match(
            matcher.correlate(source, target), (matcher.grid, matcher.grid), matcher.temperature, "both"
        )
        consistent = smk.forward_backward_mask(per_target.index, per_source.index, matcher.grid)[0]
    certainty = torch.where(consistent, -per_target.entropy[0], -torch.inf)
    chosen = certainty.topk(min(points, int(consistent.sum()))).indices.cpu()
    height, width = matcher.grid
    cells = torch.stack([chosen % width, chosen // width], -1)
    there = (per_target.coords[0].cpu()[chosen] + 1) / 2 * torch.tensor([width - 1, height - 1])
    # Cell centres as fractions of the image, then pixels of the originals.
    fractions = [(xy + 0.5) / torch.tensor([width, height]) for xy in (there, cells)]
    placed = [f.numpy() * np.array(p.size) - 0.5 for f, p in zip(fractions, pictures, strict=True)]
    drawn = draw_matches(
        *pictures,
        *placed,
        scores=torch.exp(-per_target.entropy[0].cpu()[chosen]),
        titles=[p.name for p in images],
    )
    try:
        drawn.save(output)
    except OSError as error:
        raise UserError(
            f"--output {output}: cannot be written ({error.strerror}); expected the name of a picture"
        ) from error
    print(f"{len(chosen)} {'match' if len(chosen) == 1 else 'matches'} in {output}")


def _tensor(picture: Image.Image) -> torch.Tensor:
    """RGB picture -> float32 [3,H,W] in 0..1."""
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255
