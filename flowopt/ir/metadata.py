"""What a node remembers of its source: user line, module path, recorded value; and how a new node inherits it."""

import re
from typing import Any

import torch
from torch import Tensor, fx

_FRAME = re.compile(r'File "(?P<path>[^"]+)", line (?P<line>\d+), in (?P<function>\S+)\n\s*(?P<code>[^\n]*)')
# Library code, and code that torch generates while it traces (<eval_with_key>.12).
_NOT_THE_USERS = ("torch/", "<")


def relative_stack_trace(trace: str) -> str:
    """The same stack trace with every path cut to the package that holds it.

    Absolute paths make artifacts differ between folders and tell where somebody's files lie.
    """
    return re.sub(r'File "([^"]+)"', lambda found: f'File "{_relative_path(found[1])}"', trace)


def source_line(node: fx.Node) -> str:
    """``file:line: code`` of the innermost frame that is the user's own, or an empty string."""
    trace = relative_stack_trace(node.meta.get("stack_trace") or "")
    frames = [m.groupdict() for m in _FRAME.finditer(trace)]
    own = [f for f in frames if not f["path"].startswith(_NOT_THE_USERS)] or frames
    if not own:
        return ""
    frame = own[-1]
    return f"{frame['path']}:{frame['line']}: {frame['code'].strip()}"


def module_path(node: fx.Node) -> str:
    """Dotted path of the innermost module that the node came from, or an empty string."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [entry[0] for entry in stack.values()]
    return str(paths[-1]) if paths else ""


def recorded_tensor(node: Any) -> Tensor | None:
    """The fake tensor recorded for a node, or None for numbers, tuples and nodes without metadata."""
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    return value if isinstance(value, Tensor) else None


def static_size(node: Any, axis: int) -> int | None:
    """Size of one axis when it is known at capture, else None."""
    value = recorded_tensor(node)
    if value is None or not -value.dim() <= axis < value.dim():
        return None
    size = value.shape[axis]
    return int(size) if isinstance(size, int) else None


def inherit(new: fx.Node, like: fx.Node, rewritten_by: str) -> None:
    """Copy the provenance of ``like`` to ``new`` and note which pass made it."""
    for key in ("stack_trace", "nn_module_stack"):
        if key in like.meta:
            new.meta[key] = like.meta[key]
    new.meta["rewritten_by"] = rewritten_by


def symbol_of(size: int | torch.SymInt) -> str | None:
    """Name of the symbol when a size is one bare symbol, else None."""
    if isinstance(size, int):
        return None
    expression = size.node.expr
    return str(expression) if expression.is_Symbol else None


def sizes_as_text(node: Any) -> tuple[str, ...]:
    """Sizes of a node's value, empty where it has none: a free size is equal to itself, and asking costs no guard."""
    value = recorded_tensor(node)
    return () if value is None else tuple(map(str, value.shape))


def _relative_path(path: str) -> str:
    for marker in ("/site-packages/", "/dist-packages/"):
        if marker in path:
            return path.split(marker, 1)[1]
    if not path.startswith("/") and not re.match(r"[A-Za-z]:[\\/]", path):
        return path
    standard_library = re.search(r"/lib/python3\.\d+/(.*)$", path)
    if standard_library:
        return standard_library[1]
    # A user's own file: its name and its folder say enough.
    return "/".join(path.replace("\\", "/").rsplit("/", 2)[-2:])
