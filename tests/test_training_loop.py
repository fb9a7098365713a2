"""The training loop: order of the pairs, exact resume, interrupts, checkpoints."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from pathlib import Path

import pytest
import torch
from lightning_fabric import Fabric
from safetensors.torch import load_file

from semimatch.config import (
    AugmentConfig,
    Config,
    DataConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    SemiConfig,
)
from semimatch.data import ImageStore, LoadedPairs, load_pairs
from semimatch.errors import Interrupted
from semimatch.models import build_matcher
from semimatch.training import trainer
from semimatch.training.checkpoint import CheckpointError, load_weights, read_header
from semimatch.training.step import TrainingStep


@pytest.fixture(scope="module")
def loaded(demo_root) -> LoadedPairs:
    pairs = load_pairs("pf-pascal", demo_root, "trn").subset(range(12))
    return LoadedPairs(pairs, ImageStore(pairs.images, size=64, progress=False))


def _config(out: Path, steps: int = 4, **optim) -> Config:
    return Config(
        data=DataConfig(name="pf-pascal"),
        model=ModelConfig(backbone="efficientnet-lite0", pretrained=False, projection=8, temperature=0.05),
        semi=SemiConfig(threshold=0.05, temperature=0.05),
        augment=AugmentConfig(),
        optim=OptimConfig(steps=steps, batch_size=2, lr=1e-3, lr_backbone=1e-4, milestones=[3], **optim),
        run=RunConfig(out=out, log_every=1, save_every=100),
    )


def _train(config, loaded, folder, resume=False, validate=None, method="semimatch"):
    torch.manual_seed(0)
    matcher = build_matcher(config.model, size=64)
    fabric = Fabric(accelerator="cpu", devices=1)
    folder.mkdir(parents=True, exist_ok=True)
    trainer.train(fabric, matcher, method, loaded, config, folder, validate, resume)
    return load_file(folder / "weights.safetensors")


def test_every_pair_once_an_epoch_over_all_devices():
    for world in (1, 2, 3):
        picked = [r for s in range(7) for d in range(world) for r in trainer.rows_of_step(s, d, world, 4, 10, seed=5)]
        for epoch in range(len(picked) // 10):
            assert sorted(picked[epoch * 10 : epoch * 10 + 10]) == list(range(10))
    assert Counter(trainer.rows_of_step(0, 0, 1, 25, 10, seed=5)).most_common(1)[0][1] <= 3
    assert trainer.rows_of_step(0, 0, 1, 10, 10, seed=5) != trainer.rows_of_step(0, 0, 1, 10, 10, seed=6)


def test_an_interrupted_run_resumes_to_the_same_bits(loaded, tmp_path, monkeypatch):
    whole = _train(_config(tmp_path), loaded, tmp_path / "whole")

    steps = iter(range(100))
    original = TrainingStep.forward

    def interrupting(self, *arguments):
        if next(steps) == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, *arguments)

    monkeypatch.setattr(TrainingStep, "forward", interrupting)
    with pytest.raises(Interrupted, match="stopped after step 2 of 4"):
        _train(_config(tmp_path), loaded, tmp_path / "parts")
    assert not (tmp_path / "parts" / "weights.safetensors").exists()
    resumed = _train(_config(tmp_path), loaded, tmp_path / "parts", resume=True)
    assert whole.keys() == resumed.keys()
    for name in whole:
        assert torch.equal(whole[name], resumed[name]), name
    rows = [json.loads(row) for row in (tmp_path / "parts" / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    expected = [json.loads(row)["loss"] for row in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    assert [row["loss"] for row in rows] == expected


def test_training_changes_what_it_should(loaded, tmp_path):
    config = _config(tmp_path, steps=2)
    torch.manual_seed(0)
    before = build_matcher(config.model, size=64).state_dict()
    after = _train(config, loaded, tmp_path / "all")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert any(name.startswith("head.") for name in changed)
    assert any(name.startswith("backbone.") and "running" not in name for name in changed)

    config.optim.lr_backbone = 0
    frozen = _train(config, loaded, tmp_path / "frozen", method="supervised")
    changed = {name for name in before if not torch.equal(before[name], frozen[name])}
    assert changed and not any(name.startswith("backbone.") for name in changed), (
        "statistics of a frozen backbone moved"
    )


def test_the_best_weights_by_validation_are_kept(loaded, tmp_path):
    config = _config(tmp_path)
    config.run.eval_every = 1
    scores = iter([0.2, 0.9, 0.4, 0.3])
    _train(config, loaded, tmp_path / "run", validate=lambda: next(scores))
    _, about = read_header(tmp_path / "run" / "weights.safetensors")
    assert about["step"] == 2 and about["validation"] == 0.9


def test_weights_of_another_architecture_are_refused(loaded, tmp_path):
    config = _config(tmp_path, steps=1)
    _train(config, loaded, tmp_path / "run", method="supervised")
    path = tmp_path / "run" / "weights.safetensors"
    stored, about = read_header(path)
    assert stored == config.model and about["method"] == "supervised"
    other = ModelConfig(**(vars(config.model) | {"projection": 20}))
    with pytest.raises(CheckpointError, match=r"weights.safetensors: .*model.projection = 8; expected 20"):
        load_weights(path, build_matcher(other, size=64), other)
    config.model.projection = 20
    with pytest.raises(CheckpointError, match=r"checkpoint.pt: .*model.projection = 8; expected 20"):
        _train(config, loaded, tmp_path / "run", resume=True, method="supervised")
    config.model.projection, config.optim.lr = 8, 2e-3
    with pytest.raises(
        CheckpointError, match=r"checkpoint.pt: was written with other settings \(optim.lr was 0.001, is 0.002\)"
    ):
        _train(config, loaded, tmp_path / "run", resume=True, method="supervised")


def test_damaged_files_are_named(tmp_path):
    model = ModelConfig()
    for name, content in (("weights.safetensors", b"no weights"), ("checkpoint.pt", b"PK\x03\x04 cut")):
        (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=r"weights.safetensors: not a complete safetensors file"):
        read_header(tmp_path / "weights.safetensors")
    with pytest.raises(CheckpointError, match=r"checkpoint.pt: cannot be read"):
        trainer.read_checkpoint(tmp_path / "checkpoint.pt", model)
    with pytest.raises(CheckpointError, match="no such file"):
        read_header(tmp_path / "none.safetensors")


def test_the_source_is_passed_once_and_the_clean_view_without_gradient(loaded):
    config = _config(Path("unused"))
    matcher = build_matcher(config.model, size=64)
    passes = []
    matcher.backbone.register_forward_hook(lambda module, inputs, output: passes.append(output[0].requires_grad))
    for method, shared, expected in (
        ("supervised", False, [True, True]),
        ("semimatch", False, [True, True, False, True]),
        ("semimatch", True, [True, True, True]),
    ):
        passes.clear()
        config.semi.shared_view = shared
        step = TrainingStep(matcher, method, config.augment, config.semi)
        loss, log = step(loaded.batch([0, 1]), torch.Generator().manual_seed(0))
        assert passes == expected
        assert loss.isfinite() and all(value.numel() == 1 for value in log.values())
