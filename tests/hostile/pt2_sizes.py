"""Archives whose figures lie: sizes, offsets, types, numbers of digits, depths, powers."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

from tests.hostile.pt2_archive import CONSTANTS, FIRST_NODE, MODEL, WEIGHTS, parts, with_graph, with_json, with_members

_SYMBOL: Final = "Symbol('s77', positive=True, integer=True)"


def _sizes(*sizes: int) -> list[dict[str, int]]:
    return [{"as_int": size} for size in sizes]


def _weight(folder: Path, *, path_name: str | None = None, **meta: Any) -> Path:
    """The bias with another record, or other figures."""

    def edit(config: Any) -> None:
        payload = config["config"]["layer.bias"]
        payload["path_name"] = path_name or payload["path_name"]
        payload["tensor_meta"] |= meta

    return with_json(folder, WEIGHTS, edit)


def _text(folder: Path, old: str, new: str, member: str = MODEL) -> Path:
    """One piece of a JSON text replaced as text."""
    text = parts()[member].decode()
    assert old in text
    return with_members(folder, {member: text.replace(old, new, 1).encode()})


def _deep_brackets(folder: Path) -> Path:
    return with_members(folder, {MODEL: b"[" * 100_000 + b"]" * 100_000})


def _deep_arguments(folder: Path) -> Path:
    """Within the limit of depth, but each level costs Python several calls."""
    deep = '{"as_string_to_argument": {"a": ' * 95 + '{"as_int": 1}' + "}}" * 95
    return _text(folder, '{"as_tensor": {"name": "x"}}, "kind"', f'{deep}, "kind"')


def _digits(folder: Path, old: str = '"major": 8') -> Path:
    return _text(folder, old, old.rpartition(" ")[0] + " " + "9" * 1_000_000)


def _expression(folder: Path, text: str) -> Path:
    def edit(_: Any, graph: Any) -> None:
        graph["tensor_values"]["x"]["sizes"][0]["as_expr"]["expr_str"] = text

    return with_graph(folder, edit)


def _nested(function: str, count: int, inner: str, tail: str = "") -> str:
    return f"{function}(" * count + inner + f"{tail})" * count


def _node(folder: Path, target: str, *arguments: tuple[str, Any]) -> Path:
    def edit(_: Any, graph: Any) -> None:
        inputs = [{"name": name, "arg": argument, "kind": 1} for name, argument in arguments]
        graph["nodes"][0].update(target=f"torch.ops.aten.{target}", inputs=inputs)

    return with_graph(folder, edit)


def _document(folder: Path, **changes: Any) -> Path:
    return with_graph(folder, lambda document, _: document.update(changes))


def _bounds(folder: Path, symbol: str) -> Path:
    return with_graph(
        folder, lambda document, _: document["range_constraints"].update({symbol: {"min_val": 0, "max_val": 1}})
    )


def _hint(folder: Path) -> Path:
    """A batch that was 2^45 when the model was exported."""

    def edit(document: Any, graph: Any) -> None:
        document["range_constraints"]["s77"] = {"min_val": 1 << 45, "max_val": 1 << 46}
        for name in ("x", FIRST_NODE):
            graph["tensor_values"][name]["sizes"][0]["as_expr"]["hint"] = {"as_int": 1 << 45}

    return with_graph(folder, edit)


def _field(folder: Path, name: str, **meta: Any) -> Path:
    return with_graph(folder, lambda _, graph: graph["tensor_values"][name].update(meta))


def _nesting(folder: Path, count: int) -> Path:
    leaf = '{"type": null, "context": null, "children_spec": []}'
    text = '{"type": "builtins.tuple", "context": "null", "children_spec": [' * count + leaf + "]}" * count

    def edit(document: Any, _: Any) -> None:
        document["graph_module"]["module_call_graph"][0]["signature"]["out_spec"] = f"[1, {text}]"

    return with_graph(folder, edit)


def _no_bytes(folder: Path) -> Path:
    return with_members(folder, {"data/weights/weight_1": b""})


def _many_axes(folder: Path) -> Path:
    return _weight(folder, sizes=_sizes(*[1] * 65), strides=_sizes(*[1] * 65))


SIZE_FILES: Final[dict[str, Callable[[Path], Path]]] = {
    "record-of-graph": partial(_weight, path_name="../../models/model.json"),
    "record-outside": partial(_weight, path_name="../../../../../../etc/passwd"),
    "record-of-samples": partial(_weight, path_name="../sample_inputs/model.pt"),
    "record-missing": partial(_weight, path_name="weight_9"),
    "record-too-small": partial(_weight, dtype=8),
    "record-empty": _no_bytes,
    "size-2^50": partial(_weight, sizes=_sizes(1 << 50)),
    "size-2^40x2^40": partial(_weight, sizes=_sizes(1 << 40, 1 << 40), strides=_sizes(1 << 40, 1)),
    "size-2^40-expanded": partial(_weight, sizes=_sizes(1 << 40), strides=_sizes(0)),
    "size-negative": partial(_weight, sizes=_sizes(-4)),
    "size-beyond-int64": partial(_weight, sizes=_sizes(1 << 63)),
    "size-axes": _many_axes,
    "stride-outside": partial(_weight, strides=_sizes(2)),
    "stride-negative": partial(_weight, strides=_sizes(-1)),
    "stride-missing": partial(_weight, strides=[]),
    "offset-outside": partial(_weight, storage_offset={"as_int": 1}),
    "offset-negative": partial(_weight, storage_offset={"as_int": -1}),
    "offset-2^62": partial(_weight, sizes=_sizes(0), storage_offset={"as_int": 1 << 62}),
    "dtype-unknown": partial(_weight, dtype=99),
    "dtype-0": partial(_weight, dtype=0),
    "dtype-negative": partial(_weight, dtype=-1),
    "dtype-of-input": partial(_field, name="x", dtype=77),
    "layout-sparse": partial(_weight, layout=1),
    "device-meta": partial(_weight, device={"type": "meta", "index": None}),
    "json-deep": _deep_brackets,
    "json-twice": partial(_text, old='"graph_module":', new='"graph_module": {}, "graph_module":'),
    "json-nan": partial(_text, old='"min_val": 1', new='"min_val": NaN'),
    "json-digits": _digits,
    "json-digits-of-size": partial(_digits, old='"min_val": 1'),
    "json-list": partial(with_members, changes={MODEL: b"[]"}),
    "json-constants": partial(with_members, changes={CONSTANTS: b'{"config": [1]}'}),
    "json-latin": partial(with_members, changes={MODEL: b'{"\xe9": 1}'}),
    "schema-7": partial(_document, schema_version={"major": 7, "minor": 0}),
    "schema-text": partial(_document, schema_version={"major": "\x1b[31m8", "minor": 0}),
    "verifier": partial(_document, verifiers=["../../os"]),
    "nesting-deep": partial(_nesting, count=5_000),
    "power-tower": partial(_expression, text=_nested("Pow", 9, "Integer(9)", ", Integer(9)")),
    "power-tower-right": partial(_expression, text="Pow(Integer(9), " * 9 + "Integer(9)" + ")" * 9),
    "power-stars": partial(_expression, text="2" + " ** 16" * 40),
    "power-stars-in-call": partial(_expression, text="Pow((((2 ** 16)) * 1), Integer(16))"),
    "power-shift": partial(_expression, text="LShift(Integer(1), Integer(99999999999))"),
    "expression-long": partial(_expression, text="1 + " * 250_000 + "1"),
    "expression-deep": partial(_expression, text="(" * 5_000 + _SYMBOL + ")" * 5_000),
    "expression-digits": partial(_expression, text="Integer(" + "9" * 100_000 + ")"),
    "symbol-far": partial(_bounds, symbol="u999999999"),
    "name-escape": partial(_text, old=f'"{FIRST_NODE}"', new='"\\u001b[31mlinear"'),
    "weight-escape": partial(_text, old='"layer.bias"', new='"\\u001b]0;title\\u0007"', member=WEIGHTS),
}
"""Refused before torch is imported."""

_X: Final = ("self", {"as_tensor": {"name": "x"}})


def _full(folder: Path) -> Path:
    return _node(folder, "full.default", ("size", {"as_ints": [1 << 45]}), ("fill_value", {"as_float": 1.0}))


def _strided(folder: Path) -> Path:
    arguments = ("size", {"as_ints": [1 << 20, 4]}), ("stride", {"as_ints": [4, 1]})
    return _node(folder, "as_strided.default", _X, *arguments)


def _unlike_schema(folder: Path) -> Path:
    return _node(folder, "linear.default", ("input", {"as_string": "x"}))


def _unknown_value(folder: Path) -> Path:
    return _node(folder, "relu.default", ("self", {"as_tensor": {"name": "nowhere"}}))


def _wrong_weight(folder: Path) -> Path:
    """The config has the weight under another name than the graph."""
    text = parts()[WEIGHTS].decode().replace('"layer.weight"', '"other.weight"')
    return with_members(folder, {WEIGHTS: text.encode()})


def _constant_division(folder: Path) -> Path:
    return _expression(folder, "FloorDiv(Integer(1), Integer(0))")


TORCH_FILES: Final[dict[str, Callable[[Path], Path]]] = {
    "run-full": _full,
    "run-as-strided": _strided,
    "run-hint": _hint,
    "graph-unlike-schema": _unlike_schema,
    "graph-unknown-value": _unknown_value,
    "graph-other-weight": _wrong_weight,
    "expression-division": _constant_division,
    "json-deep-arguments": _deep_arguments,
    "size-of-weight-unlike-graph": partial(_weight, sizes=_sizes(2)),
}
"""Refused once torch has the graph."""
