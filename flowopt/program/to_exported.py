"""Turn a Program back into an ``ExportedProgram``, for torch's own exporters."""

from typing import Any

import torch
from torch import Tensor, fx
from torch.export.exported_program import ExportedProgram, ModuleCallEntry, ModuleCallSignature
from torch.export.graph_signature import (
    ExportGraphSignature,
    InputKind,
    InputSpec,
    OutputKind,
    OutputSpec,
    TensorArgument,
)
from torch.utils import _pytree as pytree
from torch.utils._sympy.numbers import int_oo
from torch.utils._sympy.value_ranges import ValueRanges

from flowopt.errors import InternalError
from flowopt.ir.copy_graph import keep_name
from flowopt.ir.metadata import recorded_tensor
from flowopt.program.program import Program


def to_exported(program: Program) -> ExportedProgram:
    """The program as an ``ExportedProgram`` that shares its tensors.

    Inputs are positional, in the order of ``program.inputs``; the result is the bare tensor of a
    program with one output that was bare, else a dictionary by dotted name. State stays explicit.

    Raises:
        InternalError: the program is a float64 twin, which has no stored form.
    """
    if program.raised:
        raise InternalError("a raised program exists only while it is evaluated")
    graph, parameters = _lifted_graph(program)
    root = fx.GraphModule({}, graph)
    returned: Any = graph.output_node().args[0]  # a flat tuple of nodes
    signature = ExportGraphSignature(
        [
            *(
                InputSpec(InputKind.BUFFER, TensorArgument(node.name), target, persistent=True)
                for target, node in parameters.items()
            ),
            *(InputSpec(InputKind.USER_INPUT, TensorArgument(i.name), None) for i in program.inputs),
        ],
        [OutputSpec(OutputKind.USER_OUTPUT, TensorArgument(node.name), None) for node in returned],
    )
    example = tuple(program.example.get(i.name, _stored(program, i.state)) for i in program.inputs)
    in_spec = pytree.tree_flatten((tuple(0 for _ in program.inputs), {}))[1]
    names = [o.name for o in program.outputs]
    out_spec = pytree.tree_flatten(0 if program.single and len(names) == 1 else dict.fromkeys(names, 0))[1]
    call = ModuleCallSignature(
        inputs=[TensorArgument(i.name) for i in program.inputs],
        outputs=[spec.arg for spec in signature.output_specs],
        in_spec=in_spec,
        out_spec=out_spec,
        # Guards and second traces call the inputs arg_0, ... without it, and contradict themselves.
        forward_arg_names=[i.name for i in program.inputs],
    )
    return ExportedProgram(
        root=root,
        graph=graph,
        graph_signature=signature,
        state_dict={name: program.tensors[name] for name in parameters},
        range_constraints=_range_constraints(program),
        module_call_graph=[ModuleCallEntry(fqn="", signature=call)],
        example_inputs=(example, {}) if all(e is not None for e in example) else None,
        constants={},
    )


def _lifted_graph(program: Program) -> tuple[fx.Graph, dict[str, fx.Node]]:
    """The graph with one leading placeholder per stored tensor, the form that ``ExportedProgram`` wants."""
    graph = fx.Graph()
    parameters: dict[str, fx.Node] = {}
    mapping: dict[fx.Node, fx.Node] = {}
    reads = [n for n in program.graph.nodes if n.op == "get_attr"]
    # Input names are the user's: they are taken first, so that no parameter gets one.
    taken = {i.name for i in program.inputs}
    for node in reads:
        target = str(node.target)
        if target not in parameters:
            name = "p_" + target.replace(".", "_")
            parameters[target] = graph.placeholder(name if name not in taken else name + "_")
            parameters[target].meta = dict(node.meta)
        mapping[node] = parameters[target]
    for node in program.graph.nodes:
        if node.op == "get_attr":
            continue
        mapping[node] = graph.node_copy(node, lambda n: mapping[n])
        mapping[node].meta = {k: v for k, v in node.meta.items() if k != "rewritten_by"}
        if node.op == "placeholder":
            keep_name(mapping[node], node.name)
    _copy_returned(graph, set(parameters.values()))
    return graph, parameters


def _copy_returned(graph: fx.Graph, parameters: set[fx.Node]) -> None:
    """Return copies of parameters: torch loses one that is returned as it is when it decomposes the program again."""
    output = graph.output_node()
    returned: Any = output.args[0]  # a flat tuple of nodes
    with graph.inserting_before(output):
        for node in dict.fromkeys(node for node in returned if node in parameters):
            copy = graph.call_function(torch.ops.aten.clone.default, (node,))
            copy.meta = dict(node.meta)
            output.replace_input_with(node, copy)


def _stored(program: Program, state: str | None) -> Tensor | None:
    return None if state is None else program.tensors[state]


def _range_constraints(program: Program) -> dict[Any, ValueRanges[Any]]:
    """Ranges of the free symbols: the user's for dimensions, the shape environment's for data-dependent sizes."""
    # The shape environment starts every traced symbol at 2; the range that export checked is the user's.
    declared = {d.symbol: ValueRanges(d.minimum, int_oo if d.maximum is None else d.maximum) for d in program.dims}
    constraints: dict[Any, ValueRanges[Any]] = {}
    for node in program.graph.nodes:
        value = recorded_tensor(node)
        for size in value.shape if value is not None else ():
            if isinstance(size, torch.SymInt):
                for symbol in size.node.expr.free_symbols:
                    known = size.node.shape_env.var_to_range[symbol]
                    constraints[symbol] = declared.get(str(symbol), known)
    return constraints
