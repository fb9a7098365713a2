"""The command line from end to end on a small embedded data set, and its errors: one line, nothing half-written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from semimatch.cli import main
from semimatch.config import ModelConfig
from semimatch.data.store import decode
from semimatch.models import build_matcher
from semimatch.training.checkpoint import save_weights

SMALL = ["--model.backbone", "efficientnet-lite0", "--model.projection", "8", "--optim.lr_backbone", "0"]


def _fails(capsys, *arguments, code=1) -> str:
    with pytest.raises(SystemExit) as exit_:
        main([str(a) for a in arguments])
    assert exit_.value.code == code
    return capsys.readouterr().err


def _width(path: Path) -> int:
    with Image.open(path) as picture:
        return picture.width


@pytest.fixture(scope="module")
def run(demo_root, tmp_path_factory) -> Path:
    """A finished run of two steps of both methods."""
    out = tmp_path_factory.mktemp("runs") / "tiny"
    data = f"--data.name pf-pascal --data.root {demo_root}"
    sizes = "--optim.steps 2 --optim.batch_size 2 --run.pictures 1 --run.accelerator cpu"
    main(["fit", *data.split(), *SMALL, *sizes.split(), "--run.out", str(out), "--methods", "[supervised, semimatch]"])
    return out


def test_fit_leaves_everything_the_readme_names(run):
    for method in ("supervised", "semimatch"):
        for name in ("weights.safetensors", "checkpoint.pt", "log.jsonl", "pairs.json"):
            assert (run / method / name).stat().st_size > 0
        assert list((run / method / "tensorboard").iterdir())
        assert len(list((run / method / "matches").glob("*.png"))) == 2
    result = json.loads((run / "result.json").read_text())
    assert list(result) == ["zero-shot", "supervised", "semimatch"]
    report = (run / "report.txt").read_text()
    assert "zero-shot" in report and "semimatch: pseudo labels in the last third of training" in report
    assert 0 <= result["semimatch"]["pseudo_labels"]["coverage"] <= 1 and "pseudo_labels" not in result["supervised"]
    assert "protocol\n" in report and "benchmark: pf-pascal" in report and "selection (supervised): val" in report
    assert _width(run / "curve.png") > 500
    card = json.loads((run / "supervised" / "pairs.json").read_text())["protocol"]
    assert result["supervised"]["protocol"] == card
    assert card["selection"] == "val" and "sha256" in card["weights"] and card["direction"]


def test_a_refused_run_leaves_no_folder_and_looks_for_the_data_before_the_weights(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("semimatch.fit.build_matcher", None)
    fit = ["fit", "--data.name", "pf-pascal", "--data.root", tmp_path, "--run.out", tmp_path / "out"]
    assert "PF-PASCAL" in _fails(capsys, *fit)
    assert "PF-WILLOW" in _fails(
        capsys, "eval", "--data", "pf-willow", "--data-root", tmp_path, "--out", tmp_path / "o"
    )
    assert not any(tmp_path.iterdir())


def test_a_second_fit_needs_to_be_told(run, capsys, demo_root):
    base = ["fit", "--data.name", "pf-pascal", "--data.root", demo_root, *SMALL, "--run.out", run]
    assert "holds a run already; expected --resume" in _fails(capsys, *base)


def test_eval_of_trained_weights_gives_the_numbers_of_fit(run, demo_root, tmp_path):
    weights = run / "supervised" / "weights.safetensors"
    out = tmp_path / "eval"
    command = f"eval --data pf-pascal --data-root {demo_root} --weights {weights} --out {out} --pictures 0 --device cpu"
    main(command.split())
    expected = json.loads((run / "result.json").read_text())["supervised"]
    found = json.loads((out / "result.json").read_text())["supervised"]
    assert {k: v for k, v in found.items() if k != "protocol"} == {k: v for k, v in expected.items() if k != "protocol"}
    assert found["protocol"]["weights"] == expected["protocol"]["weights"]
    assert not (out / "matches").exists()


def test_match_draws_two_pictures_of_any_size(run, demo_root, tmp_path, capsys):
    images = sorted((demo_root / "PF-PASCAL" / "JPEGImages").glob("*.jpg"))[:2]
    tall = tmp_path / "tall.png"
    with Image.open(images[1]) as picture:
        picture.resize((90, 200)).save(tall)
    out = tmp_path / "pictures" / "out.png"
    main(["match", str(images[0]), str(tall), "-o", str(out), "--points", "5", "--device", "cpu"])
    assert _width(out) > 100
    assert "matches in" in capsys.readouterr().out


def test_a_refused_resume_changes_nothing(run, demo_root, capsys):
    before = (run / "config.yaml").read_bytes()
    data = f"fit --data.name pf-pascal --data.root {demo_root} --optim.steps 2 --optim.batch_size 2 --optim.lr 1e-2"
    error = _fails(capsys, *data.split(), *SMALL, "--run.out", run, "--methods", "[supervised]", "--resume")
    assert "optim.lr was 3e-05, is 0.01" in error
    assert (run / "config.yaml").read_bytes() == before


def test_photographs_are_shown_as_a_person_sees_them(tmp_path):
    picture = Image.new("RGBA", (6, 4), (255, 0, 0, 0))
    picture.save(tmp_path / "clear.png")
    assert decode(tmp_path / "clear.png", photograph=True).getpixel((0, 0)) == (255, 255, 255)
    exif = Image.Exif()
    exif[274] = 6  # a camera held upright
    Image.new("RGB", (6, 4)).save(tmp_path / "turned.jpg", exif=exif)
    assert decode(tmp_path / "turned.jpg", photograph=True).size == (4, 6)
    assert decode(tmp_path / "turned.jpg").size == (6, 4)
    Image.fromarray(np.full((4, 6), 257 * 100, np.uint16)).save(tmp_path / "deep.png")
    assert decode(tmp_path / "deep.png", photograph=True).getpixel((0, 0)) == (100, 100, 100)


def test_data_commands(tmp_path, capsys, demo_root):
    main(["data", "check", str(demo_root)])
    assert "nothing wrong" in capsys.readouterr().out
    _fails(capsys, "data", "check", tmp_path)


def test_errors_come_before_any_work(tmp_path, capsys, demo_root, run):
    fit = ["fit", "--data.name", "pf-pascal", "--data.root", demo_root, *SMALL]
    out = tmp_path / "never"
    cases = [
        ((*fit, "--run.out", out, "--optim.steps", "0"), "optim.steps is 0; expected a number above 0"),
        ((*fit, "--run.out", out, "--augment.crop", "2"), "augment.crop is 2.0; expected a probability"),
        ((*fit, "--run.out", out, "--data.train", "train"), "data.train is 'train'; expected one of trn, val, test"),
        ((*fit, "--run.out", out, "--model.head", "mean"), "has nothing to train"),
        ((*fit, "--run.out", out, "--model.projection", "33"), "model: projection is 33"),
        ((*fit, "--run.out", out, "--model.levels", "[5, 3]"), "model: levels is [5, 3]"),
        ((*fit, "--run.out", out, "--run.accelerator", "abacus"), "run.accelerator, run.devices or run.precision"),
        ((*fit, "--run.out", out, "--run.seed", "99999999999"), "run.seed is 99999999999"),
        (("eval", "--data", "pf-willow", "--data-root", demo_root, "--split", "trn", "--out", out), "--split trn"),
        (("fit", "--config", "nothing"), "--config nothing: no such file, nor a shipped configuration (demo,"),
        (("fit", "--config", "willow", "--data.root", tmp_path, "--run.out", out), "PF-WILLOW"),
        (("eval", "--data", "spair-71k", "--data-root", tmp_path, "--out", out), "SPair-71k"),
        (("eval", "--data", "pf-pascal", "--data-root", demo_root, "--out", out, "--weights", "no.st"), "no such file"),
        (("match", demo_root / "none.jpg", demo_root / "none.jpg", "-o", tmp_path / "o.png"), "none.jpg: no such file"),
        (("match", demo_root / "none.jpg", demo_root / "none.jpg", "-o", tmp_path / "o.xyz"), "the name of a picture"),
        ((*fit, "--run.out", "/proc/none"), "/proc/none: cannot be written"),
    ]  # fmt: skip
    for arguments, message in cases:
        error = _fails(capsys, *arguments)
        assert message in error and error.startswith("semimatch: ") and error.count("\n") == 1, error
    for arguments in ((*fit, "--optim.lr", "fast"), (*fit, "--optim.rate", "1"), ("eval", "--data", "kitti")):
        assert "error" in _fails(capsys, *arguments, code=2)


def test_weights_of_another_network_are_refused_before_training(tmp_path, capsys, demo_root):
    other = ModelConfig(backbone="efficientnet-lite0", projection=20, pretrained=False)
    torch.manual_seed(0)
    save_weights(tmp_path / "other.safetensors", build_matcher(other), other, {})
    error = _fails(
        capsys, "fit", "--data.name", "pf-pascal", "--data.root", demo_root, *SMALL,
        "--run.out", tmp_path / "run", "--init_from", tmp_path / "other.safetensors",
    )  # fmt: skip
    assert "other.safetensors" in error and "model.projection = 20; expected 8" in error


def test_a_truncated_image_is_named_before_training(tmp_path, capsys, demo_root):
    root = tmp_path / "data"
    shutil.copytree(demo_root / "PF-PASCAL", root / "PF-PASCAL")
    victim = sorted((root / "PF-PASCAL" / "JPEGImages").glob("*.jpg"))[0]
    victim.write_bytes(victim.read_bytes()[:-800])
    out = tmp_path / "run"
    error = _fails(capsys, "fit", "--data.name", "pf-pascal", "--data.root", root, *SMALL, "--run.out", out)
    assert victim.name in error and "expected a complete image file" in error
    assert not (out / "supervised").exists()
