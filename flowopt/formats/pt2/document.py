"""The schema of ``models/<name>.json``, and its clean form.

Source: torch/_export/serde/schema.py, schema version 8 (torch 2.11 to 2.13).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from flowopt.errors import MalformedModel
from flowopt.formats.limits import Limits
from flowopt.formats.pt2.checks import (
    Place,
    argument_name,
    attribute_path,
    boolean,
    identifier,
    integer,
    list_of,
    malformed,
    map_of,
    name,
    number,
    one_of,
    optional,
    record,
    text,
    union,
)
from flowopt.formats.pt2.expressions import clean_guard
from flowopt.formats.pt2.operators import clean_operator
from flowopt.formats.pt2.treespec import clean_treespec
from flowopt.formats.pt2.values import (
    CONSTANT,
    NAMED,
    PLAIN_ARGUMENTS,
    SYM_INT,
    SYMBOL,
    SYMBOLIC,
    TENSOR_META,
    no_object,
)

SCHEMA_MAJOR: Final = 8


def clean_document(found: Any, place: Place, limits: Limits) -> dict[str, Any]:
    """The document with every value checked, and with nothing that torch would evaluate.

    Left out: sample values, provenance and custom metadata. Devices become the CPU, where the weights are mapped.

    Raises:
        MalformedModel: not of the schema, or beyond a limit.
        Untrusted: text where a shape expression, a guard or an operator belongs; script and opaque objects.
    """
    version = found.get("schema_version") if isinstance(found, dict) else None
    if isinstance(version, dict) and version.get("major") != SCHEMA_MAJOR:
        raise MalformedModel(
            f"the archive is of schema version {text(str(version.get('major')), place)[:20]}, "
            f"flowopt reads version {SCHEMA_MAJOR}",
            hint="export the model again with torch 2.11 or newer",
        )
    clean: dict[str, Any] = _Schema(_named_tuples(found, place), limits).document(found, place)
    return clean


def _named_tuples(found: Any, place: Place) -> Mapping[str, list[str]]:
    """Field names of named tuples; they are needed while nestings are read, wherever in the document they stand."""
    module = found.get("graph_module") if isinstance(found, dict) else None
    fields = module.get("treespec_namedtuple_fields", {}) if isinstance(module, dict) else {}
    checked = map_of(record({"field_names": list_of(name)}))(fields, place / "treespec_namedtuple_fields")
    return {key: value["field_names"] for key, value in checked.items()}


@dataclass(slots=True)
class _Schema:
    """The checks that depend on the document itself: nestings, and the number of nodes so far."""

    named_tuples: Mapping[str, list[str]]
    limits: Limits
    nodes: int = 0

    def document(self, value: Any, place: Place) -> Any:
        return record(
            {
                "graph_module": self.graph_module,
                "opset_version": map_of(integer),
                "range_constraints": self.ranges,
                "schema_version": record({"major": one_of(SCHEMA_MAJOR), "minor": integer}),
            },
            {
                "verifiers": list_of(one_of("ATEN", "TRAINING")),
                "torch_version": name,
                "guards_code": list_of(lambda guard, at: clean_guard(text(guard, at), str(at))),
            },
        )(value, place)

    def graph_module(self, value: Any, place: Place) -> Any:
        clean = record(
            {
                "graph": self.graph,
                "signature": record(
                    {"input_specs": list_of(self.input_spec), "output_specs": list_of(self.output_spec)}
                ),
                "module_call_graph": self.calls,
            }
        )(value, place)
        return clean | {"metadata": {}, "treespec_namedtuple_fields": {}}

    def calls(self, value: Any, place: Place) -> list[Any]:
        """Only the call of the model itself: those of its submodules serve torch's unflattening."""
        entries = list_of(record({"fqn": text}, {"signature": lambda v, p: v}))(value, place)
        own = [entry for entry in entries if entry["fqn"] == "" and entry.get("signature") is not None]
        if len(own) != 1:
            raise malformed(place, "a list with one call of the model", f"{len(own)} calls")
        signature = record(
            {
                "inputs": list_of(self.argument),
                "outputs": list_of(self.output),
                "in_spec": self.arguments,
                "out_spec": self.treespec,
            },
            {"forward_arg_names": optional(list_of(identifier))},
        )
        return [{"fqn": "", "signature": signature(own[0]["signature"], place / "signature")}]

    def treespec(self, value: Any, place: Place) -> str:
        return clean_treespec(text(value, place), self.named_tuples, str(place), self.limits)

    def arguments(self, value: Any, place: Place) -> str:
        """The nesting of the inputs: positional ones, then those by name; torch writes the names into Python."""
        clean = self.treespec(value, place)
        root = json.loads(clean)[1]
        kinds = [child["type"] for child in root["children_spec"]]
        if kinds != ["builtins.tuple", "builtins.dict"]:
            raise malformed(place, "a nesting of positional inputs and inputs by name", root["type"])
        for keyword in json.loads(root["children_spec"][1]["context"]):
            identifier(keyword, place)
        return clean

    def ranges(self, value: Any, place: Place) -> dict[str, Any]:
        bounds = record({"min_val": optional(integer), "max_val": optional(integer)})
        clean: dict[str, Any] = map_of(bounds)(value, place)
        for symbol in clean:
            if not SYMBOL.fullmatch(symbol):
                raise malformed(place, "the name of a symbol", symbol)
        return clean

    def graph(self, value: Any, place: Place) -> Any:
        clean = record(
            {
                "inputs": list_of(self.argument),
                "outputs": list_of(self.output),
                "nodes": list_of(self.node),
                "tensor_values": map_of(TENSOR_META),
                "sym_int_values": map_of(SYM_INT),
                "sym_bool_values": map_of(union({"as_expr": SYMBOLIC, "as_bool": boolean})),
            },
            {
                "is_single_tensor_return": boolean,
                "custom_obj_values": map_of(no_object),
                "sym_float_values": map_of(union({"as_expr": SYMBOLIC, "as_float": number})),
            },
        )(value, place)
        return clean

    def output(self, value: Any, place: Place) -> Any:
        # torch writes a text that a model returns, and cannot read it again; constants are dropped in any case.
        clean = self.argument(value, place)
        return {"as_none": None} if "as_string" in clean else clean

    def node(self, value: Any, place: Place) -> Any:
        self.nodes += 1
        if self.nodes > self.limits.nodes:
            raise MalformedModel(
                f"the graph has more than {self.limits.nodes:,} operators",
                hint="if that is meant",
                retry=(("--limit", f"nodes={2 * self.limits.nodes}"),),
            )
        argument = record({"name": argument_name, "arg": self.argument}, {"kind": optional(one_of(0, 1, 2))})
        clean: dict[str, Any] = record(
            {
                "target": lambda target, at: clean_operator(text(target, at), str(at)),
                "inputs": list_of(argument),
                "outputs": list_of(self.argument),
                "metadata": _metadata,
            },
            {"is_hop_single_tensor_return": optional(boolean), "name": optional(identifier)},
        )(value, place)
        return clean

    def argument(self, value: Any, place: Place) -> Any:
        # Nested kinds come back here, so the table is made per call: a plain value is looked up first.
        if isinstance(value, dict) and len(value) == 1:
            ((kind, item),) = value.items()
            if kind in PLAIN_ARGUMENTS:
                return {kind: PLAIN_ARGUMENTS[kind](item, place / kind)}
        return union(
            {
                **PLAIN_ARGUMENTS,
                "as_graph": record({"name": identifier, "graph": self.graph}),
                "as_string_to_argument": map_of(self.argument),
            }
        )(value, place)

    def input_spec(self, value: Any, place: Place) -> Any:
        return union(
            {
                "user_input": record({"arg": self.argument}),
                "parameter": record({"arg": NAMED, "parameter_name": attribute_path}),
                "buffer": record({"arg": NAMED, "buffer_name": attribute_path, "persistent": boolean}),
                "tensor_constant": record({"arg": NAMED, "tensor_constant_name": attribute_path}),
                "constant_input": record({"name": identifier, "value": CONSTANT}),
                "custom_obj": no_object,
                "token": no_object,
            }
        )(value, place)

    def output_spec(self, value: Any, place: Place) -> Any:
        return union(
            {
                "user_output": record({"arg": self.output}),
                "loss_output": record({"arg": NAMED}),
                "buffer_mutation": record({"arg": NAMED, "buffer_name": attribute_path}),
                "parameter_mutation": record({"arg": NAMED, "parameter_name": attribute_path}),
                "gradient_to_parameter": record({"arg": NAMED, "parameter_name": attribute_path}),
                "gradient_to_user_input": record({"arg": NAMED, "user_input_name": identifier}),
                "user_input_mutation": record({"arg": NAMED, "user_input_name": identifier}),
                "token": no_object,
            }
        )(value, place)


def _metadata(value: Any, place: Place) -> dict[str, str]:
    """The user's source lines and module names; the rest names functions that torch would look up."""
    if not isinstance(value, dict):
        raise malformed(place, "an object", value)
    return {key: text(value[key], place / key) for key in ("stack_trace", "nn_module_stack") if key in value}
