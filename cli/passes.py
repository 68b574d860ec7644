"""``flowopt passes``: what can be asked for by name. Read from the sources; nothing is imported."""

import ast
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from flowopt.cli.options import Debug
from flowopt.errors import InternalError
from flowopt.pipeline.registry import PassEntry, entries, pass_class


def passes(
    name: Annotated[str | None, typer.Argument(metavar="NAME", show_default=False, help="Show one in full.")] = None,
    debug: Debug = False,
) -> None:
    """List the passes, or document one.

    Other commands take a preset, passes in text form or a file: --passes exact, --passes my.toml.

    \b
    A text: fold-constants:max_growth=4194304,fold-batch-norm
    A file, my.toml:
      preset = "exact"         # or: passes = ["fold-constants", "fold-batch-norm"]
      skip = ["simplify-shapes"]
      [options.fold-constants]
      max_growth = 4194304
    """
    from flowopt.cli.render import Renderer

    if name is None:
        Renderer().passes(tuple(entries().values()))
        return
    if name not in entries():
        pass_class(name)  # raises, naming the nearest
    Renderer().one_pass(entries()[name], pass_options(entries()[name]))


def pass_options(entry: PassEntry) -> tuple[tuple[str, str, str], ...]:
    """Name, default and documentation of every option of a pass: its dataclass fields, as written in its source."""
    spec = find_spec(entry.module)
    if spec is None or spec.origin is None:
        raise InternalError(f"{entry.module} has no source file: the installation is broken")
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    body = next(n.body for n in tree.body if isinstance(n, ast.ClassDef) and n.name == entry.class_name)
    found = []
    for statement, following in zip(body, [*body[1:], None], strict=True):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name) and _is_field(statement):
            default = ast.unparse(statement.value) if statement.value is not None else ""
            found.append((statement.target.id, default, _text(following)))
    return tuple(found)


def _is_field(statement: ast.AnnAssign) -> bool:
    return "ClassVar" not in ast.unparse(statement.annotation)


def _text(statement: ast.stmt | None) -> str:
    """The string that documents the field above it."""
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
        return str(statement.value.value)
    return ""
