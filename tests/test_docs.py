"""The documentation: pages up to date, docstrings complete, examples that run, every environment variable listed."""

from __future__ import annotations

import ast
import doctest
import inspect
import re
import sys
from pathlib import Path

import pytest
import torch

import semimatch_kernels as smk

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
import make_docs  # noqa: E402


def function(name):
    return getattr(smk, name)


def test_the_pages_are_up_to_date():
    assert make_docs.out_of_date() == [], "run: python scripts/make_docs.py"


def test_check_tells_a_stale_page(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(make_docs, "ROOT", tmp_path)
    monkeypatch.setattr(make_docs, "DOCS", tmp_path / "ops")
    monkeypatch.setattr(make_docs, "pages", lambda: {tmp_path / "ops" / "a.md": "new\n"})
    monkeypatch.setattr(sys, "argv", ["make_docs.py", "--check"])
    assert make_docs.main() == 1 and "out of date: ops/a.md" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["make_docs.py"])
    assert make_docs.main() == 0
    (tmp_path / "ops" / "gone.md").write_text("a page of an op that is no more")
    monkeypatch.setattr(sys, "argv", ["make_docs.py", "--check"])
    assert make_docs.main() == 1 and capsys.readouterr().out.endswith("out of date: ops/gone.md\n")


@pytest.mark.parametrize("name", make_docs.PUBLIC)
def test_every_section_is_there(name):
    summary, definition, sections = make_docs.parse(function(name).__doc__)
    assert summary and definition, "a summary, and an equation or a statement before Args"
    assert list(sections) == list(make_docs.SECTIONS)
    assert all(text.strip() for text in sections.values())
    assert re.search(r"flops|comparisons|as `", sections["Cost"]) and re.search(
        r"\b(reads?|writes?|written|bytes)\b|as `", sections["Cost"]
    ), "Cost: work, and bytes or elements moved"
    if name.endswith("_features"):
        assert re.search("[Mm]emory", sections["Cost"]), "Cost: the memory of an op that never holds the correlation"


@pytest.mark.parametrize("name", make_docs.PUBLIC)
def test_every_argument_is_described(name):
    """Once, by a text of its own or "as in `other`" of an op that describes it."""
    described: dict[str, str] = {}
    for key, text in make_docs.arguments(function(name)).items():
        assert text.strip(), key
        for argument in key.split(", "):
            assert argument not in described, f"{argument} is described twice"
            described[argument] = text
    assert described.keys() == inspect.signature(function(name)).parameters.keys()
    for argument, text in described.items():
        while other := re.match(r"as in `(\w+)`", text):
            texts = make_docs.arguments(function(other[1])).items()
            texts = [text for key, text in texts if argument in key.split(", ")]
            assert texts, f"{argument}: {other[1]} does not describe it"
            text = texts[0]


@pytest.mark.parametrize("name", make_docs.PUBLIC)
def test_the_example_runs(name):
    examples = doctest.DocTestParser().get_doctest(
        function(name).__doc__, {"torch": torch, "smk": smk}, name, None, None
    )
    assert any(f"smk.{name}(" in e.source for e in examples.examples) and examples.examples[-1].want
    report: list[str] = []
    failed = doctest.DocTestRunner().run(examples, out=report.append).failed
    assert not failed, "".join(report)
    exec(make_docs.example(name), {})  # as it stands on the page


def test_every_torch_op_has_a_page():
    shown = {op for name in make_docs.PUBLIC for op in make_docs.behind(name)}
    ops = {*make_docs.schemas.OPS, *make_docs.schemas.COMPOSITES}
    assert shown == {op for op in ops if not op.endswith("_backward")}


def test_links_lead_somewhere():
    for page in (ROOT / "docs").rglob("*.md"):
        text = page.read_text()
        for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)", text):
            file = (page.parent / target).resolve() if target else page
            assert file.exists(), f"{page.name}: {target}"
            if anchor:
                headings = re.findall(r"^#+ (.*)$", file.read_text(), re.M)
                assert anchor in {h.lower().replace(" ", "-") for h in headings}, f"{page.name}: {target}#{anchor}"


# --- environment variables


def read_by_python(path: Path) -> set[str]:
    """Environment variables that a module names in ``os.environ[...]``, ``.get(...)``, ``in os.environ`` or ``getenv``;
    by way of a constant of the module, too."""
    tree = ast.parse(path.read_text())
    bound = {
        t.id: n.value for n in tree.body if isinstance(n, ast.Assign) for t in n.targets if isinstance(t, ast.Name)
    }
    for n in ast.walk(tree):
        if isinstance(n, (ast.For, ast.comprehension)) and isinstance(n.target, ast.Name):
            bound.setdefault(n.target.id, n.iter)

    def names(node: ast.expr) -> set[str]:
        while isinstance(node, ast.Name):
            node = bound[node.id]
        return {n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str)}

    def is_environ(node: ast.expr) -> bool:
        return isinstance(node, ast.Attribute) and node.attr == "environ"

    found: set[str] = set()
    for n in ast.walk(tree):
        if isinstance(n, ast.Subscript) and is_environ(n.value):
            found |= names(n.slice)
        elif isinstance(n, ast.Compare) and any(map(is_environ, n.comparators)):
            found |= names(n.left)
        elif isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute) and n.args:
            call, owner = n.func.attr, n.func.value
            if call == "getenv" or (is_environ(owner) and call in ("get", "setdefault", "pop")):
                found |= names(n.args[0])
    return found


def read_by_sources() -> dict[str, set[str]]:
    """Each variable that a source reads, with the files that do."""
    files = [ROOT / "setup.py", ROOT / "tests" / "conftest.py"]
    for folder in ("semimatch_kernels", "semimatch", "scripts", "benchmarks"):
        files += (ROOT / folder).rglob("*.py")
    found = [(name, path) for path in files for name in read_by_python(path)]
    native = (path for path in (ROOT / "csrc").rglob("*") if path.is_file())
    found += [(name, path) for path in native for name in re.findall(r'getenv\("(\w+)"\)', path.read_text())]
    makefile = ROOT / "Makefile"
    found += [(name, makefile) for name in re.findall(r"(?m)^(\w+) \?=", makefile.read_text())]
    readers: dict[str, set[str]] = {}
    for name, path in found:
        readers.setdefault(name, set()).add(path.relative_to(ROOT).as_posix())
    return readers


def test_every_environment_variable_is_on_the_page_with_its_readers():
    page = (ROOT / "docs" / "environment.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \|.*\|(.*)\|$", page, re.M)
    assert {name: set(re.findall(r"`([^`]+)`", readers)) for name, readers in rows} == read_by_sources()


def test_the_readme_names_no_other_variable():
    section = (ROOT / "README.md").read_text().partition("\n## Environment variables\n")[2].partition("\n## ")[0]
    names = {n for row in re.findall(r"^\| (`[^|]+) \|", section, re.M) for n in re.findall(r"`(\w+)", row)}
    assert names <= read_by_sources().keys()


def test_the_scan_sees_every_way_to_read(tmp_path):
    (tmp_path / "m.py").write_text(
        'import os\nA = "V1"\nB = ("V2", "V3")\n'
        'os.environ.get(A), [os.environ.get(b) for b in B], os.environ["V4"], "V5" in os.environ, os.getenv("V6")\n'
    )
    assert read_by_python(tmp_path / "m.py") == {f"V{i}" for i in range(1, 7)}
