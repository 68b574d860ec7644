"""Find passes by convention: a pass's name is its file's name. Nothing is imported to list them."""

import ast
import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any

from flowopt.errors import InternalError, UserError
from flowopt.pipeline.nearest import nearest


@dataclass(frozen=True, slots=True)
class PassEntry:
    """What a pass's source says about it.

    Attributes:
        name: ``fold-batch-norm``.
        family: folder below ``passes``: ``fold``.
        module: ``flowopt.passes.fold.fold_batch_norm``.
        class_name: ``FoldBatchNorm``.
        exactness: ``exact``.
        summary: first line of the class's docstring.
        documentation: the module's docstring: equation, numerical effect, refusals.
    """

    name: str
    family: str
    module: str
    class_name: str
    exactness: str
    summary: str
    documentation: str


@cache
def entries() -> Mapping[str, PassEntry]:
    """Every pass that flowopt ships, by name."""
    spec = find_spec("flowopt.passes")
    if spec is None or not spec.submodule_search_locations:
        raise InternalError("the package flowopt.passes is missing: the installation is broken")
    root = Path(next(iter(spec.submodule_search_locations)))
    found = (_entry(path) for path in sorted(root.glob("*/*.py")) if not path.name.startswith("_"))
    return MappingProxyType({e.name: e for e in found})


def pass_class(name: str) -> type[Any]:
    """The class of a pass by its name; imports torch.

    Raises:
        UserError: no such pass; names the nearest ones.
    """
    known = entries()
    if name not in known:
        raise UserError(f"there is no pass {name!r}", hint=nearest(name, known, otherwise="flowopt passes lists them:"))
    entry = known[name]
    return getattr(importlib.import_module(entry.module), entry.class_name)  # type: ignore[no-any-return]


def _entry(path: Path) -> PassEntry:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    class_name = "".join(word.capitalize() for word in path.stem.split("_"))
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == class_name:
            return PassEntry(
                name=path.stem.replace("_", "-"),
                family=path.parent.name,
                module=f"flowopt.passes.{path.parent.name}.{path.stem}",
                class_name=class_name,
                exactness=_exactness(node),
                summary=(ast.get_docstring(node) or "").split("\n")[0],
                documentation=ast.get_docstring(tree) or "",
            )
    raise InternalError(f"{path.name} defines no class {class_name}")


def _exactness(node: ast.ClassDef) -> str:
    for statement in node.body:
        if not isinstance(statement, ast.AnnAssign) or getattr(statement.target, "id", "") != "exactness":
            continue
        if isinstance(statement.value, ast.Attribute):
            return statement.value.attr.lower().replace("_", "-")
    raise InternalError(f"{node.name} does not say its exactness")
