"""The command line: ``semimatch fit | eval | match | data make-demo | data check``."""

from __future__ import annotations

import sys
from importlib import resources
from pathlib import Path

from .errors import Interrupted, UserError

EXIT_INTERRUPTED = 130


def _shipped() -> dict[str, Path]:
    """Shipped configurations by name."""
    folder = Path(str(resources.files("semimatch") / "configs"))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def _parser():
    from jsonargparse import ArgumentParser, set_parsing_settings

    from .config import Config
    from .data import DATASETS

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    names = ", ".join(_shipped())
    parser = ArgumentParser(prog="semimatch", description="Train, evaluate and use semantic matchers.")
    commands = parser.add_subcommands(title="commands", required=True)

    fit = ArgumentParser(
        description="Train and evaluate.",
        usage="semimatch fit --config NAME|FILE [--resume] [--section.setting VALUE ...]",
    )
    fit.add_argument("--config", action="config", help=f"a YAML file, or a shipped configuration: {names}")
    fit.add_class_arguments(Config, None)
    fit.add_argument(
        "--resume", action="store_true", help="go on with the run in run.out, or start it if there is none"
    )
    commands.add_subcommand("fit", fit)

    evaluate = ArgumentParser(description="PCK of a matcher on a benchmark; without --weights training-free.")
    evaluate.add_argument("--data", choices=tuple(DATASETS), required=True, help="benchmark")
    evaluate.add_argument(
        "--data-root", type=Path, default=Path("data"), help="folder that holds the benchmark's folder"
    )
    evaluate.add_argument("--split", default="test", help="trn, val or test")
    evaluate.add_argument("--willow-split", type=int, help="only the test part of this leak-free split of PF-WILLOW")
    evaluate.add_argument("--weights", type=Path, help="weights.safetensors of a run")
    evaluate.add_argument(
        "--backbone",
        choices=("efficientnet-lite0", "resnet101"),
        help="without --weights; default efficientnet-lite0",
    )
    evaluate.add_argument("--out", type=Path, help="result folder; default runs/eval-<data>")
    evaluate.add_argument("--pictures", type=int, default=8, help="pairs to draw")
    evaluate.add_argument("--device", default="auto", help="cpu, cuda, or auto")
    commands.add_subcommand("eval", evaluate)

    match = ArgumentParser(description="Draw the matches of two images.")
    match.add_argument("images", nargs=2, type=Path, metavar="IMAGE", help="source image and target image")
    match.add_argument("-o", "--output", type=Path, required=True, help="picture to write")
    match.add_argument("--weights", type=Path, help="weights.safetensors of a run; default training-free")
    match.add_argument("--points", type=int, default=40, help="matches to draw, the most certain ones")
    match.add_argument("--device", default="auto", help="cpu, cuda, or auto")
    commands.add_subcommand("match", match)

    data = ArgumentParser(description="Make and check data sets.")
    commands.add_subcommand("data", data)
    kinds = data.add_subcommands(title="commands", required=True)
    demo = ArgumentParser(description="Write the embedded data set in the layouts of the three benchmarks.")
    demo.add_argument("out", type=Path, help="folder to write")
    demo.add_argument("--seed", type=int, default=0)
    kinds.add_subcommand("make-demo", demo)
    check = ArgumentParser(description="Check every list, image and annotation of a data set.")
    check.add_argument("root", type=Path, help="folder that holds the benchmarks' folders, or one of them")
    check.add_argument("--name", choices=tuple(DATASETS), help="only this benchmark; default every one found")
    kinds.add_subcommand("check", check)
    return parser, fit


def _resolve_config(argv: list[str]) -> list[str]:
    """``--config NAME`` of a shipped configuration becomes its path, unless a file of that name exists."""
    shipped = _shipped()
    out = list(argv)
    for i, word in enumerate(out):
        if word == "--config" and i + 1 < len(out):
            value, put = out[i + 1], lambda path, i=i: out.__setitem__(i + 1, path)
        elif word.startswith("--config="):
            value, put = word.split("=", 1)[1], lambda path, i=i: out.__setitem__(i, f"--config={path}")
        else:
            continue
        if value in shipped and not Path(value).is_file():
            put(str(shipped[value]))
        elif not Path(value).is_file():
            raise UserError(f"--config {value}: no such file, nor a shipped configuration ({', '.join(shipped)})")
    return out


def _run(argv: list[str]) -> None:
    parser, fit = _parser()
    arguments = parser.parse_args(_resolve_config(argv))
    if arguments.subcommand == "fit":
        from .config import Config
        from .fit import fit as run

        settings = fit.instantiate(arguments.fit)
        resume = settings.pop("resume")
        settings.pop("config", None)
        run(Config(**vars(settings)), resume)
    elif arguments.subcommand == "eval":
        from .tasks import evaluate_command as run

        run(**_plain(arguments["eval"]))
    elif arguments.subcommand == "match":
        from .tasks import match_command as run

        run(**_plain(arguments.match))
    elif arguments.data.subcommand == "make-demo":
        from .data.demo import write_demo

        options = arguments.data["make-demo"]
        write_demo(options.out, seed=options.seed)
        print(f"data set in {options.out}")
    else:
        from .data.check import check

        report = check(arguments.data.check.root, arguments.data.check.name)
        print(report.text())
        if not report.ok:
            sys.exit(1)


def _plain(namespace) -> dict:
    return {name.replace("-", "_"): value for name, value in vars(namespace).items()}


def main(argv: list[str] | None = None) -> None:
    """Entry point. Errors that a user can mend are printed in one line, exit code 1; an interrupt exits with 130."""
    try:
        _run(sys.argv[1:] if argv is None else argv)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
    except ModuleNotFoundError as error:
        needed = error.name or ""
        if needed.startswith(("semimatch", "torch.")):
            raise
        print(
            f"semimatch: the package {needed} is missing; install with: pip install 'semimatch[app]'",
            file=sys.stderr,
        )
        sys.exit(1)
    except Interrupted as error:
        print(f"semimatch: {error}; go on with --resume", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
    except UserError as error:
        print(f"semimatch: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
