"""Turn a causal model into its step: one token in, one token out, with explicit state."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, fx

from flowopt.analysis.rows import Place, RowWise
from flowopt.errors import InternalError, UserError
from flowopt.ir.metadata import recorded_tensor, sizes_as_text
from flowopt.ops.ssm.real_recurrence import real_recurrence
from flowopt.program.program import Dim, Input, Output, Program
from flowopt.recurrence.causal_sums import CausalSum
from flowopt.recurrence.plan import Delay, Filled, Lookup, PlannedStep, Positions, RunningSum, Token, planned_steps
from flowopt.recurrence.state_spaces import StateSpace
from flowopt.report.recurrence import CarriedState, Recurrence
from flowopt.rewrite.edit import Edit

_aten = torch.ops.aten
_VIEWS: Final = {_aten.view.default, _aten._unsafe_view.default}
_STATE, _NEXT = "state", "next_state"


@dataclass(frozen=True, slots=True)
class StepProgram:
    """A causal model token by token.

    Attributes:
        program: inputs are one token of each (an axis of size 1) and the states, outputs one token of each and the
            next states.
        recurrence: what is carried, and where tokens are.
    """

    program: Program
    recurrence: Recurrence


def step_program(program: Program, sequence: str) -> StepProgram:
    """The step of a causal model.

    Sums over the tokens so far become states: running sums, the products of linear attention written out over all
    pairs, and what diagonal state spaces remember. Positions become a counter. Every other operator must compute tokens
    one by one.

    Args:
        program: never changed; it has a free dimension of tokens, and its graph is canonical.
        sequence: name of that dimension.

    Raises:
        UserError: no such dimension, or an operator that is not causal or carries more than a sum; it is named, with
            its source line.

    Source: Katharopoulos et al., "Transformers are RNNs", section 3.4; Gu et al., "On the Parameterization and
        Initialization of Diagonal State Space Models", section 2.
    """
    dim = next((d for d in program.dims if d.name == sequence), None)
    if dim is None:
        free = ", ".join(d.name for d in program.dims) or "none"
        raise UserError(f"the model has no free dimension {sequence!r}", hint=f"its free dimensions: {free}")
    if any(i.state is not None for i in program.inputs):
        raise UserError(
            "the model has state of its own, which a step would mix up with its own", hint="--form parallel"
        )
    copy = program.copy()
    steps = planned_steps(copy, dim)
    return _Maker(copy, dim, steps).made()


class _Maker:
    """Writes the step behind the whole model, and drops what it no longer needs."""

    def __init__(self, program: Program, dim: Dim, steps: tuple[PlannedStep, ...]) -> None:
        self._program, self._dim, self._steps = program, dim, steps
        self._output = program.graph.output_node()
        self._edit = Edit(program, self._output, "step")
        self._values: dict[tuple[fx.Node, Place], fx.Node] = {}
        self._of: dict[fx.Node, str] = {}
        self._next: dict[fx.Node, fx.Node] = {}
        self._counter: fx.Node | None = None

    def made(self) -> StepProgram:
        example = dict(self._program.example)
        axes: dict[str, int] = {}
        tokens = [step for step in self._steps if isinstance(step.how, Token)]
        for step in tokens:
            axes[step.node.name] = step.place.axis
            with self._edit.before(self._output):
                one = self._edit.call(_aten.slice.Tensor, step.node, step.place.axis, 0, 1)
            step.node.meta["val"] = one.meta["val"]
            self._program.graph.erase_node(one)
            self._values[step.node, step.place] = step.node
            given = example.get(step.node.name)
            if given is not None:
                example[step.node.name] = given.narrow(step.place.axis, 0, 1).contiguous()
        for step in self._steps:
            if not isinstance(step.how, Token):
                self._values[step.node, step.place] = self._emitted(step)
        returned: Any = self._output.args[0]
        places = {step.node: step.place for step in self._steps}
        made = [self._values[node, places[node]] for node in returned]
        axes |= {o.name: places[node].axis for o, node in zip(self._program.outputs, returned, strict=True)}
        self._output.args = ((*made, *(self._next[state] for state in self._of)),)
        return self._finished(example, axes)

    def _finished(self, example: dict[str, Tensor], axes: Mapping[str, int]) -> StepProgram:
        names = [state.name for state in self._of]
        ends = [name.replace(_STATE, _NEXT, 1) for name in names]
        dtypes = [state.meta["val"].dtype for state in self._of]
        self._program.inputs += tuple(Input(n, d) for n, d in zip(names, dtypes, strict=True))
        self._program.outputs += tuple(Output(n, d) for n, d in zip(ends, dtypes, strict=True))
        self._program.dims = tuple(d for d in self._program.dims if d != self._dim)
        self._program.single = False
        traced = {d.name: d.traced for d in self._program.dims}
        for state in self._of:
            value = state.meta["val"]
            example[state.name] = torch.zeros(self._program.concrete_shape(value, traced), dtype=value.dtype)
        self._program.example = example
        self._program.drop_unused()
        self._program.graph.lint()
        left = [n.name for n in self._program.graph.nodes if self._dim.symbol in sizes_as_text(n)]
        if left:
            raise InternalError(f"{left[0]} still has all tokens in the step of a model")
        states = tuple(
            CarriedState(name, end, self._program.shape(name), str(dtype).removeprefix("torch."), of)
            for name, end, dtype, of in zip(names, ends, dtypes, self._of.values(), strict=True)
        )
        return StepProgram(self._program, Recurrence(self._dim.name, axes, states, longest=self._dim.maximum))

    def _emitted(self, step: PlannedStep) -> fx.Node:
        with self._edit.before(self._output):
            return self._call(step)

    def _call(self, step: PlannedStep) -> fx.Node:
        call, node, how = self._edit.call, step.node, step.how
        read = [self._values[source, place] for _, source, place in step.reads]
        if isinstance(how, RowWise):
            return self._repeated(step, how, read)
        if isinstance(how, Positions):
            dtype = node.meta["val"].dtype
            moved = call(_aten.mul.Scalar, self._position(), how.step) if how.step != 1 else self._position()
            moved = call(_aten.add.Scalar, moved, how.start) if how.start else moved
            return moved if dtype is torch.int64 else call(_aten._to_copy.default, moved, dtype=dtype)
        if isinstance(how, Filled):
            return call(node.target, list(how.sizes), *node.args[1:], **node.kwargs)
        if isinstance(how, Lookup):
            at = call(_aten.add.Scalar, self._position(), how.start) if how.start else self._position()
            return call(_aten.index_select.default, how.source, step.place.axis, at)
        if isinstance(how, RunningSum):
            dtype = node.meta["val"].dtype
            summed = self._summed(self._cast(read[0], _of_sums(dtype)), node.name)
            return self._cast(summed, dtype)
        if isinstance(how, Delay):
            return self._delayed(read[0], how, step)
        if isinstance(how, StateSpace):
            return self._decayed(read[0], how, node.name)
        assert isinstance(how, CausalSum), how
        return self._attended(how, read, node)

    def _attended(self, how: CausalSum, read: list[fx.Node], node: fx.Node) -> fx.Node:
        call, dtype = self._edit.call, _of_sums(how.dtype)
        query, key, *values = (self._cast(one, dtype) for one in read)
        query = query if how.scale == 1.0 else call(_aten.mul.Scalar, query, how.scale)
        if values:
            key = call(_aten.matmul.default, key, values[0])
        # Without a value (.., 1, F) @ (.., F, 1): the weights of all keys so far.
        made = call(_aten.matmul.default, query, self._summed(key, node.name))
        made = made if values or how.keeps else call(_aten.squeeze.dim, made, -1)
        return self._cast(made, node.meta["val"].dtype)

    def _cast(self, one: fx.Node, dtype: torch.dtype) -> fx.Node:
        return one if one.meta["val"].dtype == dtype else self._edit.call(_aten._to_copy.default, one, dtype=dtype)

    def _decayed(self, one: fx.Node, how: StateSpace, of: str) -> fx.Node:
        """s = poles s + u in real arithmetic: (B, H, N) twice, real and imaginary parts."""
        call, mul, add, sub = self._edit.call, _aten.mul.Tensor, _aten.add.Tensor, _aten.sub.Tensor
        u = one if how.axis == 2 else call(_aten.transpose.int, one, 1, 2)
        steps = real_recurrence(how.system)
        decay_re, decay_im, read_re, read_im = (
            self._edit.parameter(f"{of}.{name}", value, like=one)
            for name, value in (
                ("decay_re", steps.decay_re),
                ("decay_im", steps.decay_im),
                ("read_re", steps.read_re),
                ("read_im", steps.read_im),
            )
        )
        like = call(mul, u, decay_re).meta["val"]
        re, im = self._state(like, of), self._state(like, of)
        self._next[re] = call(add, call(sub, call(mul, re, decay_re), call(mul, im, decay_im)), u)
        self._next[im] = call(add, call(mul, im, decay_re), call(mul, re, decay_im))
        parts = call(mul, self._next[re], read_re), call(mul, self._next[im], read_im)
        made = call(_aten.sum.dim_IntList, call(sub, *parts), [-1], True)
        if how.skip is not None:
            made = call(add, made, call(mul, u, self._edit.parameter(f"{of}.skip", how.skip[:, None], like=one)))
        return made if how.axis == 2 else call(_aten.transpose.int, made, 1, 2)

    def _summed(self, one: fx.Node, of: str) -> fx.Node:
        before = self._state(one.meta["val"], of)
        after = self._edit.call(_aten.add.Tensor, before, one)
        self._next[before] = after
        return after

    def _delayed(self, one: fx.Node, how: Delay, step: PlannedStep) -> fx.Node:
        """The first of a queue, which this token joins at its end."""
        axis = step.place.axis
        with self._edit.before(self._output):
            like = self._edit.call(_aten.cat.default, [one] * how.tokens, axis) if how.tokens > 1 else one
        queue = self._state(like.meta["val"], step.node.name)
        joined = self._edit.call(_aten.cat.default, [queue, one], axis)
        after = self._edit.call(_aten.slice.Tensor, joined, axis, 1, how.tokens + 1)
        self._next[queue] = after
        return self._edit.call(_aten.slice.Tensor, joined, axis, 0, 1)

    def _position(self) -> fx.Node:
        """How many tokens came before: int64, (1,)."""
        if self._counter is None:
            mode = recorded_tensor(self._steps[0].node).fake_mode  # type: ignore[union-attr]  # recorded values are fake
            with mode:
                like = torch.zeros(1, dtype=torch.int64)
            self._counter = self._state(like, "position")
            after = self._edit.call(_aten.add.Scalar, self._counter, 1)
            self._next[self._counter] = after
        return self._counter

    def _state(self, like: Tensor, of: str) -> fx.Node:
        graph = self._program.graph
        name = f"{_STATE}_{len(self._of)}"
        taken = {n.name for n in graph.nodes}
        while name in taken:
            name += "_"
        last = list(graph.find_nodes(op="placeholder"))[-1]
        with graph.inserting_after(last):
            node = graph.placeholder(name)
        node.meta["val"] = like
        self._of[node] = of
        return node

    def _repeated(self, step: PlannedStep, how: RowWise, read: list[fx.Node]) -> fx.Node:
        node = step.node
        args: list[Any] = [list(a) if isinstance(a, (list, tuple)) else a for a in node.args]
        kwargs = dict(node.kwargs)
        for (path, _, _), value in zip(step.reads, read, strict=True):
            first, *inner = path
            if inner:
                args[int(first)][int(inner[0])] = value
            elif isinstance(first, str):
                kwargs[first] = value
            else:
                args[first] = value
        if how.sizes is not None:
            args[1] = list(how.sizes)
        # Tokens that were neighbours in memory may be apart, and a view would refuse them.
        target = _aten.reshape.default if node.target in _VIEWS else node.target
        return self._edit.call(target, *args, **kwargs)


def _of_sums(dtype: torch.dtype) -> torch.dtype:
    """What sums are carried in: 256 + 1 is 256 in bfloat16, and torch adds up half precision in float32."""
    return torch.promote_types(dtype, torch.float32) if dtype.is_floating_point else dtype
