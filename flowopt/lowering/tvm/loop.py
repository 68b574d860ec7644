"""The loop of a sampler in Relax: a function that calls the step, and itself as long as there are steps.

Relax has no loop. The virtual machine calls a function in constant time and frees a step's values before the next one
begins; what lives until the end is each step's state. Parts are compiled like any other function, once, however often
they run.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

PROLOGUE, STEP, EPILOGUE, ROWS = "prologue", "step", "epilogue", "rows"
PARTS = (PROLOGUE, STEP, EPILOGUE, ROWS)
MAIN = "main"
_LOOP = "loop"
_NUMBER = "int64"


@dataclass(frozen=True, slots=True)
class LoopNames:
    """How the parts of a sampler hang together: by name, as in ``SamplerProgram``.

    Attributes:
        steps: how often the step runs.
        inputs: of the prologue, which are the sampler's; ``prologue`` its outputs.
        step: inputs of the step.
        state: those that are carried, in the order of the step's outputs.
        tables: those with a row for each step, in the order of the parameters of ``rows``.
        sequences: those with a slice for each step, of what the prologue or the caller gives.
        epilogue: inputs of the epilogue.
    """

    steps: int
    inputs: Sequence[str]
    prologue: Sequence[str]
    step: Sequence[str]
    state: Sequence[str]
    tables: Sequence[str]
    sequences: Sequence[str]
    epilogue: Sequence[str]


def with_rows(module: Any, names: LoopNames, tables: Sequence[Any]) -> Any:
    """The module and a function ``rows``: from a step's number and sequences to rows, next number, whether it is one.

    Args:
        module: prologue, step and epilogue.
        names: of what they take and return.
        tables: [steps, ...] each, as TVM tensors, whose types the parameters of ``rows`` have.
    """
    from tvm import relax

    number = relax.Var("number", relax.TensorType((), _NUMBER))
    known = _types_by_name(module, names)
    sequences = [relax.Var(name, _fresh(known[name], {})) for name in names.sequences]
    stored = [
        relax.Var(f"table_{at}", relax.TensorType(tuple(map(int, table.shape)), str(table.dtype)))
        for at, table in enumerate(tables)
    ]
    builder = relax.BlockBuilder(module)
    inputs = [number, *sequences]
    with builder.function(ROWS, [*inputs, *stored], attrs={"num_input": len(inputs)}):
        with builder.dataflow():
            rows = [builder.emit(relax.op.take(one, number, axis=0, mode="clip")) for one in (*stored, *sequences)]
            following = builder.emit(relax.op.add(number, relax.const(1, _NUMBER)))
            more = builder.emit(relax.op.less(following, relax.const(names.steps, _NUMBER)))
            returned = builder.emit_output(relax.Tuple([*rows, following, more]))
        builder.emit_func_output(returned)
    return builder.get()


def joined(module: Any, names: LoopNames, parameters: Mapping[str, int]) -> Any:
    """The module and its function ``main``, which runs prologue, loop and epilogue; the parts become private.

    Args:
        module: the parts, scheduled.
        names: as for ``with_rows``.
        parameters: how many each part takes behind its inputs; ``main`` takes all, part by part.
    """
    import tvm
    from tvm import relax

    module = _private(tvm, module)
    gv = {name: module.get_global_var(name) for name in PARTS}
    for variable in gv.values():
        # A call's type is read from what it calls.
        if variable.ty.is_missing():
            relax.expr._update_type(variable, module[variable].ty)
    stored = {part: list(module[gv[part]].params)[-count:] if count else [] for part, count in parameters.items()}
    known = _types_by_name(module, names)

    # The loop: what changes, what stays, and the parameters of what it calls.
    kept = [n for n in names.step if n not in names.state and n not in names.tables and n not in names.sequences]
    carried = [*names.state, *kept, *names.sequences]
    fresh: dict[Any, Any] = {}
    number = relax.Var("number", relax.TensorType((), _NUMBER))
    variables = {name: relax.Var(name, _fresh(known[name], fresh)) for name in carried}
    inside = {part: [relax.Var(f"{part}_{v.name}", v.ty) for v in stored[part]] for part in (ROWS, STEP)}
    parameters_of_loop = [number, *variables.values(), *inside[ROWS], *inside[STEP]]
    loop = tvm.ir.GlobalVar(_LOOP)
    state = relax.TupleType([variables[name].ty for name in names.state])
    relax.expr._update_type(loop, relax.Function.create_empty(parameters_of_loop, state).ty)

    builder = relax.BlockBuilder()
    emit: Callable[[Any], Any] = builder.emit
    builder.begin_scope(parameters_of_loop)
    builder._begin_binding_block()
    read = emit(relax.Call(gv[ROWS], [number, *(variables[name] for name in names.sequences), *inside[ROWS]]))
    rows = {name: emit(relax.TupleGetItem(read, at)) for at, name in enumerate((*names.tables, *names.sequences))}
    following = emit(relax.TupleGetItem(read, len(rows)))
    more = emit(relax.TupleGetItem(read, len(rows) + 1))
    values = {**variables, **rows}
    after = emit(relax.Call(gv[STEP], [*(values[name] for name in names.step), *inside[STEP]]))
    nexts = [emit(relax.TupleGetItem(after, at)) for at in range(len(names.state))]
    again = relax.Call(
        loop, [following, *nexts, *(variables[n] for n in (*kept, *names.sequences)), *inside[ROWS], *inside[STEP]]
    )
    returned = emit(relax.If(more, _branch(relax, again, state), _branch(relax, relax.Tuple(nexts), state)))
    block = builder._end_block()
    body = builder.normalize(relax.SeqExpr([block], returned))
    builder.end_scope()
    function = relax.Function(parameters_of_loop, body, state, is_pure=True)
    module[loop] = function
    return _with_main(module, names, gv, loop, stored, carried)


def _with_main(
    module: Any, names: LoopNames, gv: Mapping[str, Any], loop: Any, stored: Mapping[str, Sequence[Any]], carried: Any
) -> Any:
    from tvm import relax

    fresh: dict[Any, Any] = {}
    known = dict(zip(names.inputs, module[gv[PROLOGUE]].params, strict=False))
    inputs = {name: relax.Var(name, _fresh(known[name].ty, fresh)) for name in names.inputs}
    outer = {part: [relax.Var(f"{part}_{v.name}", v.ty) for v in stored[part]] for part in PARTS}
    builder = relax.BlockBuilder(module)
    parameters = [*inputs.values(), *(v for part in PARTS for v in outer[part])]
    with builder.function(MAIN, parameters, attrs={"num_input": len(inputs)}):
        before = builder.emit(relax.Call(gv[PROLOGUE], [*inputs.values(), *outer[PROLOGUE]]))
        values = dict(inputs)
        values |= {name: builder.emit(relax.TupleGetItem(before, at)) for at, name in enumerate(names.prologue)}
        first = builder.emit(relax.const(0, _NUMBER))
        after = builder.emit(relax.Call(loop, [first, *(values[name] for name in carried), *outer[ROWS], *outer[STEP]]))
        values |= {name: builder.emit(relax.TupleGetItem(after, at)) for at, name in enumerate(names.state)}
        last = builder.emit(relax.Call(gv[EPILOGUE], [*(values[name] for name in names.epilogue), *outer[EPILOGUE]]))
        builder.emit_func_output(last)
    return builder.get()


def _branch(relax: Any, value: Any, ty: Any) -> Any:
    """One value as the body of a branch."""
    bound = relax.Var("state", ty)
    return relax.SeqExpr([relax.BindingBlock([relax.VarBinding(bound, value)])], bound)


def _private(tvm: Any, module: Any) -> Any:
    """The parts without the attributes that make them public and say how many inputs they have."""
    made = tvm.IRModule(dict(module.functions.items()), attrs=module.attrs, global_infos=module.global_infos)
    for name in PARTS:
        variable = made.get_global_var(name)
        made[variable] = made[variable].without_attr("num_input").without_attr("global_symbol")
    return made


def _types_by_name(module: Any, names: LoopNames) -> dict[str, Any]:
    """Types of what the step takes: its own parameters say, but for sequences, of which it gets slices."""
    prologue = module[PROLOGUE]
    known = dict(zip(names.inputs, (v.ty for v in prologue.params), strict=False))
    known |= dict(zip(names.prologue, prologue.ret_ty.fields, strict=True))
    step = dict(zip(names.step, (v.ty for v in module[STEP].params), strict=False))
    return known | {name: ty for name, ty in step.items() if name not in names.sequences}


def _fresh(ty: Any, known: dict[Any, Any]) -> Any:
    """The type with free sizes of its own: no two functions share one."""
    import tvm
    from tvm import relax

    def size(old: Any) -> Any:
        if isinstance(old, tvm.tirx.IntImm):
            return old
        # An expression of sizes becomes a size: what it depends on may be no argument.
        return known.setdefault(str(old), tvm.tirx.Var(f"size_{len(known)}", "int64"))

    return relax.TensorType([size(one) for one in ty.shape], ty.dtype)
