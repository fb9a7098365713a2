"""The command line from end to end on a small embedded data set, and its errors: one line, nothing half-written."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from semimatch.cli import _parser, main
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


def _command(parser, name: str):
    """The parser of a command."""
    return next(action.choices[name] for action in parser._actions if name in (action.choices or ()))


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


def test_a_second_fit_needs_to_be_told(run, capsys, demo_root, tmp_path):
    base = ["fit", "--data.name", "pf-pascal", "--data.root", demo_root, *SMALL, "--run.out"]
    assert "holds a run already; expected --resume" in _fails(capsys, *base, run)
    (tmp_path / "result.json").write_text("{}")  # of a run of other methods
    assert "holds a run already; expected --resume" in _fails(capsys, *base, tmp_path)
    assert (tmp_path / "result.json").read_text() == "{}"


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


def test_eval_replaces_no_result_unless_told(demo_root, tmp_path, capsys, monkeypatch, run):
    monkeypatch.chdir(tmp_path)
    command = ["eval", "--data", "pf-pascal", "--data-root", str(demo_root), "--device", "cpu", "--pictures"]
    main([*command, "1"])
    out = Path("runs") / "eval-pf-pascal"
    assert len(list((out / "matches").iterdir())) == 2
    (out / "matches" / "mine.png").write_bytes(b"")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with monkeypatch.context() as patch:
        patch.setattr("semimatch.tasks.load_pairs", None)
        message = "runs/eval-pf-pascal: holds result.json already; expected another --out, or --overwrite to replace"
        assert message in _fails(capsys, *command, "1")
        (tmp_path / "some").mkdir()
        for name in ("report.txt", "curve.png", "pairs.json", "matches", "config.yaml"):
            (tmp_path / "some" / name).write_text("")
            assert f"some: holds {name} already" in _fails(capsys, *command, "1", "-o", "some")
            (tmp_path / "some" / name).unlink()
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    main([*command, "0", "--overwrite"])
    assert [path.name for path in (out / "matches").iterdir()] == ["mine.png"]  # not the pictures of the former one
    main([*command, "0", "-o", "some"])
    assert (tmp_path / "some" / "result.json").read_bytes() == (out / "result.json").read_bytes()


def test_match_draws_two_pictures_of_any_size(run, demo_root, tmp_path, capsys):
    images = sorted((demo_root / "PF-PASCAL" / "JPEGImages").glob("*.jpg"))[:2]
    tall = tmp_path / "tall.png"
    with Image.open(images[1]) as picture:
        picture.resize((90, 200)).save(tall)
    out = tmp_path / "pictures" / "out.png"
    main(["match", str(images[0]), str(tall), "-o", str(out), "--points", "5", "--device", "cpu"])
    assert _width(out) > 100
    assert "5 matches in" in capsys.readouterr().out
    main(["match", str(images[0]), str(tall), "-o", str(out), "--points", "1", "--device", "cpu"])
    assert "1 match in" in capsys.readouterr().out


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
        ((*fit, "--run.out", out, "--optim.steps", "0"), "optim.steps is 0; expected a finite number above 0"),
        ((*fit, "--run.out", out, "--optim.milestones", "[3, -1]"), "optim.milestones is [3, -1]; expected steps"),
        ((*fit, "--run.out", out, "--run.devices", "9999"), "run.devices is 9999; expected at most"),
        ((*fit, "--run.out", out, "--methods", "semimatch,semimatch"), "expected supervised, semimatch or both, each"),
        ((*fit, "--run.out", out, "--augment.crop", "2"), "augment.crop is 2.0; expected a probability"),
        ((*fit, "--run.out", out, "--semi.threshold", "2"), "semi.threshold is 2.0; expected a probability, 0 to 1"),
        ((*fit, "--run.out", out, "--semi.threshold", ".nan"), "semi.threshold is nan; expected a probability"),
        ((*fit, "--run.out", out, "--semi.temperature", ".inf"), "semi.temperature is inf; expected a finite number"),
        ((*fit, "--run.out", out, "--semi.uncertainty", "-1"), "semi.uncertainty is -1.0; expected a finite number of"),
        ((*fit, "--run.out", out, "--semi.weight", "-1"), "semi.weight is -1.0; expected a finite number of at least"),
        ((*fit, "--run.out", out, "--run.pictures", "-1"), "run.pictures is -1; expected a finite number of at least"),
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
        (("eval", "--data", "pf-pascal", "--data-root", demo_root, "-o", out, "--pictures", "-1"), "--pictures -1: "),
        (
            ("eval", "--data", "pf-willow", "--data-root", demo_root, "-o", out, "--willow-split", "-1"),
            "--willow-split -1: expected at least 0",
        ),
        (("data", "make-demo", out, "--seed", "-1"), "--seed -1: expected at least 0"),
        (("eval", "--data", "pf-pascal", "--data-root", demo_root, "--out", out, "--weights", "no.st"), "no such file"),
        (("match", demo_root / "none.jpg", demo_root / "none.jpg", "-o", tmp_path / "o.png"), "none.jpg: no such file"),
        (("match", demo_root / "a.jpg", demo_root / "b.jpg", "-o", demo_root / "b.jpg"), "is one of the images"),
        (("eval", "--data", "pf-pascal", "--data-root", demo_root, "--out", out, "--weights", tmp_path), "is a folder"),
        (("match", demo_root / "none.jpg", demo_root / "none.jpg", "-o", tmp_path / "o.xyz"), "the name of a picture"),
        ((*fit, "--run.out", "/proc/none"), "/proc/none: cannot be written"),
    ]  # fmt: skip
    for arguments, message in cases:
        error = _fails(capsys, *arguments)
        assert message in error and error.startswith("semimatch: ") and error.count("\n") == 1, error
    for arguments in ((*fit, "--optim.lr", "fast"), (*fit, "--optim.rate", "1"), ("eval", "--data", "kitti")):
        assert "error" in _fails(capsys, *arguments, code=2)
    assert not out.exists()


@pytest.mark.parametrize(
    ("backend", "message"),
    [("foo", "SEMIMATCH_BACKEND: expected auto, "), ("triton", "backend 'triton' cannot run correlation here: ")],
)
def test_a_backend_that_cannot_run_is_told_in_a_line(backend, message, demo_root, tmp_path):
    images = sorted((demo_root / "PF-PASCAL" / "JPEGImages").glob("*.jpg"))[:2]
    command = [sys.executable, "-m", "semimatch.cli", "match", *images, "-o", tmp_path / "out.png"]
    environment = {**os.environ, "SEMIMATCH_BACKEND": backend, "TRITON_INTERPRET": "0", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith(f"semimatch: {message}"), done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("fit --methods foo", "error: methods: expected one of 'supervised', 'semimatch', got foo"),
        ("fit --methods=supervised,foo", "error: methods: expected one of 'supervised', 'semimatch', got foo"),
        ("fit --optim.lr fast", "error: optim.lr: expected a number, got fast"),
        ("fit --model.levels all", "error: model.levels: expected a list as [a, b] or null, got all"),
        ("match a.jpg b.jpg", "error: the following arguments are required: -o/--output"),
        ("match a.jpg", "error: the following arguments are required: TARGET, -o/--output"),
        ("data check", "error: the following arguments are required: FOLDER"),
        ("data", "error: no command; expected one of make-demo, check"),
    ],
)
def test_a_command_line_that_cannot_be_read_is_answered_in_words(command, message, capsys):
    assert _fails(capsys, *command.split(), code=2).splitlines()[-1] == message


def test_help_is_in_words(capsys):
    parser, _ = _parser()
    commands = {"": parser} | {name: _command(parser, name) for name in ("fit", "eval", "match", "data")}
    commands |= {f"data {name}": _command(commands["data"], name) for name in ("make-demo", "check")}
    for name, command in commands.items():
        text = command.format_help()
        assert text.startswith(f"usage: semimatch {name}".rstrip()) and "<class" not in text
        assert "[options]" not in text and " (required)\n" not in text.replace("benchmark (required)", "")
    listed = " ".join(parser.format_help().split())
    for name in ("fit", "eval", "match", "data"):
        assert f"{name} {commands[name].description}" in listed
    assert "-o FOLDER, --out FOLDER" in commands["eval"].format_help() and "null" not in commands["eval"].format_help()
    assert "default: null" in commands["fit"].format_help()  # a value to give


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
