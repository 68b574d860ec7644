"""What a mask of attention is for inputs with and without padding, at several sizes."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, fx

from flowopt.analysis.captured import Captured, HasSize
from flowopt.analysis.input_roles import Kind, Role, input_role
from flowopt.analysis.mask_source import (
    MaskSource,
    compared_numbers,
    compares_itself,
    is_shape_only,
    value_ancestors,
)
from flowopt.ir.constants import node_values
from flowopt.ir.evaluate import RUN_ERRORS, called
from flowopt.ir.metadata import recorded_tensor

_aten = torch.ops.aten
# A matrix of this many positions squared is still evaluated in a second.
_LONGEST = 8192
_PATTERNS = ("right", "left", "holes")
_MOST_FLIPPED = 3
# Without a maximum, and without a stored tensor to go by.
_LONG = 4096
_UNPADDED_TRIALS = 3
# Integers take at least as many values, where the example has fewer.
_FEWEST_VALUES = 4


@dataclass(frozen=True, slots=True)
class Trial:
    """A mask's value.

    Attributes:
        value: as the program computes it.
        sizes: of the free dimensions.
        is_padded: some of the input was padding.
        shown: of every input whose last axis is that of tokens, which of its places were no padding. Of the example's
            inputs it is unknown, and there is none.
        is_example: the inputs are the example's.
    """

    value: Tensor
    sizes: Mapping[str, int]
    is_padded: bool
    shown: tuple[Tensor, ...] = ()
    is_example: bool = False


def polarities(program: Captured, source: MaskSource) -> tuple[frozenset[fx.Node], ...]:
    """Sets of mask inputs in which ones, not zeros, may stand for padding; none of them comes first."""
    masks = [n for n in source.inputs if input_role(n, program.example.get(n.name)).kind is Kind.MASK][:_MOST_FLIPPED]
    choices = itertools.product((False, True), repeat=len(masks))
    return tuple(frozenset(itertools.compress(masks, flips)) for flips in choices)


def mask_trials(program: Captured, source: MaskSource, flipped: frozenset[fx.Node]) -> Iterator[Trial]:
    """The mask for the example's inputs, for inputs without padding and for padded ones, at several sizes.

    An input of another kind than masks and ids must not be among those it depends on. Sizes at which the mask cannot be
    computed give no trial; so do those beyond the ranges of the free dimensions.

    Args:
        program: whose mask it is.
        source: of the mask.
        flipped: inputs in which ones stand for padding.
    """
    captured = {d.name: d.traced for d in program.dims}
    roles = {n: _role(program, source, n) for n in source.inputs}
    given = {n: program.example[n.name] for n in source.inputs if n.name in program.example}
    if given and len(given) == len(source.inputs):
        yield from _computed(program, source, captured, given, is_padded=True, is_example=True)
    wanted = [captured, _others(program.dims)] if program.dims else [captured]
    for number, sizes in enumerate(wanted):
        patterns = ("none",) * _UNPADDED_TRIALS + _PATTERNS if source.inputs else ("none",)
        for again, pattern in enumerate(patterns):
            feed = _Feed(program, source, roles, flipped, seed=number + len(wanted) * again)
            inputs = feed.inputs(sizes, pattern)
            yield from _computed(program, source, sizes, inputs, is_padded=pattern != "none", shown=feed.shown())
    for sizes in _long(program.dims, source):
        feed = _Feed(program, source, roles, flipped, seed=len(wanted))
        inputs = feed.inputs(sizes, "none")
        yield from _computed(program, source, sizes, inputs, is_padded=False, shown=feed.shown())


def longest_window(program: Captured, source: MaskSource) -> int | None:
    """A number beside positions that no trial reaches though the model takes as many; None without one."""
    wide = [size for size in source.lengths if size > _LONGEST]
    reached = [c for c in (*source.constants, *wide) if c > _LONGEST]
    free = [d for d in _lengths(program.dims, source) if d.maximum is None or d.maximum > _LONGEST]
    return reached[0] if reached and free else None


def _others(dims: Sequence[HasSize]) -> dict[str, int]:
    """Sizes that differ from each other and from the captured ones, where the ranges allow it."""
    return {d.name: _within(d, 5 + 2 * i if d.traced != 5 + 2 * i else 6 + 2 * i) for i, d in enumerate(dims)}


def _long(dims: Sequence[HasSize], source: MaskSource) -> Iterator[dict[str, int]]:
    """Sizes at which a window of each number would show, and the longest of all: a stored window tells no number."""
    lengths = _lengths(dims, source)
    if lengths:
        most = min(_LONG if d.maximum is None else d.maximum for d in lengths)
        bound = min(most, _LONGEST) if any(d.maximum is not None for d in lengths) else _LONGEST
        stored = [size for size in source.lengths if size <= bound]
        for longest in sorted({min(most, _LONGEST), *stored}, reverse=True):
            yield {d.name: _within(d, 1) for d in dims} | {d.name: _within(d, longest) for d in lengths}
    tried = {5, *(d.traced for d in lengths)}
    for constant in source.constants:
        if lengths and constant <= _LONGEST and constant + 2 > min(tried):
            sizes = {d.name: _within(d, 2) for d in dims} | {d.name: _within(d, constant + 2) for d in lengths}
            yield sizes


def _lengths(dims: Sequence[HasSize], source: MaskSource) -> list[HasSize]:
    """The free dimensions of the mask's last two axes."""
    value = recorded_tensor(source.mask)
    shape: tuple[Any, ...] = () if value is None else tuple(value.shape[-2:])
    symbols = {str(s) for size in shape if isinstance(size, torch.SymInt) for s in size.node.expr.free_symbols}
    return [d for d in dims if d.symbol in symbols]


def _within(dim: HasSize, size: int) -> int:
    return max(dim.minimum, size if dim.maximum is None else min(size, dim.maximum))


def _computed(
    program: Captured,
    source: MaskSource,
    sizes: Mapping[str, int],
    inputs: Mapping[fx.Node, Tensor],
    *,
    is_padded: bool,
    shown: tuple[Tensor, ...] = (),
    is_example: bool = False,
) -> Iterator[Trial]:
    given: dict[fx.Node, Any] = dict(inputs)
    try:
        for node in value_ancestors(source.mask):
            if is_shape_only(node):
                given[node] = _size_or_filled(program, node, sizes)
        value = node_values((source.mask,), program.read, given, raised=False)[source.mask]
    except RUN_ERRORS:
        return
    yield Trial(value, sizes, is_padded, shown, is_example)


def _role(program: Captured, source: MaskSource, node: fx.Node) -> Role:
    """An input's role in the mask: numbers that are compared with each other are no zeros and ones alone."""
    role = input_role(node, program.example.get(node.name))
    value = recorded_tensor(node)
    is_whole = value is not None and not value.is_floating_point() and value.dtype is not torch.bool
    if role.kind is Kind.MASK and is_whole and any(compares_itself(n, node) for n in value_ancestors(source.mask)):
        return Role(Kind.INTEGERS, 0, _FEWEST_VALUES)
    return role


def _size_or_filled(program: Captured, node: fx.Node, sizes: Mapping[str, int]) -> Any:
    def stand_in(source: fx.Node) -> Any:
        value = source.meta["val"]
        if isinstance(value, Tensor):
            shape = [program.concrete_size(size, sizes) for size in value.shape]
            return torch.zeros(shape, dtype=value.dtype, device=value.device)
        return program.concrete_size(value, sizes) if isinstance(value, (int, torch.SymInt)) else value

    return called(node, stand_in, raised=False) if recorded_tensor(node) is not None else stand_in(node)


@final
class _Feed:
    """Inputs of the kinds that masks are computed from."""

    def __init__(
        self,
        program: Captured,
        source: MaskSource,
        roles: Mapping[fx.Node, Role],
        flipped: frozenset[fx.Node],
        *,
        seed: int,
    ) -> None:
        self._program, self._source, self._roles, self._flipped = program, source, roles, flipped
        self._patterns: dict[tuple[int, ...], Tensor] = {}
        self._told: dict[fx.Node, Tensor] = {}
        self._random = torch.Generator().manual_seed(seed)

    def inputs(self, sizes: Mapping[str, int], pattern: str) -> dict[fx.Node, Tensor]:
        return {node: self._input(node, sizes, pattern) for node in self._source.inputs}

    def shown(self) -> tuple[Tensor, ...]:
        """Of the inputs with an axis of tokens, which of their places are no padding."""
        return tuple(self._told.values())

    def _input(self, node: fx.Node, sizes: Mapping[str, int], pattern: str) -> Tensor:
        value = recorded_tensor(node)
        assert value is not None  # inputs are tensors
        shape = tuple(self._program.concrete_size(size, sizes) for size in value.shape)
        real, hidden = self._values(node, shape)
        if shape not in self._patterns:
            self._patterns[shape] = self._shown(shape, pattern)
        shown = self._patterns[shape]
        made = torch.where(shown, real, hidden)
        if len(shape) > 1:
            # Integers that nothing is compared with have no value for padding.
            self._told[node] = torch.ones_like(shown) if real is hidden else shown
        return made.to(dtype=value.dtype, device=value.device)

    def _values(self, node: fx.Node, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """What stands where something is, and what stands for padding."""
        role = self._roles[node]
        if role.kind is Kind.MASK:
            shown = 0.0 if node in self._flipped else 1.0
            return torch.tensor(shown), torch.tensor(1.0 - shown)
        if role.kind is Kind.ADDITIVE_MASK:
            return torch.tensor(0.0), self._program.example[node.name].min().float()
        ids = self._compared(node)
        fewest = role.low + len(ids) + _FEWEST_VALUES
        high = role.high if role.kind is Kind.INDICES or role.is_index else max(role.high, fewest)
        real = torch.randint(role.low, max(high, role.low + 1), shape, generator=self._random)
        for _ in range(len(ids) + 1):
            # Padding by chance would be padding that no pattern tells of.
            real = torch.where(torch.isin(real, ids), (real - role.low + 1) % max(high - role.low, 1) + role.low, real)
        real = real.double()
        if not len(ids):
            return real, real
        return real, ids[torch.randint(0, len(ids), shape, generator=self._random)].double()

    def _compared(self, node: fx.Node) -> Tensor:
        """Numbers that ids are compared with, such as that of padding."""
        found: set[int] = set()
        for needed in value_ancestors(self._source.mask):
            found |= compared_numbers(self._program, needed, node)
        return torch.tensor(sorted(found), dtype=torch.long)

    def _shown(self, shape: tuple[int, ...], pattern: str) -> Tensor:
        length = shape[-1] if shape else 1
        places = torch.arange(length)
        cut = torch.randint(1, max(length, 2), (*shape[:-1], 1), generator=self._random)
        if pattern == "holes":
            # One place is left in any case: a sample without any token is no sample.
            return (torch.rand(shape, generator=self._random) < 0.7) | (places == cut - 1)
        if pattern == "right":
            return places < cut
        return places >= cut.clamp(max=length - 1) if pattern == "left" else torch.ones(shape, dtype=torch.bool)
