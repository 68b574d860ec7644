"""The walk finds what onnx's own parser finds, and its tables are those of onnx.proto."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from flowopt.errors import MalformedModel
from flowopt.formats.limits import Limits
from flowopt.formats.onnx import tensor as tensor_module
from flowopt.formats.onnx.model import MESSAGES, read_model
from flowopt.formats.onnx.tensor import ELEMENT_TYPES, STRING, read_tensor


def info(name: str) -> Any:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, None)


def branch(name: str, inner: Any = None) -> Any:
    nodes = [helper.make_node("Constant", [], [f"{name}.out"], value=helper.make_tensor(name, 1, [2], [1.0, 2.0]))]
    if inner is not None:
        nodes.append(inner)
    initializers = [helper.make_tensor(f"{name}.own", TensorProto.INT64, [2], [-1, 2])]
    return helper.make_graph(nodes, name, [], [info(f"{name}.out")], initializers)


def rich_model() -> Any:
    """Tensors in every place that ONNX has: nested If and Loop, functions, sparse tensors, training graphs, lists."""
    inner = helper.make_node("If", ["c"], ["i"], then_branch=branch("deep.then"), else_branch=branch("deep.else"))
    sparse = onnx.SparseTensorProto(
        values=helper.make_tensor("sparse", 1, [1], [3.0]), indices=helper.make_tensor("at", 7, [1], [2]), dims=[9]
    )
    nodes = [
        helper.make_node("If", ["c"], ["y"], then_branch=branch("then", inner), else_branch=branch("else")),
        helper.make_node("Loop", ["m", "c"], ["z"], body=branch("body")),
        helper.make_node("Constant", [], ["s"], sparse_value=sparse),
        helper.make_node("F", ["y"], ["f"], domain="local", tensors=[helper.make_tensor("list", 1, [1], [1.0])]),
        helper.make_node("Gelu", ["y"], ["g"], domain="com.microsoft", graphs=[branch("in list")]),
    ]
    default = helper.make_attribute("a", helper.make_tensor("default", 1, [], [1.0]))
    body = [helper.make_node("Constant", [], ["y"], value=helper.make_tensor("of function", 1, [0], []))]
    function = helper.make_function(
        "local", "F", ["x"], ["y"], body, [helper.make_opsetid("", 21)], attribute_protos=[default]
    )
    own = [
        helper.make_tensor("w", 1, [2, 2], [1.0] * 4),
        TensorProto(name="text", data_type=STRING, dims=[2], string_data=[b"a", b""]),
    ]
    graph = helper.make_graph(nodes, "g", [info("x")], [info("y")], own, sparse_initializer=[sparse])
    model = helper.make_model(graph, functions=[function])
    model.training_info.add().algorithm.CopyFrom(branch("training"))
    return model


def parsed_tensors(message: Any) -> Iterator[Any]:
    if message.DESCRIPTOR.name == "TensorProto":
        yield message
        return
    for found, value in message.ListFields():
        if found.message_type is not None:
            for child in value if found.is_repeated else (value,):
                yield from parsed_tensors(child)


def test_every_tensor_is_found_wherever_it_stands() -> None:
    model = rich_model()
    found = read_model(model.SerializeToString())
    ours = sorted((t.name, t.data_type, t.dims) for t in found.tensors)
    assert ours == sorted((t.name, t.data_type, tuple(t.dims)) for t in parsed_tensors(model))
    assert len(ours) == 23
    places = {t.name: t.place for t in found.tensors}
    assert places["w"] == "initializer" and places["deep.then.own"] == places["training.own"] == "inner initializer"
    assert places["default"] == places["deep.then"] == "attribute" and places["at"] == "sparse"


def test_operators_functions_and_domains_are_found() -> None:
    found = read_model(rich_model().SerializeToString())
    assert found.operators == {
        *(("", "If"), ("", "Loop"), ("", "Constant")),
        *(("local", "F"), ("com.microsoft", "Gelu")),
    }
    assert found.functions == {("local", "F")} and found.opsets == {""}
    assert found.nodes == 14


@pytest.mark.parametrize("name", MESSAGES)
def test_field_numbers_are_those_of_onnx(name: str) -> None:
    """Every field that leads to a message of the walk is in its table, and no other."""
    descriptor = getattr(onnx, name).DESCRIPTOR
    walked = {*MESSAGES, "TensorProto", "SparseTensorProto"}
    message = MESSAGES[name]
    assert dict(message.children) == {
        f.number: f.message_type.name for f in descriptor.fields if f.message_type and f.message_type.name in walked
    }
    by_number = descriptor.fields_by_number
    assert all(by_number[number].name == text for number, text in message.texts.items())
    assert all(not by_number[number].is_repeated for number in message.once)
    singular = {n for n in (*message.children, *message.texts) if not by_number[n].is_repeated}
    assert singular <= message.once


def test_no_other_message_leads_to_a_tensor_or_a_node() -> None:
    walked = {*MESSAGES, "TensorProto", "SparseTensorProto"}
    messages = {d.name: d for d in onnx.ModelProto.DESCRIPTOR.file.message_types_by_name.values()}
    for name in messages.keys() - walked:
        assert not {f.message_type.name for f in messages[name].fields if f.message_type} & walked


def test_tensor_fields_and_types_are_those_of_onnx() -> None:
    names = {"DIMS": "dims", "DATA_TYPE": "data_type", "SEGMENT": "segment", "FLOATS": "float_data"}
    names |= {"INT32S": "int32_data", "STRINGS": "string_data", "INT64S": "int64_data", "NAME": "name"}
    names |= {"RAW": "raw_data", "DOUBLES": "double_data", "UINT64S": "uint64_data"}
    names |= {"EXTERNAL_DATA": "external_data", "DATA_LOCATION": "data_location"}
    for constant, name in names.items():
        assert getattr(tensor_module, constant) == TensorProto.DESCRIPTOR.fields_by_name[name].number
    assert ELEMENT_TYPES.keys() == set(TensorProto.DataType.values()) - {TensorProto.UNDEFINED}


@pytest.mark.parametrize("count", [0, 1, 5, 8])
@pytest.mark.parametrize("data_type", sorted(ELEMENT_TYPES.keys() - {STRING}))
def test_raw_and_typed_data_of_every_type_pass(data_type: int, count: int) -> None:
    values = np.zeros(count, helper.tensor_dtype_to_np_dtype(data_type))
    raw = numpy_helper.from_array(values, "t")
    content = raw.SerializeToString()
    found = read_tensor(content, 0, len(content), "initializer")
    assert found.dims == (count,) and found.data_type == data_type and found.bytes == len(raw.raw_data)
    try:
        typed = helper.make_tensor("t", data_type, [count], values.tolist()).SerializeToString()
    except (TypeError, ValueError, KeyError):
        pytest.skip("onnx.helper does not make it")
    assert read_tensor(typed, 0, len(typed), "initializer").dims == (count,)


def test_unpacked_numbers_are_read_too() -> None:
    content = b"\x08\x02\x08\x03" + b"\x10\x06" + b"\x28\x01" * 6
    assert TensorProto.FromString(content).int32_data == [1] * 6
    assert read_tensor(content, 0, len(content), "initializer").dims == (2, 3)
    with pytest.raises(MalformedModel, match="needs 6 entries"):
        read_tensor(content, 0, len(content) - 2, "initializer")


def test_limits_hold() -> None:
    content = rich_model().SerializeToString()
    for limits, match in ((Limits(nodes=3), "Limits.nodes"), (Limits(depth=5), "Limits.depth")):
        with pytest.raises(MalformedModel, match=match):
            read_model(content, limits)
    read_model(content, Limits(nodes=23, depth=10))


@pytest.mark.parametrize("wire", [0, 1, 5])
def test_a_graph_of_another_wire_type_is_refused(wire: int) -> None:
    """A parser with a schema would take it for an unknown field."""
    content = rich_model().SerializeToString()
    with pytest.raises(MalformedModel, match="wire type"):
        read_model(content + bytes([20 << 3 & 0x7F | wire | 0x80, 1]) + bytes(8 if wire == 1 else 4 if wire else 1))


def test_operators_are_counted_in_all_graphs_and_functions_and_domains_have_versions() -> None:
    found = read_model(rich_model().SerializeToString())
    # One in each of the six branches and lists, the sparse one, the function's, and the training graph's.
    assert found.census["", "Constant"] == 9
    assert found.census["", "If"] == 2
    assert found.census["com.microsoft", "Gelu"] == 1
    assert sum(found.census.values()) == found.nodes
    assert found.versions[""] == max(rich_model().opset_import[0].version, 21)
