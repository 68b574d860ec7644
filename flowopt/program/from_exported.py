"""Turn a decomposed ``ExportedProgram`` into a Program."""

from collections.abc import Callable, Mapping
from typing import Any, Final

import torch
from torch import Tensor, fx
from torch.export.graph_signature import ConstantArgument, InputKind, OutputKind, TensorArgument

from flowopt.errors import CaptureError
from flowopt.ir.copy_graph import keep_name
from flowopt.ir.metadata import recorded_tensor, relative_stack_trace, source_line, symbol_of
from flowopt.program.names import is_bare, output_names
from flowopt.program.program import Dim, Input, Output, Program, Provenance

_STORED = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)
_MUTATIONS = (OutputKind.BUFFER_MUTATION, OutputKind.USER_INPUT_MUTATION)
# Export leaves these to catch dtype drift; they name float32 and would forbid the float64 twin.
_CHECKS_TO_DROP = (torch.ops.aten._assert_tensor_metadata.default,)
# A view is legal for the strides of one kernel; the same attention in float64 or after lowering may have others.
_STRIDE_FREE: Final[dict[Any, Any]] = {
    torch.ops.aten.view.default: torch.ops.aten.reshape.default,
    torch.ops.aten._unsafe_view.default: torch.ops.aten.reshape.default,
}
_KEPT_METADATA = ("val", "nn_module_stack")

AxisNames = Mapping[str, Mapping[int, str]]


def program_from_exported(exported: Any, axis_names: AxisNames, provenance: Provenance) -> Program:
    """Build a Program from an ``ExportedProgram`` after ``run_decompositions({})``.

    Views become reshapes, which do not depend on strides. Parameters and buffers become ``get_attr`` nodes; a buffer
    that the model mutates becomes an extra input ``state_<name>`` (its stored value is the default) and an extra
    output ``state_<name>.next``; a mutated input gains the output ``<name>.next``. Constant inputs and outputs
    (numbers, None) are dropped.

    Args:
        exported: the exported program; its tensors are shared, not copied.
        axis_names: input name to the user's dimension name of each free axis; axes that are not in it are called
            ``<input>_<axis>`` (archives do not keep the user's names).
        provenance: where it came from.

    Raises:
        CaptureError: script objects, control flow, or inputs and outputs that are not tensors.
    """
    _require_supported(exported)
    stored = _stored_names(exported)
    mutated = {s.target for s in exported.graph_signature.output_specs if s.kind is OutputKind.BUFFER_MUTATION}
    graph, tensors, inputs, mapping = _inputs_and_tensors(exported, stored, mutated)
    for node in exported.graph.nodes:
        if node.op != "call_function" or node.target in _CHECKS_TO_DROP:
            continue
        mapping[node] = graph.node_copy(node, lambda n: mapping[n])
        mapping[node].target = _STRIDE_FREE.get(node.target, node.target)
        mapping[node].meta = _metadata(node)
    outputs, returned = _outputs(exported, mapping, {i.state: i.name for i in inputs if i.state})
    graph.output(tuple(returned))
    program = Program(
        graph=graph,
        tensors=tensors,
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        dims=(),
        example=_examples(exported, inputs),
        provenance=provenance,
        single=is_bare(exported.call_spec.out_spec),
    )
    program.dims = _dims(exported, program, axis_names)
    program.drop_unused()
    return program


def _require_supported(exported: Any) -> None:
    for spec in exported.graph_signature.input_specs:
        if spec.kind in _STORED or isinstance(spec.arg, ConstantArgument):
            continue
        if spec.kind is not InputKind.USER_INPUT or not isinstance(spec.arg, TensorArgument):
            raise CaptureError(
                f"input {spec.arg.name!r} is {type(spec.arg).__name__} ({spec.kind.name}), not a tensor",
                hint="wrap the model in a module whose forward takes tensors",
            )
    for spec in exported.graph_signature.output_specs:
        if spec.kind not in (OutputKind.USER_OUTPUT, *_MUTATIONS):
            raise CaptureError(f"output {spec.arg.name!r} is of kind {spec.kind.name}, which flowopt does not handle")
        if not isinstance(spec.arg, (TensorArgument, ConstantArgument)):
            raise CaptureError(
                f"output {spec.arg.name!r} is {type(spec.arg).__name__}, not a tensor",
                hint="leave it out, or return it as a tensor; sizes can be read off the outputs",
            )
    for node in exported.graph.nodes:
        if node.op == "call_function" and isinstance(node.target, torch._ops.HigherOrderOperator):
            raise CaptureError(
                f"the model uses {node.target} (control flow or a nested graph)",
                why=source_line(node),
                hint="capture the part before or after it",
            )


def _stored_names(exported: Any) -> dict[str, str]:
    """Graph name of every parameter, buffer and constant to the tensor's name."""
    return {s.arg.name: str(s.target) for s in exported.graph_signature.input_specs if s.kind in _STORED}


def _inputs_and_tensors(
    exported: Any, stored: Mapping[str, str], mutated: set[str | None]
) -> tuple[fx.Graph, dict[str, Tensor], list[Input], dict[fx.Node, fx.Node]]:
    graph = fx.Graph()
    tensors: dict[str, Tensor] = {}
    inputs: list[Input] = []
    mapping: dict[fx.Node, fx.Node] = {}
    canonical = _canonical_name()
    placeholders = [n for n in exported.graph.nodes if n.op == "placeholder"]
    taken = {n.name for n in placeholders if n.name not in stored}
    for node in placeholders:
        name = stored.get(node.name)
        if name is None and recorded_tensor(node) is not None:
            inputs.append(Input(node.name, _dtype(node)))
        elif name is not None and name in mutated:
            tensors[name] = _tensor(exported, name)
            inputs.append(Input(_state_name(name, taken), _dtype(node), state=name))
        else:
            continue
        mapping[node] = graph.placeholder(inputs[-1].name)
        keep_name(mapping[node], inputs[-1].name)
    for node in placeholders:
        name = stored.get(node.name)
        if name is not None and name not in mutated:
            tensor = _tensor(exported, name)
            first = canonical(tensor, name)
            tensors[first] = tensor
            mapping[node] = graph.create_node("get_attr", first)
    for old, new in mapping.items():
        new.meta = _metadata(old)
    return graph, tensors, inputs, mapping


def _state_name(buffer: str, taken: set[str]) -> str:
    """``state_layer_cache`` for the buffer ``layer.cache``, with underscores appended where that is taken."""
    name = "state_" + buffer.replace(".", "_")
    while name in taken:
        name += "_"
    taken.add(name)
    return name


def _canonical_name() -> Callable[[Tensor, str], str]:
    """Tied tensors (one storage, two names) get the first name that occurs."""
    names: dict[tuple[Any, ...], str] = {}

    def first_name(tensor: Tensor, name: str) -> str:
        if tensor.numel() == 0:
            return name
        key = (tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())
        return names.setdefault(key, name)

    return first_name


def _tensor(exported: Any, name: str) -> Tensor:
    tensor = exported.state_dict.get(name)
    if tensor is None:
        tensor = exported.constants[name]
    if not isinstance(tensor, Tensor):
        raise CaptureError(f"{name!r} is {type(tensor).__name__}, not a tensor")
    if tensor.layout is not torch.strided or tensor.is_quantized:
        kind = "quantized" if tensor.is_quantized else str(tensor.layout).removeprefix("torch.")
        raise CaptureError(
            f"the stored tensor {name!r} is {kind}, which flowopt does not handle",
            hint="call .to_dense() or .dequantize() on it in the model",
        )
    return tensor.detach()


def _outputs(
    exported: Any, mapping: Mapping[fx.Node, fx.Node], state_inputs: Mapping[str, str]
) -> tuple[list[Output], list[fx.Node]]:
    by_name = {node.name: new for node, new in mapping.items()}
    names = iter(output_names(exported.call_spec.out_spec))
    users: list[tuple[Output, fx.Node]] = []
    state: list[tuple[Output, fx.Node]] = []
    for spec in exported.graph_signature.output_specs:
        if spec.kind in _MUTATIONS:
            node = by_name[spec.arg.name]
            owner = state_inputs.get(spec.target, spec.target)
            state.append((Output(f"{owner}.next", _dtype(node), state=spec.target), node))
            continue
        name = next(names)
        if isinstance(spec.arg, TensorArgument):
            node = by_name[spec.arg.name]
            users.append((Output(name, _dtype(node)), node))
    if not users:
        raise CaptureError("the model returns no tensor")
    pairs = users + state
    return [o for o, _ in pairs], [n for _, n in pairs]


def _examples(exported: Any, inputs: list[Input]) -> dict[str, Tensor]:
    """Example inputs, which export keeps; archives may have dropped them."""
    if exported.example_inputs is None:
        return {}
    leaves = torch.utils._pytree.tree_leaves(exported.example_inputs)
    names = exported.graph_signature.user_inputs
    given = dict(zip([str(n) for n in names], leaves, strict=False)) if len(names) == len(leaves) else {}
    wanted = {i.name for i in inputs if i.state is None}
    return {name: value.detach() for name, value in given.items() if name in wanted and isinstance(value, Tensor)}


def _dims(exported: Any, program: Program, axis_names: AxisNames) -> tuple[Dim, ...]:
    dims: dict[str, Dim] = {}
    for node in program.graph.nodes:
        value = recorded_tensor(node)
        if node.op != "placeholder" or value is None:
            continue
        sizes: tuple[int | torch.SymInt, ...] = tuple(value.shape)
        for axis, size in enumerate(sizes):
            symbol = symbol_of(size)
            if isinstance(size, int) or symbol is None or symbol in dims:
                continue
            low, high = _range(exported, symbol)
            example = program.example.get(node.name)
            traced = size.node.hint if example is None else example.shape[axis]
            name = axis_names.get(node.name, {}).get(axis, f"{node.name}_{axis}")
            dims[symbol] = Dim(name, symbol, low, high, int(traced))
    return tuple(dims.values())


def _range(exported: Any, symbol: str) -> tuple[int, int | None]:
    for key, bounds in exported.range_constraints.items():
        if str(key) == symbol:
            high = bounds.upper
            return max(int(bounds.lower), 1), int(high) if high.is_Integer and int(high) < 2**31 else None
    return 1, None


def _dtype(node: fx.Node) -> torch.dtype:
    value = recorded_tensor(node)
    if value is None:
        raise CaptureError(f"{node.name} is not a tensor")
    return value.dtype


def _metadata(node: fx.Node) -> dict[str, Any]:
    meta = {key: node.meta[key] for key in _KEPT_METADATA if key in node.meta}
    if node.meta.get("stack_trace"):
        meta["stack_trace"] = relative_stack_trace(node.meta["stack_trace"])
    return meta
