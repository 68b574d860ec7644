"""A step, its states, and the tokens that go through it one by one."""

from collections.abc import Callable, Mapping
from typing import final

import torch
from torch import Tensor

from flowopt.errors import UserError
from flowopt.report.recurrence import Recurrence

Run = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]


@final
class Stream:
    """A causal model that was lowered as a step, in the middle of a sequence.

    Args:
        run: the step: every output by name, for tokens and states by name.
        recurrence: what it carries.
        sizes: of the free dimensions, such as ``batch``.
        dtype: of floating states instead of their own.

    Raises:
        UserError: a state has a free size that is not given.
    """

    def __init__(
        self, run: Run, recurrence: Recurrence, sizes: Mapping[str, int], *, dtype: torch.dtype | None = None
    ) -> None:
        self._run, self._recurrence, self._sizes, self._dtype = run, recurrence, dict(sizes), dtype
        self._states: dict[str, Tensor] = {}
        self.reset()

    @property
    def states(self) -> Mapping[str, Tensor]:
        """What the next token meets, by name of the input: to be kept, or given to another stream."""
        return dict(self._states)

    def reset(self, states: Mapping[str, Tensor] | None = None) -> None:
        """Go back to the beginning of a sequence, or to states that were kept."""
        self._states = {state.input: self._zeros(state.shape, state.dtype) for state in self._recurrence.states}
        unknown = sorted(set(states or ()) - self._states.keys())
        if unknown:
            raise UserError(f"no state {unknown[0]!r}", hint=f"states: {', '.join(self._states)}")
        self._states |= states or {}

    def step(self, /, **inputs: Tensor) -> dict[str, Tensor]:
        """One token of every input, on an axis of size 1; one of every output."""
        found = dict(self._run({**inputs, **self._states}))
        self._states = {state.input: found.pop(state.output) for state in self._recurrence.states}
        return found

    def run(self, /, **inputs: Tensor) -> dict[str, Tensor]:
        """All tokens of whole sequences, one after another; outputs as the model gives them."""
        axes = self._recurrence.token_axes
        tokens = {name: value for name, value in inputs.items() if name in axes}
        others = {name: value for name, value in inputs.items() if name not in axes}
        lengths = {value.shape[axes[name]] for name, value in tokens.items()}
        if len(lengths) != 1:
            raise UserError(f"inputs have {sorted(lengths)} tokens", hint="all of them take the same number")
        found = [
            self.step(**{name: value.narrow(axes[name], at, 1) for name, value in tokens.items()}, **others)
            for at in range(lengths.pop())
        ]
        return {name: torch.cat([one[name] for one in found], axes[name]) for name in (found[0] if found else ())}

    def _zeros(self, shape: tuple[int | str, ...], dtype: str) -> Tensor:
        missing = [size for size in shape if isinstance(size, str) and size not in self._sizes]
        if missing:
            raise UserError(
                f"how large is {missing[0]!r}? what is carried has that size", hint=f"stream({missing[0]}=1)"
            )
        own: torch.dtype = getattr(torch, dtype)
        wanted = self._dtype if self._dtype is not None and own.is_floating_point else own
        return torch.zeros([self._sizes[s] if isinstance(s, str) else s for s in shape], dtype=wanted)
