"""SamplerProgram: a program whose middle runs several times."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, final

from torch import Tensor

from flowopt.errors import InternalError
from flowopt.ir.float64 import raised_tensor
from flowopt.ir.loop_spec import LoopSpec
from flowopt.program.interface import Interface
from flowopt.program.program import Program


@final
@dataclass(frozen=True, slots=True, eq=False)
class SamplerProgram:
    """What runs once before a loop, the step that repeats, the loop, and what runs once behind it.

    Names hold the parts together. The step finds its first state, its sequences and what stays the same in all steps
    among the prologue's outputs by name, or else among the sampler's inputs. Its outputs are the next state, in the
    order of ``loop.state``. The epilogue's inputs are names of the state.

    Attributes:
        prologue: its inputs are the sampler's.
        step: one step; an ordinary program, which passes rewrite and lowerings write like any other.
        loop: how often, and where the step's inputs come from.
        epilogue: its outputs are the sampler's.
    """

    prologue: Program
    step: Program
    loop: LoopSpec
    epilogue: Program

    @property
    def interface(self) -> Interface:
        """Inputs and outputs of the whole, as a call is checked against them."""
        inner, outer = self.prologue.interface, self.epilogue.interface
        return Interface(inner.inputs, outer.outputs, inner.dims, outer.single)

    @property
    def parameter_bytes(self) -> int:
        """Bytes of everything that is stored: once, however often the step runs."""
        tables = sum(t.numel() * t.element_size() for t in self.loop.tables.values())
        return tables + sum(p.parameter_bytes for p in (self.prologue, self.step, self.epilogue))

    def raised_copy(self) -> "SamplerProgram":
        """The float64 twin: every part raised, and tables as they were before they were rounded."""
        loop = self.loop
        tables = {name: loop.exact_tables.get(name, raised_tensor(table)) for name, table in loop.tables.items()}
        step = self.step.raised_copy()
        step.tensors |= {name: table[0] for name, table in loop.exact_tables.items() if name in step.tensors}
        return SamplerProgram(
            self.prologue.raised_copy(),
            step,
            dataclasses.replace(loop, tables=tables),
            self.epilogue.raised_copy(),
        )

    def run(self, *args: Any, **kwargs: Any) -> Tensor | dict[str, Tensor]:
        """Run the loop eagerly: inputs by position or by name.

        Raises:
            UserError: the inputs do not fit.
        """
        interface = self.interface
        return interface.result(self.run_named(interface.bind(args, kwargs)))

    def run_named(
        self,
        inputs: Mapping[str, Tensor],
        *,
        observe: Callable[[int, Mapping[str, Tensor], Mapping[str, Tensor]], None] = lambda *_: None,
    ) -> dict[str, Tensor]:
        """Every output by name, for the sampler's inputs by name.

        Args:
            inputs: of the whole.
            observe: called behind each step with its number, its inputs and its outputs.
        """
        values = {**inputs, **self.prologue.run_named(inputs)}
        for number in range(self.loop.steps):
            feed = self.step_inputs(number, values)
            outputs = self.step.run_named(feed)
            observe(number, feed, outputs)
            values |= zip(self.loop.state, outputs.values(), strict=True)
        return self.epilogue.run_named({i.name: values[i.name] for i in self.epilogue.inputs})

    def step_inputs(self, number: int, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the step gets at one of its runs, given the state, sequences and invariants by name.

        Raises:
            InternalError: nothing supplies an input.
        """
        feed: dict[str, Tensor] = {}
        for name in (i.name for i in self.step.inputs):
            if name in self.loop.tables:
                feed[name] = self.loop.tables[name][number]
            elif name in values:
                feed[name] = values[name][number] if name in self.loop.sequences else values[name]
            else:
                raise InternalError(f"nothing supplies the step's input {name!r}")
        return feed
