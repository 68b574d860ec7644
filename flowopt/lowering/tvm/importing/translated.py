"""One ATen graph as one Relax function, node by node."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from flowopt.lowering.tvm.importing.converters import CONVERTERS
from flowopt.lowering.tvm.importing.maker import (
    Maker,
    Unsupported,
    Value,
    dtype_name,
    dtype_of,
    is_tensor,
    same_shape,
    shape_of,
)
from flowopt.lowering.tvm.importing.sizes import UnknownSize

# Checks that torch records beside the computation: a compiled program checks its inputs once, at the door.
_CHECKS = ("_assert", "sym_constrain_range", "_check")


class Untranslatable(Exception):
    """A node that has no Relax form, and why."""

    def __init__(self, node: fx.Node, reason: str) -> None:
        super().__init__(reason)
        self.node = node
        self.reason = reason


def translated(
    exported: ExportedProgram,
    variables: Mapping[str, Any],
    constants: Mapping[str, Tensor],
    attributes: Mapping[str, Any],
) -> tuple[Any, tuple[str, ...]]:
    """An ``IRModule`` with the function ``main(inputs..., parameters...)``, and what the parameters are.

    Args:
        exported: functional graph; every stored tensor is a buffer of it.
        variables: symbol name to the ``tirx.Var`` that stands for it.
        constants: stored tensors, by target, that are bound in the function instead of passed to it.
        attributes: of the function.

    Raises:
        Untranslatable: see there.
    """
    from tvm import relax

    builder = relax.BlockBuilder()
    make = Maker(builder, variables)
    stored = exported.graph_signature.inputs_to_buffers
    graph = exported.graph
    placeholders = [n for n in graph.nodes if n.op == "placeholder"]
    inputs = [n for n in placeholders if n.name not in stored]
    read = [n for n in placeholders if n.name in stored and n.users]
    passed = [n for n in read if stored[n.name] not in constants]
    values: dict[fx.Node, Value] = {n: _argument(make, n) for n in (*inputs, *passed)}
    whole = {**attributes, "num_input": len(inputs)}
    with builder.function("main", [values[n] for n in (*inputs, *passed)], attrs=whole):
        with builder.dataflow():
            for node in read:
                if node not in values:
                    tensor = constants[stored[node.name]]
                    values[node] = make.constant(tensor.numpy(), dtype_name(tensor.dtype))
            for node in graph.nodes:
                if node.op == "call_function":
                    values[node] = _value(make, node, values)
            returned: Any = graph.output_node().args[0]
            result = builder.emit_output(relax.Tuple([_returned(make, values[n]) for n in returned]))
        builder.emit_func_output(result)
    return builder.get(), tuple(stored[n.name] for n in passed)


def _argument(make: Maker, node: fx.Node) -> Any:
    from tvm import relax

    recorded = node.meta["val"]
    try:
        shape = [make.size(s) for s in recorded.shape]
        return relax.Var(node.name, relax.TensorType(shape, dtype_name(recorded.dtype)))
    except (UnknownSize, Unsupported) as error:
        raise Untranslatable(node, str(error)) from error


def _returned(make: Maker, value: Any) -> Any:
    """A constant is given a variable: the tuple that a function returns holds variables alone."""
    from tvm import relax

    return value if isinstance(value, relax.Var) else make.emit(value)


def _value(make: Maker, node: fx.Node, values: Mapping[fx.Node, Value]) -> Value:
    recorded = node.meta.get("val")
    name = target_name(node)
    if any(check in name for check in _CHECKS):
        return None
    try:
        if isinstance(recorded, torch.SymInt):
            return make.size(recorded)
        if isinstance(recorded, torch.SymFloat):
            return make.number(recorded)
        if isinstance(recorded, (int, float)):
            return recorded
        if name == "getitem":
            return _item(node, values)
        converter = CONVERTERS.get(name)
        if converter is None:
            raise Unsupported("there is no form of this operator")
        make.node, make.recorded = node, recorded
        made = converter(make, *arguments_of(node, values))
        return _as_recorded(make, made, recorded)
    except (UnknownSize, Unsupported) as error:
        raise Untranslatable(node, str(error)) from error
    except AssertionError as error:
        error.add_note(f"while importing {node.format_node()}")
        raise
    except Exception as error:
        # TVM raises some ten types for arguments that an operator of its own does not take.
        reason = next((line for line in str(error).splitlines() if line.strip()), "")
        raise Untranslatable(node, f"{type(error).__name__}: {reason}") from error


def _item(node: fx.Node, values: Mapping[fx.Node, Value]) -> Value:
    source: Any = node.args[0]
    index: Any = node.args[1]
    found = values[source][index]
    if found is None:
        raise Unsupported(f"result {index} of {target_name(source)}")
    return found


def target_name(node: fx.Node) -> str:
    """``aten.add.Tensor`` for an operator, the bare name of a Python function."""
    if isinstance(node.target, torch._ops.OpOverload):
        return str(node.target)
    return str(getattr(node.target, "__name__", node.target))


def arguments_of(node: fx.Node, values: Mapping[fx.Node, Value]) -> list[Any]:
    """Values of all arguments in the order of the operator's schema, defaults included."""
    args: Any = fx.map_arg(node.args, lambda n: values[n])
    kwargs: Any = fx.map_arg(node.kwargs, lambda n: values[n])
    if not isinstance(node.target, torch._ops.OpOverload):
        return [*args, *kwargs.values()]
    found = list(args)
    for argument in node.target._schema.arguments[len(args) :]:
        found.append(kwargs.get(argument.name, argument.default_value))
    return found


def _as_recorded(make: Maker, made: Value, recorded: Any) -> Value:
    """The value with the sizes that torch recorded, where Relax could not derive them.

    Without them an operator behind it has no known shape. The cast is checked when the program runs.
    """
    from tvm import relax

    if isinstance(made, tuple):
        return tuple(_as_recorded(make, one, r) for one, r in zip(made, recorded, strict=False))
    if not is_tensor(made) or not isinstance(recorded, Tensor):
        return made
    wanted, dtype = [make.size(s) for s in recorded.shape], dtype_name(recorded.dtype)
    assert dtype_of(made) == dtype, f"{make.node}: {dtype_of(made)} is not {dtype}"
    if isinstance(made.ty.shape, relax.ShapeExpr) and same_shape(shape_of(made), wanted):
        return made
    return make.builder.match_cast(made, relax.TensorType(wanted, dtype))


def unknown_operators(nodes: Iterable[fx.Node]) -> list[fx.Node]:
    """The nodes whose operator has no converter."""
    return [
        n
        for n in nodes
        if n.op == "call_function"
        and isinstance(n.target, torch._ops.OpOverload)
        and not any(check in target_name(n) for check in _CHECKS)
        and not isinstance(n.meta.get("val"), (int, float, torch.SymInt, torch.SymFloat))
        and target_name(n) not in CONVERTERS
    ]
