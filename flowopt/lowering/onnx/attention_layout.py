"""Attention that reads projections as they come: heads side by side on the last axis, keys and values not repeated.

    Attention(T(R(q)), T(R(k)), T(R(v))) -> T -> R   becomes   Attention(q, k, v, q_num_heads, kv_num_heads)

where R takes the heads out of the last axis and T puts them before the positions. The operator's form of rank 3 does
both by itself, reads keys and values of fewer heads than queries without repeating them, and a rotary embedding of
rank 3 stands before it. What is saved are four copies of every projection. Nothing is computed otherwise.

Source: ONNX operators, opset 23: Attention, RotaryEmbedding.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_HEADS_FIRST = (0, 2, 1, 3)


@dataclass(frozen=True, slots=True)
class _Projection:
    """A projection (batch, positions, heads * size) behind an input of attention, and its rotary embedding."""

    value: Any
    heads: int
    size: int
    rotary: Any | None


def keep_heads_last(model: Any) -> int:
    """Rewrite every attention of an ``onnx_ir.Model`` whose projections and result have this form, in place.

    Args:
        model: opset 23 or later, with recorded shapes; an attention whose shapes are not recorded is left alone.

    Returns:
        How many were rewritten.
    """
    count = 0
    for node in list(model.graph.all_nodes()):
        if node.op_type == "Attention" and node.domain == "" and node.graph is model.graph:
            count += _rewritten(node)
    return count


def _rewritten(node: Any) -> bool:
    inputs = [*node.inputs, *[None] * (6 - len(node.inputs))]
    is_plain = not any(inputs[4:]) and "q_num_heads" not in node.attributes
    if not is_plain or any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
        return False
    found = [_projection(inputs[0]), *(_projection(_unrepeated(value)) for value in inputs[1:3])]
    merged = _merged_result(node.outputs[0])
    query, key, value = found
    if query is None or key is None or value is None or merged is None or value.rotary is not None:
        return False
    if key.heads != value.heads or query.heads % key.heads or query.size != key.size:
        return False
    if _last(merged) != query.heads * value.size:
        return False
    import onnx_ir

    fused = onnx_ir.node(
        "Attention",
        [*(_with_rotary(one) for one in (query, key, value)), *([inputs[3]] if inputs[3] is not None else [])],
        {**dict(node.attributes), "q_num_heads": query.heads, "kv_num_heads": key.heads},
        name=node.name,
    )
    # Its result is the value of the reshape that it replaces, and is traced to that.
    fused.meta.update(merged.producer().meta)
    node.graph.insert_before(merged.producer(), fused)
    _stand_in(fused.outputs[0], merged)
    return True


def _projection(value: Any) -> _Projection | None:
    rotary = _producer(value, "RotaryEmbedding")
    if rotary is not None:
        if len(rotary.inputs) != 3:
            return None
        value = rotary.inputs[0]
    transpose = _producer(value, "Transpose")
    if transpose is None or tuple(transpose.attributes.get_ints("perm", ())) != _HEADS_FIRST:
        return None
    reshape = _producer(transpose.inputs[0], "Reshape")
    if reshape is None:
        return None
    flat, split = reshape.inputs[0].shape, reshape.outputs[0].shape
    if flat is None or split is None or len(flat) != 3 or len(split) != 4 or not _are_equal(flat[:2], split[:2]):
        return None
    heads, size = split[2], split[3]
    if not isinstance(heads, int) or not isinstance(size, int) or flat[2] != heads * size:
        return None
    return _Projection(reshape.inputs[0], heads, size, rotary)


def _unrepeated(value: Any) -> Any:
    """Keys or values before each head was repeated for its group of queries; the value itself where none was."""
    reshape = _producer(value, "Reshape")
    expand = _producer(reshape.inputs[0], "Expand") if reshape is not None else None
    unsqueeze = _producer(expand.inputs[0], "Unsqueeze") if expand is not None else None
    if expand is None or unsqueeze is None:
        return value
    few, single, repeated, many = (v.shape for v in (unsqueeze.inputs[0], *unsqueeze.outputs, *expand.outputs, value))
    if few is None or single is None or repeated is None or many is None or len(few) != 4 or len(repeated) != 5:
        return value
    # (B, H, L, D) -> (B, H, 1, L, D) -> (B, H, n, L, D) -> (B, H * n, L, D): a head beside its copies.
    count = repeated[2]
    if not isinstance(few[1], int) or not isinstance(count, int):
        return value
    is_repeat = _are_equal(single, [*few[:2], 1, *few[2:]]) and _are_equal(repeated, [*few[:2], count, *few[2:]])
    return unsqueeze.inputs[0] if is_repeat and _are_equal(many, [few[0], few[1] * count, *few[2:]]) else value


def _are_equal(sizes: Sequence[Any], others: Sequence[Any]) -> bool:
    """Whether sizes are known, numbers or names, and the same."""
    known = [size if isinstance(size, int) else size.value for size in (*sizes, *others)]
    return None not in known and known[: len(sizes)] == known[len(sizes) :]


def _with_rotary(projection: _Projection) -> Any:
    if projection.rotary is None:
        return projection.value
    import onnx_ir

    rotary = projection.rotary
    fused = onnx_ir.node(
        "RotaryEmbedding",
        [projection.value, *rotary.inputs[1:]],
        {**dict(rotary.attributes), "num_heads": projection.heads},
        name=rotary.name,
    )
    rotary.graph.insert_before(rotary, fused)
    fused.outputs[0].shape = projection.value.shape
    fused.outputs[0].type = projection.value.type
    return fused.outputs[0]


def _merged_result(value: Any) -> Any | None:
    """The value in which the heads of an attention's result stand side by side, when that is all that is read."""
    transpose = _only_reader(value, "Transpose")
    if transpose is None or tuple(transpose.attributes.get_ints("perm", ())) != _HEADS_FIRST:
        return None
    reshape = _only_reader(transpose.outputs[0], "Reshape")
    if reshape is None:
        return None
    split, flat = transpose.outputs[0].shape, reshape.outputs[0].shape
    if split is None or flat is None or len(split) != 4 or len(flat) != 3 or not _are_equal(split[:2], flat[:2]):
        return None
    return reshape.outputs[0]


def _stand_in(new: Any, old: Any) -> None:
    new.shape, new.type = old.shape, old.type
    reader = old.producer()
    name = old.name
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    reader.graph.remove(reader, safe=True)
    new.name = name


def _producer(value: Any, op_type: str) -> Any | None:
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type == op_type and node.domain == "" else None


def _only_reader(value: Any, op_type: str) -> Any | None:
    uses = list(value.uses())
    if len(uses) != 1 or value.is_graph_output():
        return None
    node = uses[0].node
    return node if node.op_type == op_type and node.domain == "" else None


def _last(value: Any) -> object:
    return value.shape[-1]
