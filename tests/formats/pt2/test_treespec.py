import collections
import dataclasses
import json
from typing import Any, NamedTuple

import pytest
import torch
from torch.utils import _pytree as pytree

from flowopt.errors import MalformedModel
from flowopt.formats.limits import DEFAULT_LIMITS
from flowopt.formats.pt2.treespec import clean_treespec
from flowopt.program.names import output_names

LEAF: dict[str, Any] = {"type": None, "context": None, "children_spec": []}


class Pair(NamedTuple):
    left: Any
    right: Any


@dataclasses.dataclass
class Result:
    logits: Any
    loss: Any = None


class LibraryOutput(collections.OrderedDict):
    """As transformers' ModelOutput: a dictionary with a name of its own."""


pytree._register_namedtuple(Pair, serialized_type_name="tests.Pair")
torch.export.register_dataclass(Result, serialized_type_name="tests.Result")
pytree.register_pytree_node(
    LibraryOutput,
    lambda value: (list(value.values()), list(value.keys())),
    lambda values, keys: LibraryOutput(zip(keys, values, strict=True)),
    serialized_type_name="tests.LibraryOutput",
)
FIELDS = {"tests.Pair": ["left", "right"]}


def clean(text: str) -> str:
    return clean_treespec(text, FIELDS, "here", DEFAULT_LIMITS)


@pytest.mark.parametrize(
    "value",
    [
        1,
        (1, 2),
        [1, (2, 3)],
        {"a": 1, "b": {"c": 2}},
        {1: 1, 0: 2},
        {},
        (),
        collections.OrderedDict(b=1, a=2),
        Pair(1, Pair(2, 3)),
        Result(1),
        Result(1, 2),
        LibraryOutput(logits=1, hidden=2),
        LibraryOutput(logits=1, caches=((1, 2), (3, 4))),
        {"past": [Pair(1, 2), Pair(3, 4)], "out": Result(5, {"a.b": 6})},
        collections.deque([1, 2]),
    ],
)
def test_outputs_keep_their_names_without_their_classes(value: Any) -> None:
    real = pytree.tree_structure(value)
    rebuilt = pytree.treespec_loads(clean(pytree.treespec_dumps(real)))
    assert output_names(rebuilt) == output_names(real)
    assert rebuilt.num_leaves == real.num_leaves


def test_a_defaultdict_gives_its_keys() -> None:
    real = pytree.tree_structure(collections.defaultdict(list, {"k": 1}))
    assert output_names(pytree.treespec_loads(clean(pytree.treespec_dumps(real)))) == ("k",)


def test_a_named_tuple_without_known_fields_becomes_a_sequence() -> None:
    found = json.loads(clean(node("collections.namedtuple", "other.Pair", LEAF)))[1]
    assert found["type"] == "builtins.tuple"


def node(kind: Any, context: Any, *children: Any) -> str:
    return json.dumps([1, {"type": kind, "context": context, "children_spec": list(children)}])


def test_unknown_types_become_sequences() -> None:
    found = json.loads(clean(node("os.system", '"touch x"', LEAF, LEAF)))[1]
    assert found["type"] == "builtins.tuple" and found["context"] == "null"


def test_an_enumeration_is_a_name_and_nothing_is_imported() -> None:
    key = {"__enum__": True, "fqn": "antigravity:Colour", "name": "RED"}
    assert json.loads(clean(node("builtins.dict", json.dumps([key]), LEAF)))[1]["context"] == '["RED"]'


@pytest.mark.parametrize("keys", [["a", "a"], ["a"], ["\x1b[31m", "b"], [["a"], "b"], [None, "b"], ["x" * 2_000, "b"]])
def test_keys_that_are_no_names_become_indices(keys: list[Any]) -> None:
    assert json.loads(clean(node("builtins.dict", json.dumps(keys), LEAF, LEAF)))[1]["type"] == "builtins.tuple"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "[2, null]",
        "[1, []]",
        node(1, "null"),
        node("builtins.tuple", None, LEAF),
        node("builtins.tuple", "(", LEAF),
        node(None, None, LEAF),
        json.dumps([1, {**LEAF, "more": 1}]),
        json.dumps([1, {**LEAF, "children_spec": {}}]),
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(MalformedModel) as caught:
        clean(text)
    assert caught.value.hint
