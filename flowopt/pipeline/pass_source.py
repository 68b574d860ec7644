"""What the source file of a pass says, read without running it."""

import ast
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class PassSource:
    """Exactness (empty where it is not said), first line of the class's docstring, docstring of the module."""

    exactness: str
    summary: str
    documentation: str


def read_pass_source(path: Path, class_name: str) -> PassSource | None:
    """What a file says about the pass of this class; None where it does not define the class.

    Raises:
        OSError, ValueError, SyntaxError, RecursionError: no such file, or none that Python could run.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    node = _class(tree, class_name)
    if node is None:
        return None
    own = ast.get_docstring(node) or ""
    return PassSource(_exactness(node), own.split("\n")[0], ast.get_docstring(tree) or own)


def read_pass_options(path: Path, class_name: str) -> tuple[tuple[str, str, str], ...]:
    """Name, default and documentation of every option: the class's dataclass fields, as they are written.

    Raises:
        OSError, ValueError, SyntaxError, RecursionError: as above.
    """
    node = _class(ast.parse(path.read_text(encoding="utf-8")), class_name)
    body = [] if node is None else node.body
    found = []
    for statement, following in zip(body, [*body[1:], None], strict=True) if body else ():
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name) and _is_field(statement):
            default = ast.unparse(statement.value) if statement.value is not None else ""
            found.append((statement.target.id, default, _text(following)))
    return tuple(found)


def _class(tree: ast.Module, name: str) -> ast.ClassDef | None:
    return next((node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name), None)


def _exactness(node: ast.ClassDef) -> str:
    for statement in node.body:
        if isinstance(statement, ast.AnnAssign):
            targets: list[ast.expr] = [statement.target]
        elif isinstance(statement, ast.Assign):
            targets = statement.targets
        else:
            continue
        if getattr(targets[0], "id", "") == "exactness" and isinstance(statement.value, ast.Attribute):
            return statement.value.attr.lower().replace("_", "-")
    return ""


def _is_field(statement: ast.AnnAssign) -> bool:
    """Whether the text form of pipelines can name it: ``field(..., repr=False)`` is given by Python alone."""
    keywords = statement.value.keywords if isinstance(statement.value, ast.Call) else []
    is_hidden = any(k.arg == "repr" and ast.unparse(k.value) == "False" for k in keywords)
    return "ClassVar" not in ast.unparse(statement.annotation) and not is_hidden


def _text(statement: ast.stmt | None) -> str:
    """The string that documents the field above it."""
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
        return str(statement.value.value)
    return ""
