import time
from pathlib import Path
from typing import Any

from flowopt.formats.pt2.dimensions import archive_dimensions
from tests.hostile.pt2_archive import with_graph, with_members


def test_names_inputs_with_their_sizes(tmp_path: Path) -> None:
    assert archive_dimensions(with_members(tmp_path, {})) == "it takes x (1..64, 4)"


def test_many_inputs_and_many_symbols_take_no_longer_than_reading_them(tmp_path: Path) -> None:
    def edit(document: Any, graph: Any) -> None:
        specs = document["graph_module"]["signature"]["input_specs"]
        specs += [spec for spec in specs if "user_input" in spec] * 2_000
        size = {"as_expr": {"expr_str": "Symbol('s9999')", "hint": {"as_int": 2}}}
        graph["tensor_values"]["x"] |= {"sizes": [size] * 64, "strides": [{"as_int": 1}] * 64}
        document["range_constraints"] = {f"s{index}": {"min_val": 1, "max_val": 64} for index in range(5_000)}

    path = with_graph(tmp_path, edit)
    start = time.monotonic()
    found = archive_dimensions(path)
    # A tenth of a second; a search of all symbols for every size takes a minute.
    assert time.monotonic() - start < 5
    assert found.endswith("and 1981 more") and "free" in found
