import dataclasses
import json
from collections.abc import Callable
from typing import Any

import pytest

from flowopt.errors import MalformedModel, Untrusted
from flowopt.formats.limits import DEFAULT_LIMITS, Limits
from flowopt.formats.pt2.checks import Place
from flowopt.formats.pt2.document import clean_document
from tests.hostile.pt2_archive import MODEL, parts


def document() -> Any:
    return json.loads(parts()[MODEL])


def clean(found: Any, limits: Limits = DEFAULT_LIMITS) -> Any:
    return clean_document(found, Place("model"), limits)


def test_what_matters_is_kept_and_the_rest_left_out() -> None:
    found, kept = document(), clean(document())
    graph, node = kept["graph_module"]["graph"], kept["graph_module"]["graph"]["nodes"][0]
    assert graph["tensor_values"] == found["graph_module"]["graph"]["tensor_values"]
    assert kept["graph_module"]["signature"] == found["graph_module"]["signature"]
    assert kept["range_constraints"] == found["range_constraints"]
    assert node["target"] == "torch.ops.aten.linear.default"
    assert node["metadata"].keys() == {"stack_trace", "nn_module_stack"}
    assert [entry["fqn"] for entry in kept["graph_module"]["module_call_graph"]] == [""]


def test_cleaning_twice_changes_nothing() -> None:
    once = clean(document())
    assert clean(json.loads(json.dumps(once))) == once


def test_every_device_becomes_the_processor() -> None:
    found = document()
    found["graph_module"]["graph"]["tensor_values"]["x"]["device"] = {"type": "cuda", "index": 3}
    values = clean(found)["graph_module"]["graph"]["tensor_values"]
    assert values["x"]["device"] == {"type": "cpu", "index": None}


def test_too_many_operators_are_refused() -> None:
    found = document()
    found["graph_module"]["graph"]["nodes"] *= 3
    with pytest.raises(MalformedModel, match="more than 2 operators") as caught:
        clean(found, dataclasses.replace(DEFAULT_LIMITS, nodes=2))
    assert caught.value.retry[0][0] == "--limit" and caught.value.retry[0][1].startswith("nodes=")


NAMES: dict[str, Callable[[Any, str], Any]] = {
    "input": lambda d, name: d["graph"]["inputs"][2]["as_tensor"].update(name=name),
    "output": lambda d, name: d["graph"]["nodes"][0]["outputs"][0]["as_tensor"].update(name=name),
    "node": lambda d, name: d["graph"]["nodes"][0].update(name=name),
    "argument": lambda d, name: d["graph"]["nodes"][0]["inputs"][0].update(name=name),
    "forward": lambda d, name: d["module_call_graph"][0]["signature"].update(forward_arg_names=[name]),
    "parameter": lambda d, name: d["signature"]["input_specs"][0]["parameter"].update(parameter_name=name),
}


@pytest.mark.parametrize("place", NAMES)
@pytest.mark.parametrize("name", ["x=[1]", "x)", "a;b", 'a"b', "a'b", "a\\b", "a(b)", "a\u00b7(", "a,b"])
def test_a_name_that_could_be_code_is_refused(place: str, name: str) -> None:
    found = document()
    NAMES[place](found["graph_module"], name)
    with pytest.raises(Untrusted, match="as a name that is none"):
        clean(found)


@pytest.mark.parametrize("name", ["blocks.0.weight", "heads.a-b.weight", "a.\u00fc.b", "x.cells/0.w", "base.a:b"])
def test_a_parameter_may_have_any_plain_name(name: str) -> None:
    found = document()
    NAMES["parameter"](found["graph_module"], name)
    specs = clean(found)["graph_module"]["signature"]["input_specs"]
    assert specs[0]["parameter"]["parameter_name"] == name


@pytest.mark.parametrize("name", ["from", "", "self"])
def test_an_argument_may_be_named_as_in_a_schema(name: str) -> None:
    found = document()
    NAMES["argument"](found["graph_module"], name)
    assert clean(found)["graph_module"]["graph"]["nodes"][0]["inputs"][0]["name"] == name


def test_a_control_character_becomes_its_escape() -> None:
    found = document()
    found["graph_module"]["graph"]["nodes"][0]["metadata"]["stack_trace"] = "a\x1b[31m\nb\r"
    kept = clean(found)["graph_module"]["graph"]["nodes"][0]["metadata"]["stack_trace"]
    assert kept == "a\\x1b[31m\nb\\r"


@pytest.mark.parametrize("part", ["graph_module", "range_constraints", "schema_version", "opset_version"])
def test_a_missing_part_is_refused(part: str) -> None:
    found = document()
    del found[part]
    with pytest.raises(MalformedModel, match="not of the form"):
        clean(found)


@pytest.mark.parametrize("value", [None, 1, "x", [], {}, True, 1.5])
def test_another_form_of_any_part_is_refused(value: Any) -> None:
    for path in (("graph_module",), ("graph_module", "graph"), ("graph_module", "graph", "nodes", 0)):
        found = document()
        inner = found
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = value
        with pytest.raises(MalformedModel):
            clean(found)
