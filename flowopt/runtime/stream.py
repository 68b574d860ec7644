"""A step, its states, and the tokens that go through it one by one."""

from collections.abc import Callable, Mapping
from typing import final

import torch
from torch import Tensor

from flowopt.errors import UserError
from flowopt.program.interface import Interface
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
        interface: of the step, with its states; inputs are checked by it. None: the step checks them.

    Raises:
        UserError: a state has a free size that is not given, or a given one is unknown or out of range.
    """

    def __init__(
        self,
        run: Run,
        recurrence: Recurrence,
        sizes: Mapping[str, int],
        *,
        dtype: torch.dtype | None = None,
        interface: Interface | None = None,
    ) -> None:
        self._run, self._recurrence, self._sizes, self._dtype = run, recurrence, dict(sizes), dtype
        self._interface = interface
        if interface is not None:
            _require_sizes(sizes, interface.dims)
        self._states: dict[str, Tensor] = {}
        self._count = 0
        self.reset()

    @property
    def states(self) -> Mapping[str, Tensor]:
        """What the next token meets, by name of the input: to be kept, or given to another stream."""
        return dict(self._states)

    def reset(self, states: Mapping[str, Tensor] | None = None) -> None:
        """Go back to the beginning of a sequence, or to states that were kept.

        Raises:
            UserError: a state that it has not, or one of another shape or dtype.
        """
        given = dict(states or {})
        zeros = {state.input: self._zeros(state.shape, state.dtype) for state in self._recurrence.states}
        unknown = sorted(given.keys() - zeros.keys())
        if unknown:
            raise UserError(f"no state {unknown[0]!r}", hint=f"states: {', '.join(zeros)}")
        for name, value in given.items():
            _require_tensor("state", name, value)
            if value.shape != zeros[name].shape or value.dtype != zeros[name].dtype:
                raise UserError(
                    f"state {name!r} is {_kind(value)}, not {_kind(zeros[name])}",
                    hint="give the states of a stream of the same sizes",
                )
        self._states = zeros | given
        # Without a counter among the states they do not tell how many tokens they have seen.
        counters = [state.input for state in self._recurrence.states if state.of == "position"]
        self._count = int(self._states[counters[0]]) if counters else 0

    def step(self, /, **inputs: Tensor) -> dict[str, Tensor]:
        """One token of every input, on an axis of size 1; one of every output.

        Raises:
            UserError: the inputs do not fit, or the model takes no longer sequence.
        """
        for name, size in self._tokens(inputs).items():
            if size != 1:
                raise UserError(
                    f"step takes one token; run takes whole sequences: {name!r} has {size}",
                    hint=f"stream.run({name}=...)",
                )
        self._require_room(1)
        return self._stepped(inputs)

    def run(self, /, **inputs: Tensor) -> dict[str, Tensor]:
        """All tokens of whole sequences, one after another; outputs as the model gives them.

        Raises:
            UserError: as for ``step``, before any token went through; there are no tokens.
        """
        axes, lengths = self._recurrence.token_axes, self._tokens(inputs)
        if not lengths:
            raise UserError("no input with tokens is given", hint=f"stream.run({', '.join(self._names())}=...)")
        if len(set(lengths.values())) != 1:
            raise UserError(
                f"inputs have {sorted(set(lengths.values()))} tokens", hint="all of them take the same number"
            )
        (length,) = set(lengths.values())
        if length == 0:
            raise UserError(f"{next(iter(lengths))!r} has no tokens", hint="give one or more")
        self._require_room(length)
        found = [
            self._stepped({name: v.narrow(axes[name], at, 1) if name in lengths else v for name, v in inputs.items()})
            for at in range(length)
        ]
        return {name: torch.cat([one[name] for one in found], axes[name]) for name in found[0]}

    def _stepped(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        given = {**inputs, **self._states}
        if self._interface is not None:
            self._require_sizes_kept(inputs, self._interface)
            given = self._interface.bind((), given)
        found = dict(self._run(given))
        self._states = {state.input: found.pop(state.output) for state in self._recurrence.states}
        self._count += 1
        return found

    def _require_sizes_kept(self, inputs: Mapping[str, Tensor], interface: Interface) -> None:
        for spec in interface.inputs:
            if spec.name in inputs and inputs[spec.name].dim() == len(spec.shape):
                for size, dim in zip(inputs[spec.name].shape, spec.shape, strict=True):
                    if isinstance(dim, str) and self._sizes.get(dim, size) != size:
                        raise UserError(
                            f"{dim!r} is {size} in {spec.name!r}, and {self._sizes[dim]} in this stream",
                            hint=f"stream({dim}={size}) begins another one",
                        )

    def _tokens(self, inputs: Mapping[str, Tensor]) -> dict[str, int]:
        """How many tokens every input has that has any; all inputs are tensors with that axis, and no states."""
        axes = self._recurrence.token_axes
        for name, value in inputs.items():
            if name in self._states:
                raise UserError(f"{name!r} is a state, which the stream carries", hint="stream.reset(states) sets it")
            _require_tensor("input", name, value)
            if name in axes and value.dim() <= axes[name]:
                raise UserError(
                    f"input {name!r} is {_kind(value)}", why=f"its tokens are on axis {axes[name]}, counted from 0"
                )
        return {name: value.shape[axes[name]] for name, value in inputs.items() if name in axes}

    def _names(self) -> list[str]:
        """Of inputs with tokens, where that is known."""
        known = self._interface.inputs if self._interface is not None else ()
        return [spec.name for spec in known if spec.name in self._recurrence.token_axes] or ["tokens"]

    def _require_room(self, tokens: int) -> None:
        longest = self._recurrence.longest
        if longest is not None and self._count + tokens > longest:
            raise UserError(
                f"the model takes no more than {longest} tokens",
                why=f"{self._count} went through, and {tokens} more {'is' if tokens == 1 else 'are'} given",
                hint="stream.reset()",
            )

    def _zeros(self, shape: tuple[int | str, ...], dtype: str) -> Tensor:
        missing = [size for size in shape if isinstance(size, str) and size not in self._sizes]
        if missing:
            raise UserError(
                f"how large is {missing[0]!r}? what is carried has that size", hint=f"stream({missing[0]}=1)"
            )
        own: torch.dtype = getattr(torch, dtype)
        wanted = self._dtype if self._dtype is not None and own.is_floating_point else own
        return torch.zeros([self._sizes[s] if isinstance(s, str) else s for s in shape], dtype=wanted)


def _require_sizes(sizes: Mapping[str, int], dims: Mapping[str, tuple[int, int | None]]) -> None:
    for name, size in sizes.items():
        if name not in dims:
            raise UserError(f"there is no free size {name!r}", hint=f"free sizes: {', '.join(dims) or 'none'}")
        low, high = dims[name]
        if not isinstance(size, int) or size < low or (high is not None and size > high):
            limits = f"{low} to {high}" if high is not None else f"{low} or more"
            raise UserError(f"{name}={size!r} is no size that the model takes", hint=f"{name}: {limits}")


def _require_tensor(what: str, name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise UserError(f"{what} {name!r} is {type(value).__name__}, not a torch tensor", hint="torch.as_tensor(...)")


def _kind(value: Tensor) -> str:
    return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
