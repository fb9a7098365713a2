"""``semimatch fit``: the training-free matcher, then each method trained from the same start, side by side."""

from __future__ import annotations

from pathlib import Path

import torch
from lightning_fabric import Fabric

from .config import TRAINING_FREE_SELECTION, Config, ModelConfig, check, training_free
from .data import ImageStore, LoadedPairs, PairList, load_pairs
from .data.willow_split import split_pairs
from .errors import UserError
from .evaluation import Protocol, Result, describe, evaluate, write_results
from .models import Matcher, build_matcher
from .report import label_quality, write_pictures, write_report
from .runfolder import prepare, write_yaml
from .training.checkpoint import load_weights
from .training.trainer import check_resumable, train

ZERO_SHOT = "zero-shot"


def list_splits(config: Config) -> dict[str, PairList]:
    """Training, validation and test pairs, every row checked."""
    data = config.data
    if data.willow_split is not None:
        train_pairs, test_pairs = split_pairs(load_pairs(data.name, data.root, "test"), data.willow_split)
        lists: dict[str, PairList] = {"train": train_pairs, "test": test_pairs}
    else:
        names = {"train": data.train, "val": data.val, "test": data.test}
        lists = {k: load_pairs(data.name, data.root, split) for k, split in names.items() if split is not None}
    for part, pairs in lists.items():
        if not any(len(pair.source_keypoints) for pair in pairs.pairs):
            raise UserError(f"{pairs.root}: the {part} split holds no pair with keypoints; expected at least one")
    return lists


def load_images(lists: dict[str, PairList]) -> dict[str, LoadedPairs]:
    """The pairs with their images in memory, every image checked before anything is trained."""
    store = ImageStore({image for pairs in lists.values() for image in pairs.images})
    return {part: LoadedPairs(pairs, store) for part, pairs in lists.items()}


def _fresh(config: Config, model: ModelConfig) -> Matcher:
    """The network before training: the same bits for every method."""
    torch.manual_seed(config.run.seed)
    try:
        matcher = build_matcher(model)
    except ValueError as error:
        raise UserError(f"model: {error}") from error
    if config.init_from is not None and model.head != "mean":
        load_weights(config.init_from, matcher, model)
    return matcher


def _evaluate(
    matcher: Matcher, model: ModelConfig, data: LoadedPairs, folder: Path, config: Config, method: str
) -> tuple[Result, Protocol]:
    """Evaluate; leaves pairs.json (protocol and every pair) and pictures in ``folder``."""
    result = evaluate(matcher, data)
    trained = method != ZERO_SHOT
    split = data.pairs.split
    if config.data.willow_split is not None:
        split = f"test part of willow split {config.data.willow_split}"
    card = describe(
        benchmark=data.pairs.name, split=split, selection=_selection(config) if trained else TRAINING_FREE_SELECTION,
        weights=folder / "weights.safetensors" if trained else "ImageNet only, training-free",
        model=vars(model), temperature=matcher.temperature,
        rounding="bilinear", size=data.store.size, device=matcher.backbone.mean.device,
    )  # fmt: skip
    write_results(folder / "pairs.json", result, card)
    write_pictures(folder / "matches", matcher, data, config.run.pictures)
    return result, card


def _selection(config: Config) -> str:
    """The split that the weights are selected on."""
    return config.data.val if config.data.val is not None and config.data.willow_split is None else "none, last step"


def fit(config: Config, resume: bool = False) -> dict[str, Result]:
    """Train and evaluate as ``config`` says; returns the result of the training-free matcher and of each method.

    Everything is checked first: settings, the run folder, every row of the lists, every image.

    Raises: UserError (settings, data, weights, folder), Interrupted.
    """
    check(config)
    out = config.run.out
    started = [method for method in config.methods if (out / method / "checkpoint.pt").exists()]
    if not resume and (started or (out / "result.json").exists()):  # the result of other methods, too
        raise UserError(f"{out}: holds a run already; expected --resume to go on with it, or another run.out")
    for method in started:
        check_resumable(out / method, config, method)
    lists = list_splits(config)
    _fresh(config, config.model)  # settings that no network can have, weights that do not fit
    try:
        fabric = Fabric(accelerator=config.run.accelerator, devices=config.run.devices, precision=config.run.precision)
        fabric.launch()
    except (ValueError, RuntimeError) as error:  # Fabric's own words for a device that is not there
        raise UserError(f"run.accelerator, run.devices or run.precision: {error}") from error
    data = load_images(lists)
    prepare(out)
    main = fabric.is_global_zero
    if main:
        write_yaml(out / "config.yaml", config.as_dict())
        print(f"training on {len(data['train'])} pairs, testing on {len(data['test'])}, device {fabric.device}")

    results: dict[str, Result] = {}
    cards: dict[str, Protocol] = {}
    if main:
        (out / ZERO_SHOT).mkdir(exist_ok=True)
        model = training_free(config.model)
        matcher = _fresh(config, model).to(fabric.device)
        results[ZERO_SHOT], cards[ZERO_SHOT] = _evaluate(
            matcher, model, data["test"], out / ZERO_SHOT, config, ZERO_SHOT
        )
        _print_headline(ZERO_SHOT, results[ZERO_SHOT])
    for method in config.methods:
        folder = out / method
        folder.mkdir(exist_ok=True)
        matcher = _fresh(config, config.model).to(fabric.device)

        def validate(matcher: Matcher = matcher) -> float:
            return float(evaluate(matcher, data["val"], alphas=(0.10,), progress=False).per_image()[0])

        train(
            fabric,
            matcher,
            method,
            data["train"],
            config,
            folder,
            validate if "val" in data else None,
            resume,
            _selection(config),
        )
        fabric.barrier()
        if main:
            load_weights(folder / "weights.safetensors", matcher, config.model)
            results[method], cards[method] = _evaluate(matcher, config.model, data["test"], folder, config, method)
            _print_headline(method, results[method])
    if main:
        labels = {method: label_quality(out / method / "log.jsonl") for method in config.methods}
        print(write_report(out, results, cards, {method: found for method, found in labels.items() if found}))
        print(f"\nresults, curve and pictures in {out}/, weights in {out}/<method>/weights.safetensors")
    return results


def _print_headline(name: str, result: Result) -> None:
    at = dict(zip(result.alphas, result.per_image(), strict=True))
    print(f"{name:<12} PCK@.05 {at[0.05]:5.1f}  PCK@.10 {at[0.10]:5.1f}")
