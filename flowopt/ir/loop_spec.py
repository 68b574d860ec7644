"""A loop of known length around a graph: which of its inputs are carried, read from tables, or stay."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, final

from torch import Tensor

Form = Literal["auto", "scan", "loop", "function", "copies"]
FORMS: tuple[Form, ...] = ("auto", "scan", "loop", "function", "copies")


@final
@dataclass(frozen=True, slots=True, eq=False)
class LoopSpec:
    """How often a step runs, and where each of its inputs comes from.

    An input of the step that is neither carried nor in a table nor in a sequence stays the same in all steps.

    Attributes:
        steps: how often, 1 or more.
        state: inputs that are carried from step to step: the step's outputs, in this order, are their next values.
        tables: input to its values in all steps, [steps, *shape of the input], in the input's dtype.
        exact_tables: the same tables in float64, for the float64 twin, where they were computed in it. Where there is
            one step they are no tables but tensors that the step stores, under these names.
        sequences: inputs that get one slice per step of a value computed before the loop, [steps, *shape].
        form: how a lowering writes the loop down; ``auto`` leaves it to the lowering.
    """

    steps: int
    state: tuple[str, ...]
    tables: Mapping[str, Tensor] = field(default_factory=dict)
    sequences: tuple[str, ...] = ()
    exact_tables: Mapping[str, Tensor] = field(default_factory=dict)
    form: Form = "auto"
