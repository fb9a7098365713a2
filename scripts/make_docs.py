"""Write docs/ops/: one page an op, the types beside them, and the index.

``python scripts/make_docs.py`` writes them; ``--check`` writes nothing and exits with 1 if a page is out of date. All
is taken from docstrings, signatures and `semimatch_kernels.schemas`, never from what this machine can run.
"""

from __future__ import annotations

import argparse
import doctest
import inspect
import re
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import semimatch_kernels as smk  # noqa: E402
from semimatch_kernels import library, schemas  # noqa: E402
from semimatch_kernels.backends import BACKENDS, OPS  # noqa: E402

DOCS = ROOT / "docs" / "ops"
SECTIONS = ("Args", "Returns", "Gradient", "Raises", "Cost", "Called", "Source", "Example")
PUBLIC = [name for name in OPS if " " not in name]
TYPES = [name for name in smk.__all__ if name not in PUBLIC]
GENERATED = "<!-- Written by scripts/make_docs.py: change the docstring or the script, not this page. -->"
IMPORTS = "import torch\nimport semimatch_kernels as smk\n"

# The fused ops behind a public one, and when each of them runs; else it is the op of the same name.
BEHIND = {
    "match": {"match": 'per="target" or "source"', "match_both": 'per="both"'},
    "softmax_entropy": {"match": 'per="target" or "source"', "match_both": 'per="both"'},
    "soft_argmax": {"match": "no window", "soft_argmax": "with a window"},
    "softmax_entropy_features": {"match_features": ""},
    "soft_argmax_features": {"match_features": "no window", "soft_argmax_features": "with a window"},
    "dual_softmax_features": {"match_features": "the log-sum-exps"},
    "correlation": {"correlation": "", "mutual_filter": "mutual=True"},
}


def parse(doc: str) -> tuple[str, str, dict[str, str]]:
    """Summary, definition and sections of a docstring; a label stands at the start of a line or of a sentence."""
    doc = inspect.cleandoc(doc)
    parts = re.split(rf"(?:^|(?<=\. ))({'|'.join(SECTIONS)}):", doc, flags=re.M)
    summary, _, definition = parts[0].strip().partition("\n\n")
    sections = {label: text.strip("\n") for label, text in zip(parts[1::2], parts[2::2], strict=True)}
    if not definition and ":math:" in summary:
        definition = summary
    return summary, definition, sections


def arguments(function: object) -> dict[str, str]:
    """Text of each entry of Args, in their order; the key is "a, b" where one text is for several arguments."""
    names = "|".join(inspect.signature(function).parameters)
    text = textwrap.dedent(parse(function.__doc__)[2].get("Args", ""))
    parts = re.split(rf"(?:^|(?<=\. ))((?:{names})(?:, (?:{names}))*):\s", text, flags=re.M)
    return {key: " ".join(value.split()) for key, value in zip(parts[1::2], parts[2::2], strict=True)}


def link(name: str, own: str) -> str:
    if name != own and name in PUBLIC:
        return f"[`{name}`]({name}.md)"
    if name != own and name in TYPES:
        return f"[`{name}`](types.md#{name.lower()})"
    return f"`{name}`"


def markdown(text: str, own: str = "") -> str:
    """A paragraph of a docstring as Markdown: formulas, code, shapes, links to other ops."""

    def replace(m: re.Match) -> str:
        formula, code, name, shape, special = m.groups()
        if formula is not None:
            assert not re.search(r"\\[^\w\s]", formula), f"Markdown would eat the backslash of {formula!r}"
            return f"${formula}$"
        if name is not None:
            return link(name, own)
        return "\\" + special if special else f"`{code or shape}`"

    pattern = r":math:`([^`]+)`|``([^`]+)``|`([^`]+)`|(\[[^\[\]\s]+\])|(\*|<(?=\w))"
    paragraphs = (" ".join(p.split()) for p in text.split("\n\n"))
    return "\n\n".join(re.sub(pattern, replace, p) for p in paragraphs)


def argument_list(function: object, own: str) -> str:
    entries = ((", ".join(f"`{n}`" for n in key.split(", ")), text) for key, text in arguments(function).items())
    return "\n".join(f"- {names}: {markdown(text, own)}" for names, text in entries)


def capitalised(text: str) -> str:
    """With a capital, unless it begins with a name."""
    return text[:1].upper() + text[1:] if re.match(r"[a-z-]+[\s,;.]", text) else text


def signature(name: str) -> str:
    """The signature as a stub, one argument a line."""
    sig = inspect.signature(getattr(smk, name))
    lines, starred = [], False
    for p in sig.parameters.values():
        if p.kind is p.KEYWORD_ONLY and not starred:
            lines, starred = [*lines, "*"], True
        default = "" if p.default is p.empty else f" = {p.default!r}".replace("'", '"')
        lines.append(f"{'*' if p.kind is p.VAR_POSITIONAL else ''}{p.name}: {p.annotation}{default}")
    return f"def {name}(\n" + "".join(f"    {line},\n" for line in lines) + f") -> {sig.return_annotation}: ..."


def example(name: str) -> str:
    """The docstring's example as a script, results as comments."""
    lines = [IMPORTS]
    for e in doctest.DocTestParser().get_examples(getattr(smk, name).__doc__):
        lines += [e.source.rstrip(), *(f"# {line}" for line in e.want.splitlines())]
    return "\n".join(lines)


def code(text: str, language: str = "python") -> str:
    return f"```{language}\n{text.rstrip()}\n```"


def table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def behind(name: str) -> dict[str, str]:
    return BEHIND.get(name, {name: ""})


def schema(name: str) -> str:
    text = schemas.OPS[name].schema if name in schemas.OPS else schemas.COMPOSITES[name]
    head, _, result = text.rpartition(" -> ")
    parts = (f"torch.ops.semimatch_kernels.{name}{head}", f"    -> {result}")
    # Broken after commas only.
    parts = (re.sub(r"(?<=[^,\s]) ", "\xa0", p) for p in parts)
    lines = (textwrap.fill(p, 110, subsequent_indent=" " * 8, break_long_words=False) for p in parts)
    return "\n".join(lines).replace("\xa0", " ")


def backend_rows(name: str) -> list[tuple[str, ...]]:
    rows = []
    for op, when in behind(name).items():
        for fused in (op, f"{op}_backward"):
            if fused in schemas.OPS or fused in schemas.COMPOSITES:
                have = ("reference", *(schemas.OPS[fused].backends if fused in schemas.OPS else ()))
                label = f"`{fused}`" + (f" ({when})" if when and fused == op else "")
                rows.append((label, *("yes" if b in have else "no" for b in BACKENDS)))
    return rows


def torch_ops(name: str) -> str:
    ops = [row[0].split("`")[1] for row in backend_rows(name)]
    note = (
        "One schema for all backends: the name as it is stands for `cpu` and `cuda`, by device; `_triton` or"
        " `_reference` is appended for those."
    )
    if name in schemas.COMPOSITES:
        note = "Made of PyTorch's own ops, whose gradients and rules it has."
    return note + "\n\n" + code("\n".join(schema(op) for op in ops), "text")


def file_link(function: object) -> str:
    path = Path(inspect.getsourcefile(function)).relative_to(ROOT).as_posix()
    return f"[`{path}`](../../{path})"


def op_page(name: str) -> str:
    function = getattr(smk, name)
    summary, definition, sections = parse(function.__doc__)
    definitions = [library.definition(op) for op in behind(name)]
    where = [f"reference {file_link(d)}, `{d.__name__}`" for d in definitions]
    where = f"Public function {file_link(function)}; {'; '.join(dict.fromkeys(where))}."
    text = {label: capitalised(markdown(sections[label], name)) for label in SECTIONS[1:-1]}
    parts = [
        GENERATED, f"# {name}", markdown(summary, name), code(signature(name)), "## Definition",
        capitalised(markdown(definition, name)), where,
        "## Arguments", argument_list(function, name), "## Result", text["Returns"],
        "## Gradient", text["Gradient"], "## Errors", text["Raises"], "## Cost", text["Cost"],
        "## Example", code(example(name)), "## Backends",
        table(("op", *BACKENDS), backend_rows(name)), "## Torch ops", torch_ops(name),
        "## In published matchers", text["Called"], "## Source", text["Source"],
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def fields(cls: type) -> str:
    """The fields of a result or of an argument, with the comments that stand behind them."""
    found = re.findall(r"^    (\w+): ([^=#\n]+?)(?: = ([^#\n]+?))?(?:  #: (.*))?$", inspect.getsource(cls), re.M)
    rows = [f"- `{n}: {kind}{f' = {default}' if default else ''}`" + (f": {markdown(c)}" if c else "")
            for n, kind, default, c in found]  # fmt: skip
    return "\n".join(rows)


def types_page() -> str:
    parts = [GENERATED, "# Types and helpers", "What the ops take and return beside tensors and numbers."]
    for name in TYPES:
        value = getattr(smk, name)
        parts.append(f"## {name}")
        if isinstance(value, type):
            parts += [markdown(inspect.cleandoc(value.__doc__), name), fields(value)]
        elif callable(value):
            summary, definition, sections = parse(value.__doc__)
            texts = (f"{label}: {markdown(sections[label], name)}" for label in SECTIONS[1:-1] if label in sections)
            text = markdown(summary + "\n\n" + definition, name)
            parts += [code(signature(name)), text, argument_list(value, name), *texts]
        else:
            keys = list(dict.fromkeys(key for policy in value.values() for key in policy))
            rows = [(f"`{n}`", *(str(policy.get(k, "–")) for k in keys)) for n, policy in value.items()]
            about = "Arguments of [`pseudo_labels`](pseudo_labels.md) by the name of the method that chooses them."
            parts += [about, table(("name", *(f"`{k}`" for k in keys)), rows)]
    return "\n\n".join(p for p in parts if p) + "\n"


def index_page() -> str:
    rows = []
    for name in PUBLIC:
        summary, _, sections = parse(getattr(smk, name).__doc__)
        twin = f"{name}_features"
        gradient = "no" if sections["Gradient"].strip() == "none." else "yes"
        rows.append((f"[`{name}`]({name}.md)", markdown(summary), link(twin, "") if twin in PUBLIC else "–", gradient))
    return "\n\n".join([
        GENERATED, "# Ops", table(("op", "what it computes", "from features", "differentiable"), rows),
        "Results, options and helpers that are no ops: [types](types.md).",
        "B is the batch, S and T the source and target cells, C the channels or the correlation `C[b, s, t]`. Costs"
        " are of the op fused: bytes are the elements read and written times the size of an element, a flop is one"
        " addition or multiplication, and exp is counted apart. The reference makes more passes over memory.",
        "Which backends there are on a machine, and why not: `python -m semimatch_kernels.info`.",
    ]) + "\n"  # fmt: skip


def pages() -> dict[Path, str]:
    """Every generated page."""
    ops = {DOCS / f"{name}.md": op_page(name) for name in PUBLIC}
    return ops | {
        DOCS / "README.md": index_page(),
        DOCS / "types.md": types_page(),
    }


def out_of_date() -> list[str]:
    """Pages that differ from what would be written, and pages of ops that are no more."""
    wanted = pages()
    wrong = [path for path, text in wanted.items() if not path.exists() or path.read_text() != text]
    wrong += [path for path in DOCS.glob("*.md") if path not in wanted]
    return [path.relative_to(ROOT).as_posix() for path in wrong]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if a page is out of date")
    check, wrong = parser.parse_args().check, out_of_date()
    for path in wrong:
        print(f"out of date: {path}" if check else f"written: {path}")
    if check:
        return 1 if wrong else 0
    DOCS.mkdir(parents=True, exist_ok=True)
    wanted = pages()
    for path in DOCS.glob("*.md"):
        if path not in wanted:
            path.unlink()
    for path, text in wanted.items():
        path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
