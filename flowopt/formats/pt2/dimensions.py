"""What an export archive takes, for messages."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from flowopt.formats.limits import MEBIBYTE, Limits
from flowopt.formats.pt2.archive import read_archive

# It decorates a message and is read without a process of its own: a graph that takes seconds goes without.
_LIMITS: Final = Limits(json=16 * MEBIBYTE, nodes=50_000)
_MOST_INPUTS: Final = 20
_SYMBOL: Final = re.compile(r"'(\w+)'")


def archive_dimensions(path: Path, limits: Limits = _LIMITS) -> str:
    """The first inputs of an archive with their sizes, such as ``it takes ids (1..64, 128)``.

    Raises:
        MalformedModel, Untrusted: as ``read_archive``.
    """
    with path.open("rb") as file:
        document = read_archive(file, path.name, limits).document
    graph = document["graph_module"]["graph"]
    specs = document["graph_module"]["signature"]["input_specs"]
    users = [spec["user_input"]["arg"] for spec in specs if "user_input" in spec]
    names = [argument["as_tensor"]["name"] for argument in users if "as_tensor" in argument]
    shown = names[:_MOST_INPUTS]
    taken = [f"{n} ({_sizes(graph['tensor_values'].get(n), document['range_constraints'])})" for n in shown]
    return "it takes " + ", ".join(taken) + (f" and {len(names) - len(shown)} more" if len(names) > len(shown) else "")


def _sizes(tensor: Mapping[str, Any] | None, ranges: Mapping[str, Mapping[str, int | None]]) -> str:
    sizes = tensor["sizes"] if tensor is not None else []
    return ", ".join(
        str(size["as_int"]) if "as_int" in size else _range(size["as_expr"]["expr_str"], ranges) for size in sizes
    )


def _range(expression: str, ranges: Mapping[str, Mapping[str, int | None]]) -> str:
    bounds = next((ranges[symbol] for symbol in _SYMBOL.findall(expression) if symbol in ranges), None)
    if bounds is None:
        return "free"
    high = bounds["max_val"]
    return f"{bounds['min_val']}..{'' if high is None else high}"
