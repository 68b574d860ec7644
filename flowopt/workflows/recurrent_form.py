"""A model of state space layers as one step: a token in, a token out, and the states between as inputs and outputs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, fx, nn

from flowopt.analysis.exponential_kernel import diagonal_system
from flowopt.analysis.row_wise import row_wise
from flowopt.analysis.rows import Place, Rows
from flowopt.errors import UserError
from flowopt.ir.constants import is_parameter_only, needed_nodes
from flowopt.ir.evaluate import called
from flowopt.ir.float64 import raised_tensor
from flowopt.ir.metadata import recorded_tensor, source_line, symbol_of
from flowopt.ops.ssm.real_recurrence import real_recurrence
from flowopt.passes.fold.fold_ssm_kernel import FoldSsmKernel, Plan
from flowopt.program.capture import capture
from flowopt.program.program import Dim, Program
from flowopt.rewrite.site import RefusedError, Site

_aten = torch.ops.aten
_SHAPED = (_aten.view.default, _aten.reshape.default, _aten._unsafe_view.default, _aten.expand.default)


@dataclass(frozen=True, slots=True)
class RecurrentForm:
    """A model as a step.

    Attributes:
        program: takes the model's inputs with one token each, and two states for every layer; gives the model's outputs
            of this token, and the states behind it.
        states: names of the inputs that are states, in the order of the outputs that follow the model's own.
        shapes: of these, without the batch: (channels, states). Before the first token they are zero.
    """

    program: Program
    states: tuple[str, ...]
    shapes: tuple[tuple[int, int], ...]


def recurrent_form(program: Program, length: str) -> RecurrentForm:
    """The step of a model whose layers are causal convolutions with sums of powers, and operators of single tokens.

    Args:
        program: captured with a free length; its first axis of every input is the batch.
        length: name of the dimension of tokens.

    Raises:
        UserError: there is no such dimension or no state space layer, a layer has no steps (its code says why), or
            another operator looks at more than one token.
    """
    dim = next((d for d in program.dims if d.name == length), None)
    if dim is None:
        raise UserError(f"no free dimension {length!r}", hint=f"it has {[d.name for d in program.dims]}")
    plans = {plan.convolution.result: plan for plan in _plans(program)}
    if not plans:
        raise UserError("the model has no state space layer whose steps are known: no transform is turned back in it")
    needed = needed_nodes([program.graph.output_node()], plans)
    pending = [plan.convolution.x for plan in plans.values()]
    while pending:
        inner = needed_nodes([pending.pop()], {*needed, *plans})
        needed |= inner
    _require_token_by_token(program, plans, needed, dim)
    step = _Step(program, plans, needed)
    names = [name for at in range(len(plans)) for name in (f"state{at}_re", f"state{at}_im")]
    example = {i.name: program.example[i.name] for i in program.inputs}
    axes = {i.name: _axis_of(program, i.name, dim) for i in program.inputs}
    tokens = {n: t if axes[n] is None else t.narrow(axes[n] or 0, 0, 1) for n, t in example.items()}
    first = next(iter(tokens.values()))
    states = {n: first.new_zeros(first.shape[0], *shape) for n, shape in zip(names, step.shapes, strict=True)}
    # A list of inputs has one name: what it holds is told apart by its place.
    free = _free_batch(program, tokens)
    made = capture(
        step,
        ([*tokens.values()], [*states.values()]),
        dynamic=None
        if free is None
        else {"tokens": [{0: free.name}] * len(tokens), "states": [{0: free.name}] * len(states)},
        dims=None if free is None else {free.name: (free.minimum, free.maximum)},
    )
    inputs = [i.name for i in made.inputs]
    return RecurrentForm(made, tuple(inputs[len(tokens) :]), step.shapes)


def _plans(program: Program) -> list[Plan]:
    chunked = FoldSsmKernel(form="chunked")
    try:
        return [chunked.check(Site(program, node)) for node in chunked.sites(program)]
    except RefusedError as no:
        raise UserError(
            f"a layer has no steps ({no.refusal.code}): {no.refusal.message}", why=no.refusal.source
        ) from no


def _free_batch(program: Program, tokens: Mapping[str, Tensor]) -> Dim | None:
    """The dimension that the first axis of all inputs is, where it is free."""
    sizes = {symbol_of(program.node(name).meta["val"].shape[0]) for name in tokens}
    return next((d for d in program.dims if sizes == {d.symbol}), None)


def _require_token_by_token(program: Program, plans: Mapping[fx.Node, Plan], needed: set[fx.Node], dim: Dim) -> None:
    """Every operator but the layers' computes a token from that token."""
    returned: Any = program.graph.output_node().args[0]
    pending = [(node, _place(node, dim)) for node in returned]
    pending += [(p.convolution.x, Place(p.convolution.axis)) for p in plans.values()]
    seen = set[tuple[fx.Node, int]]()
    rows = Rows(_length(dim, needed), 1)
    while pending:
        node, place = pending.pop()
        if place is None:
            raise UserError(f"{node.name} has no axis of tokens ({dim.name})", why=source_line(node))
        if (node, place.axis) in seen or node in plans or node.op == "placeholder" or is_parameter_only(node):
            continue
        seen.add((node, place.axis))
        found = _single(node, place) or row_wise(node, place, rows)
        if found is None or not place.stands_alone:
            raise UserError(
                f"{node.name} looks at more than one token, or at where a token stands", why=source_line(node)
            )
        reads = found if isinstance(found, list) else [(read.source, read.place) for read in found.reads]
        pending += reads
    reached = {node for node, _ in seen}
    for node in sorted(needed - reached - set(plans)):
        # What is the same for all tokens must not be made of them: their sum, the last one.
        if node.op == "call_function" and recorded_tensor(node) is not None and _is_of_tokens(node, plans, dim):
            raise UserError(f"{node.name} looks at more than one token", why=source_line(node))
    for node in sorted(needed):
        by_length = [
            n for n in node.all_input_nodes if dim.symbol in str(n.meta.get("val")) and recorded_tensor(n) is None
        ]
        if by_length and recorded_tensor(node) is not None and node.target not in _SHAPED:
            raise UserError(f"{node.name} depends on the number of tokens", why=source_line(node))


def _is_of_tokens(node: fx.Node, plans: Mapping[fx.Node, Plan], dim: Dim) -> bool:
    """Whether a value is computed from tokens, rather than from stored tensors, sizes and inputs without tokens."""
    seen, pending = set[fx.Node](), [node]
    while pending:
        current = pending.pop()
        if current in seen or recorded_tensor(current) is None:
            continue
        seen.add(current)
        if current in plans or (current.op == "placeholder" and dim.symbol in str(current.meta["val"].shape)):
            return True
        pending.extend(current.all_input_nodes)
    return False


def _single(node: fx.Node, place: Place) -> list[tuple[fx.Node, Place | None]] | None:
    """What a pointwise convolution or a gate over channels reads for a token."""
    source: Any = node.args[0] if node.args else None
    if node.target is _aten.conv1d.default and place.axis == 2:
        args = (*node.args, *(None, [1], [0], [1], 1)[len(node.args) - 2 :])
        weight = recorded_tensor(args[1])
        is_pointwise = weight is not None and weight.shape[2] == 1 and list(args[3]) == [1] and list(args[4]) == [0]  # type: ignore[arg-type]
        return [(source, place)] if is_pointwise and is_parameter_only(args[1]) else None  # type: ignore[arg-type]
    if node.target is _aten.glu.default:
        value = recorded_tensor(node)
        axis: Any = node.args[1] if len(node.args) > 1 else -1
        return [(source, place)] if value is not None and axis % value.dim() != place.axis else None
    return None


def _length(dim: Dim, needed: set[fx.Node]) -> Any:
    for node in needed:
        value = recorded_tensor(node)
        for size in () if value is None else value.shape:
            if not isinstance(size, int) and symbol_of(size) == dim.symbol:
                return size.node.expr
    raise UserError(f"nothing has {dim.name} tokens")


def _place(node: fx.Node, dim: Dim) -> Place | None:
    value = recorded_tensor(node)
    axes = [] if value is None else [a for a, size in enumerate(value.shape) if symbol_of(size) == dim.symbol]
    return Place(axes[0]) if len(axes) == 1 else None


def _axis_of(program: Program, name: str, dim: Dim) -> int | None:
    place = _place(program.node(name), dim)
    return None if place is None else place.axis


@final
class _Step(nn.Module):
    """Runs the graph for one token, with the layers' convolutions as steps."""

    def __init__(self, program: Program, plans: Mapping[fx.Node, Plan], needed: set[fx.Node]) -> None:
        super().__init__()
        self._nodes = [n for n in program.graph.nodes if n in needed or n in plans]
        self._plans = dict(plans)
        self._inputs = [i.name for i in program.inputs]
        self._order = [n for n in self._nodes if n in plans]
        self.shapes: tuple[tuple[int, int], ...] = ()
        for name in dict.fromkeys(str(n.target) for n in self._nodes if n.op == "get_attr"):
            self.register_buffer(_flat(name), program.tensors[name])
        for at, node in enumerate(self._order):
            plan = plans[node]
            assert plan.powers is not None  # chunks need them
            system = diagonal_system(plan.powers, lambda name: raised_tensor(program.tensors[name]))
            assert system is not None  # check has found it
            steps, skip, dtype = real_recurrence(system), plan.convolution.skip, plan.convolution.x.meta["val"].dtype
            self.shapes += ((steps.decay_re.shape[0], steps.decay_re.shape[1]),) * 2
            for key in ("decay_re", "decay_im", "read_re", "read_im"):
                self.register_buffer(f"layer{at}_{key}", getattr(steps, key).to(dtype))
            channels = steps.decay_re.shape[0]
            zero = torch.zeros(channels, dtype=torch.float64)
            value = zero if skip is None else program.constant(skip).reshape(-1).expand(channels)
            self.register_buffer(f"layer{at}_skip", value.to(dtype).clone())
        self.eval()

    def forward(self, tokens: list[Tensor], states: list[Tensor]) -> tuple[Tensor, ...]:
        given = dict(zip(self._inputs, tokens, strict=True))
        values: dict[fx.Node, Any] = {}
        for node in self._nodes:
            if node.op == "placeholder":
                values[node] = given[node.name]
            elif node.op == "get_attr":
                values[node] = getattr(self, _flat(str(node.target)))
            elif node.op == "output":
                outputs: Any = node.args[0]
                return (*(values[n] for n in outputs), *states)
            elif node in self._plans:
                at, plan = self._order.index(node), self._plans[node]
                axis = plan.convolution.axis
                y, re, im = self._stepped(at, values[plan.convolution.x].squeeze(axis), *states[2 * at : 2 * at + 2])
                values[node] = y.unsqueeze(axis)
                states = [*states[: 2 * at], re, im, *states[2 * at + 2 :]]
            else:
                values[node] = called(node, lambda n: values[n], raised=False)
        raise AssertionError("the graph has no output node")

    def _stepped(self, at: int, u: Tensor, re: Tensor, im: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        decay_re, decay_im, read_re, read_im, skip = (
            getattr(self, f"layer{at}_{key}") for key in ("decay_re", "decay_im", "read_re", "read_im", "skip")
        )
        re, im = decay_re * re - decay_im * im + u.unsqueeze(-1), decay_re * im + decay_im * re
        return (read_re * re - read_im * im).sum(-1) + skip * u, re, im


def _flat(name: str) -> str:
    return "stored_" + name.replace(".", "_")
