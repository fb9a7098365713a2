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
    from jsonargparse import set_parsing_settings

    from .config import Config
    from .data import DATASETS
    from .parser import Parser, add_command

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    names = ", ".join(_shipped())
    parser = Parser(prog="semimatch", description="Train, evaluate and use semantic matchers.")
    commands = parser.add_subcommands()

    fit = Parser(
        description="Train and evaluate.",
        usage="semimatch fit --config NAME|FILE [--resume] [--section.setting VALUE ...]",
    )
    fit.add_argument(
        "--config", action="config", metavar="NAME|FILE", help=f"a YAML file, or a shipped configuration: {names}"
    )
    fit.add_class_arguments(Config, None)
    fit.add_argument(
        "--resume", action="store_true", help="go on with the run in run.out, or start it if there is none"
    )
    add_command(commands, "fit", fit)

    evaluate = Parser(description="PCK of a matcher on a benchmark; without --weights training-free.")
    evaluate.add_argument("--data", choices=tuple(DATASETS), required=True, help="benchmark")
    evaluate.add_argument(
        "--data-root",
        type=Path,
        default=Path("data"),
        metavar="FOLDER",
        help="folder that holds the benchmark's folder",
    )
    evaluate.add_argument("--split", default="test", metavar="NAME", help="trn, val or test")
    evaluate.add_argument(
        "--willow-split", type=int, metavar="N", help="only the test part of this leak-free split of PF-WILLOW"
    )
    evaluate.add_argument("--weights", type=Path, metavar="FILE", help="weights.safetensors of a run")
    evaluate.add_argument(
        "--backbone",
        choices=("efficientnet-lite0", "resnet101"),
        help="without --weights; default efficientnet-lite0",
    )
    evaluate.add_argument(
        "-o", "--out", type=Path, metavar="FOLDER", help="folder for the result; default runs/eval-<data>"
    )
    evaluate.add_argument("--overwrite", action="store_true", help="replace the result that the folder holds")
    evaluate.add_argument("--pictures", type=int, default=8, metavar="N", help="pairs to draw")
    evaluate.add_argument("--device", default="auto", metavar="NAME", help="cpu, cuda, or auto")
    add_command(commands, "eval", evaluate)

    match = Parser(description="Draw the matches of two images.")
    match.add_argument("source", type=Path, metavar="SOURCE", help="source image")
    match.add_argument("target", type=Path, metavar="TARGET", help="target image")
    match.add_argument("-o", "--output", type=Path, required=True, metavar="PICTURE", help="picture to write")
    match.add_argument(
        "--weights", type=Path, metavar="FILE", help="weights.safetensors of a run; default training-free"
    )
    match.add_argument("--points", type=int, default=40, metavar="N", help="matches to draw, the most certain ones")
    match.add_argument("--device", default="auto", metavar="NAME", help="cpu, cuda, or auto")
    add_command(commands, "match", match)

    data = add_command(commands, "data", Parser(description="Make and check data sets."))
    kinds = data.add_subcommands()
    demo = Parser(description="Write the embedded data set in the layouts of the three benchmarks.")
    demo.add_argument("out", type=Path, metavar="FOLDER", help="folder to write")
    demo.add_argument("--seed", type=int, default=0, metavar="N", help="decides everything that is random")
    add_command(kinds, "make-demo", demo)
    check = Parser(description="Check every list, image and annotation of a data set.")
    check.add_argument(
        "root", type=Path, metavar="FOLDER", help="folder that holds the benchmarks' folders, or one of them"
    )
    check.add_argument("--name", choices=tuple(DATASETS), help="only this benchmark; default every one found")
    add_command(kinds, "check", check)
    return parser, fit


def _prepared(argv: list[str]) -> list[str]:
    """``--config NAME`` of a shipped configuration becomes its path, and ``--methods NAME`` a list of one."""
    out = list(argv)
    for i, word in enumerate(argv):
        flag, joined, value = word.partition("=")
        if flag not in ("--config", "--methods") or (not joined and i + 1 == len(out)):
            continue
        value = value if joined else out[i + 1]
        if flag == "--config":
            value = _config_file(value)
        elif not value.startswith("["):
            value = f"[{value}]"
        out[i if joined else i + 1] = f"{flag}={value}" if joined else value
    return out


def _config_file(value: str) -> str:
    """The path of a shipped configuration, unless a file of that name exists."""
    shipped = _shipped()
    if Path(value).is_file():
        return value
    if value not in shipped:
        raise UserError(f"--config {value}: no such file, nor a shipped configuration ({', '.join(shipped)})")
    return str(shipped[value])


def _run(argv: list[str]) -> None:
    parser, fit = _parser()
    arguments = parser.parse_args(_prepared(argv))
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

        options = _plain(arguments.match)
        run(images=[options.pop("source"), options.pop("target")], **options)
    elif arguments.data.subcommand == "make-demo":
        from .data.demo import write_demo

        options = arguments.data["make-demo"]
        if options.seed < 0:
            raise UserError(f"--seed {options.seed}: expected at least 0")
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
    except (RuntimeError, ValueError) as error:
        # What the environment asks of semimatch_kernels, which is imported only when a command needs it.
        if type(error).__name__ != "BackendError" and not str(error).startswith("SEMIMATCH_"):
            raise
        print(f"semimatch: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
