"""Every refusal code that a pass documents is one it uses, and has a test."""

import ast
import re
from pathlib import Path

import pytest

from flowopt.pipeline.registry import PassEntry, entries
from flowopt.rewrite.codes import CODES

TESTS = Path(__file__).resolve().parent
# Methods of Site that refuse with a code of their own.
IMPLIED = {"constant": "not-constant", "recorded": "missing-metadata"}


def documented(entry: PassEntry) -> set[str]:
    """Codes that open a line of the docstring's section "Refuses when"."""
    section = entry.documentation.partition("Refuses when:")[2].partition("\n\n")[0]
    return set(re.findall(r"^ {4}([a-z]+(?:-[a-z]+)*) {2,}", section, flags=re.MULTILINE))


def used(entry: PassEntry) -> set[str]:
    """Codes that the source passes to ``require`` or ``refuse``, or implies, and that of what it shares with others.

    An analysis that it imports counts where it makes refusals, with the analyses that it asks.
    """
    folder = TESTS.parents[1] / "passes" / entry.family
    nodes = _nodes(folder / f"{file_stem(entry)}.py")
    for module in _imported(nodes):
        _, _, stem = module.removeprefix("flowopt.passes.").rpartition(".")
        if stem.startswith("_"):
            nodes += _nodes(folder / f"{stem}.py")
        if module.startswith("flowopt.analysis.") and "flowopt.report.sites" in _imported(_analysis(module)):
            nodes += [n for one in (module, *_imported(_analysis(module))) for n in _analysis(one)]
    constants = {n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)}
    methods = [n.func for n in nodes if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute)]
    # Of an edit, the methods of these names do not refuse.
    called = {m.attr for m in methods if isinstance(m.value, ast.Name) and m.value.id == "site"}
    return (constants & CODES.keys()) | {code for method, code in IMPLIED.items() if method in called}


def _imported(nodes: list[ast.AST]) -> set[str]:
    return {n.module for n in nodes if isinstance(n, ast.ImportFrom) and n.module}


def _analysis(module: str) -> list[ast.AST]:
    """The source of an analysis; nothing of another module."""
    prefix, _, stem = module.rpartition(".")
    return _nodes(TESTS.parents[1] / "flowopt" / "analysis" / f"{stem}.py") if prefix == "flowopt.analysis" else []


def _nodes(source: Path) -> list[ast.AST]:
    return list(ast.walk(ast.parse(source.read_text(encoding="utf-8"))))


def file_stem(entry: PassEntry) -> str:
    return entry.name.replace("-", "_")


@pytest.mark.parametrize("name", entries())
def test_documented_codes_are_those_in_use(name: str) -> None:
    assert documented(entries()[name]) == used(entries()[name])


@pytest.mark.parametrize("name", entries())
def test_every_code_has_a_test(name: str) -> None:
    entry = entries()[name]
    files = (TESTS / entry.family).glob(f"test_{file_stem(entry)}*.py")
    tested = set(re.findall(r"\"([a-z]+(?:-[a-z]+)*)\"", "".join(path.read_text(encoding="utf-8") for path in files)))
    assert documented(entry) - tested == set()
