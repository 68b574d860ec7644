"""What an export archive takes, for messages."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flowopt.formats.limits import DEFAULT_LIMITS, Limits
from flowopt.formats.pt2.archive import read_archive


def archive_dimensions(path: Path, limits: Limits = DEFAULT_LIMITS) -> str:
    """Inputs of an archive with their sizes, such as ``it takes ids (1..64, 128)``.

    Raises:
        MalformedModel, Untrusted: as ``read_archive``.
    """
    with path.open("rb") as file:
        document = read_archive(file, path.name, limits).document
    graph = document["graph_module"]["graph"]
    specs = document["graph_module"]["signature"]["input_specs"]
    users = [spec["user_input"]["arg"] for spec in specs if "user_input" in spec]
    names = [argument["as_tensor"]["name"] for argument in users if "as_tensor" in argument]
    taken = [f"{n} ({_sizes(graph['tensor_values'].get(n), document['range_constraints'])})" for n in names]
    return "it takes " + ", ".join(taken)


def _sizes(tensor: Mapping[str, Any] | None, ranges: Mapping[str, Mapping[str, int | None]]) -> str:
    sizes = tensor["sizes"] if tensor is not None else []
    return ", ".join(
        str(size["as_int"]) if "as_int" in size else _range(size["as_expr"]["expr_str"], ranges) for size in sizes
    )


def _range(expression: str, ranges: Mapping[str, Mapping[str, int | None]]) -> str:
    for symbol, bounds in ranges.items():
        if f"'{symbol}'" in expression:
            high = bounds["max_val"]
            return f"{bounds['min_val']}..{'' if high is None else high}"
    return "free"
