"""Export archives that try to run programs, read other files, exhaust the machine, or write to the terminal.

``PT2_FILES`` maps a name to a builder: given an empty folder, it writes an archive into it and returns its path. What
an archive must not create is ``marker(folder)``.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from tests.hostile.pt2_archive import MODEL as GRAPH
from tests.hostile.pt2_archive import ROOT, Entry, entries, packed, parts, touch, with_graph, with_json, written
from tests.hostile.pt2_code import CODE_FILES, enumeration, sample_inputs
from tests.hostile.pt2_sizes import SIZE_FILES, TORCH_FILES
from tests.hostile.pt2_zip import ZIP_FILES

Builder = Callable[[Path], Path]

PT2_FILES: Final[dict[str, Builder]] = {**CODE_FILES, **ZIP_FILES, **SIZE_FILES, **TORCH_FILES}
_NAMES: Final = {"name-parameter-method", "name-subgraph-method", "operator-script-only"}
JUDGED_BY_TORCH: Final = frozenset(TORCH_FILES.keys() | _NAMES)
"""Those that flowopt's reader lets through: their values are in order, and torch refuses what they say."""
ESCAPES: Final = "\x1b[31mred\x1b]0;title\x07\r\u202e"


def _metadata(folder: Path) -> Path:
    """Provenance that torch resolves to functions and objects."""

    def edit(document: Any, graph: Any) -> None:
        graph["nodes"][0]["metadata"] |= {
            "source_fn_stack": "linear,torch.os.system",
            "custom": json.dumps({"code": touch(folder)}),
            "from_node": json.dumps([{"name": touch(folder), "target": "torch.os.system"}]),
            "torch_fn": "torch.os;system",
        }
        document["graph_module"]["metadata"]["custom"] = touch(folder)

    return with_graph(folder, edit)


def _escapes(folder: Path) -> Path:
    """Control characters in the texts that messages and reports quote."""

    def edit(_: Any, graph: Any) -> None:
        trace = f'File "{ESCAPES}.py", line 1, in {ESCAPES}\n    return {ESCAPES}'
        graph["nodes"][0]["metadata"] |= {"stack_trace": trace, "nn_module_stack": "L__self__,\x07,\x1b"}

    return with_graph(folder, edit)


def _link(folder: Path) -> Path:
    """A member that unpackers make a symbolic link of; nothing is unpacked here."""
    link = Entry(f"{ROOT}/extra/link", b"/etc/passwd", attributes=0o120777 << 16)
    return written(folder, packed([*entries(parts()), link]))


def _unknown_fields(folder: Path) -> Path:
    """Fields that a later schema could have."""
    return with_json(folder, GRAPH, lambda document: document.update(run=touch(folder)))


HARMLESS_FILES: Final[dict[str, Builder]] = {
    "sample-inputs": sample_inputs,
    "nesting-enumeration": enumeration,
    "metadata": _metadata,
    "escapes": _escapes,
    "link": _link,
    "unknown-fields": _unknown_fields,
}
"""What is dangerous here is left out on the way: these load, and do nothing."""
