"""What is on record of a model that was lowered as a step: what it carries from token to token."""

from collections.abc import Mapping
from dataclasses import dataclass

from flowopt.report.verdict import Verdict


@dataclass(frozen=True, slots=True)
class CarriedState:
    """What is carried from one token to the next; zeros before the first.

    Attributes:
        input: name of the input that takes it.
        output: name of the output that gives it for the next token.
        shape: sizes; free ones by name.
        dtype: as torch names it, such as ``float32``.
        of: the operator that carries it, as named in the captured graph; ``position`` counts tokens.
    """

    input: str
    output: str
    shape: tuple[int | str, ...]
    dtype: str
    of: str


@dataclass(frozen=True, slots=True)
class Recurrence:
    """A causal model as a step.

    Attributes:
        sequence: the free dimension that it goes along.
        token_axes: of every input and output that has tokens, the axis they are on; a step has one.
        states: what is carried, in the order of the inputs.
        longest: sequence that the model takes; None: any.
        verdict: of the step, token by token, against the model on whole sequences; None: not verified.
    """

    sequence: str
    token_axes: Mapping[str, int]
    states: tuple[CarriedState, ...]
    longest: int | None = None
    verdict: Verdict | None = None
