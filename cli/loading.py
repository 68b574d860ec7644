"""MODEL becomes a Program, after everything that can be refused without loading it."""

import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowopt.cli.options import Trust
from flowopt.cli.parsing import parse_dynamic
from flowopt.errors import UserError

if TYPE_CHECKING:
    from flowopt.program.program import Program


def load_model(model: str, *, trust: Trust, eval_mode: bool = False, dynamic: Sequence[str] = ()) -> "Program":
    """Load an archive or call a factory.

    Raises:
        UserError: an ONNX file, or capture options for an archive, whose graph and dimensions are fixed.
        FlowoptError: as ``flowopt.load``.
    """
    free = parse_dynamic(dynamic)
    path = Path(model)
    if path.suffix == ".onnx" and path.is_file():
        raise UserError(
            f"{model} is an ONNX file, and flowopt works on captured PyTorch models",
            hint="give the archive or the factory it was made from; to compare an artifact with its model: "
            f"flowopt verify MODEL {path.parent}",
        )
    if path.is_file() and dynamic:
        raise UserError(
            f"--dynamic does not apply to {path.name}: the dimensions of an archive are fixed",
            why=archive_dimensions(path),
            hint="export it again with other dynamic_shapes, or name a factory: package.module:factory",
        )
    from flowopt.program.loading.load import load

    return load(model, trust=trust, eval_mode=eval_mode, **free.capture_options())


def archive_dimensions(path: Path) -> str:
    """Inputs of a ``torch.export`` archive with their sizes, such as ``it takes ids (1..64, 128)``.

    Only the graph's JSON text is read, so that no trust is needed. Empty where that is not what is expected: this
    decorates a message.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            name = next(n for n in archive.namelist() if n.endswith("models/model.json"))
            exported = json.loads(archive.read(name))
        graph = exported["graph_module"]["graph"]
        specs = exported["graph_module"]["signature"]["input_specs"]
        names = [s["user_input"]["arg"]["as_tensor"]["name"] for s in specs if "user_input" in s]
        ranges = exported["range_constraints"]
        return "it takes " + ", ".join(f"{n} ({_sizes(graph['tensor_values'][n], ranges)})" for n in names)
    except (OSError, ValueError, LookupError, TypeError, StopIteration, zipfile.BadZipFile):
        return ""


def _sizes(tensor: dict[str, Any], ranges: dict[str, dict[str, int | None]]) -> str:
    return ", ".join(
        str(size["as_int"]) if "as_int" in size else _range(size["as_expr"]["expr_str"], ranges)
        for size in tensor["sizes"]
    )


def _range(expression: str, ranges: dict[str, dict[str, int | None]]) -> str:
    for symbol, bounds in ranges.items():
        if f"'{symbol}'" in expression:
            high = bounds["max_val"]
            return f"{bounds['min_val']}..{'' if high is None else high}"
    return "free"
