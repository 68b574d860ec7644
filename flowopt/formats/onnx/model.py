"""Everything in an ONNX file that could reach beyond it: every tensor, every operator, wherever they stand.

A tensor can hide in a sparse tensor of an attribute of a node of a subgraph of a function. The walk knows the few
messages that lead to tensors and nodes, and keeps one iterator per level, so that neither a deep file nor a wide one
costs memory.

Source: onnx/onnx.proto3 (field numbers), onnx/docs/IR.md (where graphs nest).
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from flowopt.errors import MalformedModel
from flowopt.formats.limits import DEFAULT_LIMITS, Limits
from flowopt.formats.onnx.tensor import Place, TensorField, read_sparse, read_tensor
from flowopt.formats.onnx.wire import BYTES, VARINT, Data, Field, damaged, fields, require_wire, text

Operator = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Message:
    """What the walk knows of a message: fields that lead on, fields that it reads, and those that occur once."""

    children: Mapping[int, str] = field(default_factory=dict)
    texts: Mapping[int, str] = field(default_factory=dict)
    once: frozenset[int] = frozenset()
    numbers: Mapping[int, str] = field(default_factory=dict)


MESSAGES: Final[Mapping[str, Message]] = {
    "ModelProto": Message(
        {7: "GraphProto", 8: "OperatorSetIdProto", 20: "TrainingInfoProto", 25: "FunctionProto"}, {}, frozenset({7})
    ),
    "GraphProto": Message({1: "NodeProto", 5: "TensorProto", 15: "SparseTensorProto"}),
    "NodeProto": Message({5: "AttributeProto"}, {4: "op_type", 7: "domain", 8: "overload"}, frozenset({4, 7, 8})),
    "AttributeProto": Message(
        {
            5: "TensorProto",
            6: "GraphProto",
            22: "SparseTensorProto",
            10: "TensorProto",
            11: "GraphProto",
            23: "SparseTensorProto",
        },
        {},
        frozenset({5, 6, 22}),
    ),
    "FunctionProto": Message(
        {7: "NodeProto", 9: "OperatorSetIdProto", 11: "AttributeProto"},
        {1: "name", 10: "domain", 13: "overload"},
        frozenset({1, 10, 13}),
    ),
    "TrainingInfoProto": Message({1: "GraphProto", 2: "GraphProto"}, {}, frozenset({1, 2})),
    "OperatorSetIdProto": Message({}, {1: "domain"}, frozenset({1, 2}), {2: "version"}),
}


@dataclass(frozen=True, slots=True)
class OnnxModel:
    """What an ONNX file holds.

    Attributes:
        tensors: all of them, in the order of the file.
        operators: domain and name of every operator that a node asks for.
        functions: domain and name of every function that the file defines.
        opsets: the domains that it imports.
        nodes: how many, in all graphs and functions.
        census: how many nodes ask for each operator, in all graphs and functions.
        versions: of each domain that it imports; the highest where functions import others.
    """

    tensors: tuple[TensorField, ...]
    operators: frozenset[Operator]
    functions: frozenset[Operator]
    opsets: frozenset[str]
    nodes: int
    census: Mapping[Operator, int] = field(default_factory=dict)
    versions: Mapping[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class _Level:
    """One message that the walk stands in."""

    name: str
    rest: Iterator[Field]
    place: Place
    texts: dict[str, str] = field(default_factory=dict)
    numbers: dict[str, int] = field(default_factory=dict)
    seen: set[int] = field(default_factory=set)


@dataclass(slots=True)
class _Found:
    tensors: list[TensorField] = field(default_factory=list)
    census: Counter[Operator] = field(default_factory=Counter)
    functions: set[Operator] = field(default_factory=set)
    versions: dict[str, int] = field(default_factory=dict)
    nodes: int = 0


def read_model(data: Data, limits: Limits = DEFAULT_LIMITS) -> OnnxModel:
    """Walk a whole ModelProto.

    Raises:
        MalformedModel: bytes that are no protobuf, a singular field that occurs twice, a tensor that contradicts
            itself, no graph, or more levels, nodes or tensors than the limits allow.
    """
    found = _Found()
    levels = [_Level("ModelProto", fields(data, 0, len(data)), "initializer")]
    while levels:
        level = levels[-1]
        one = next(level.rest, None)
        if one is None:
            levels.pop()
            _finish(level, found)
            continue
        message = MESSAGES[level.name]
        if one.number in message.once:
            if one.number in level.seen:
                raise damaged(f"{level.name} has field {one.number} twice")
            level.seen.add(one.number)
        if one.number in message.texts:
            level.texts[message.texts[one.number]] = text(data, one)
        if one.number in message.numbers:
            require_wire(one, VARINT)
            level.numbers[message.numbers[one.number]] = one.value
        child = message.children.get(one.number)
        if child is None:
            continue
        require_wire(one, BYTES)
        if child == "TensorProto":
            found.tensors.append(read_tensor(data, one.start, one.end, level.place))
        elif child == "SparseTensorProto":
            found.tensors += read_sparse(data, one.start, one.end)
        else:
            levels.append(_Level(child, fields(data, one.start, one.end), _place(child, levels)))
        _require_within(limits, len(levels), found)
    if not found.nodes:
        raise MalformedModel(
            "it holds no graph", hint="it is empty or cut off: download it, or export the model, again"
        )
    return OnnxModel(
        tuple(found.tensors),
        frozenset(found.census),
        frozenset(found.functions),
        frozenset(found.versions),
        found.nodes,
        dict(found.census),
        found.versions,
    )


def _place(child: str, levels: list[_Level]) -> Place:
    """Where a tensor that stands directly in ``child`` would be."""
    if child == "AttributeProto":
        return "attribute"
    return "initializer" if child == "GraphProto" and levels[-1].name == "ModelProto" else "inner initializer"


def _finish(level: _Level, found: _Found) -> None:
    own = (level.texts.get("domain", ""), level.texts.get("op_type", level.texts.get("name", "")))
    if level.name == "NodeProto":
        found.nodes += 1
        found.census[own] += 1
    elif level.name == "FunctionProto":
        found.functions.add(own)
    elif level.name == "OperatorSetIdProto":
        found.versions[own[0]] = max(found.versions.get(own[0], 0), level.numbers.get("version", 0))


def _require_within(limits: Limits, depth: int, found: _Found) -> None:
    if depth > limits.depth:
        raise MalformedModel(
            f"it nests more than {limits.depth} levels deep",
            hint="if that is meant",
            retry=(("--limit", f"depth={10 * limits.depth}"),),
        )
    for count, what in ((found.nodes, "operators"), (len(found.tensors), "tensors")):
        if count > limits.nodes:
            raise MalformedModel(
                f"it has more than {limits.nodes:,} {what}",
                hint="if that is meant",
                retry=(("--limit", f"nodes={10 * limits.nodes}"),),
            )
