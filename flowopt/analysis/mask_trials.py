"""What a mask of attention is for inputs with and without padding, at several sizes."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, fx

from flowopt.analysis.captured import Captured, HasSize
from flowopt.analysis.input_roles import Kind, Role, input_role
from flowopt.analysis.mask_source import MaskSource, depends_on, is_shape_only, value_ancestors, whole_numbers
from flowopt.ir.constants import node_values
from flowopt.ir.evaluate import RUN_ERRORS, called
from flowopt.ir.metadata import recorded_tensor

_aten = torch.ops.aten
# A matrix of this many positions squared is still evaluated in a second.
_LONGEST = 8192
_PATTERNS = ("right", "left", "holes")
_MOST_FLIPPED = 3


@dataclass(frozen=True, slots=True)
class Trial:
    """A mask's value.

    Attributes:
        value: as the program computes it.
        sizes: of the free dimensions.
        is_padded: some of the input was padding.
    """

    value: Tensor
    sizes: Mapping[str, int]
    is_padded: bool


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
    roles = {n: input_role(n, program.example.get(n.name)) for n in source.inputs}
    given = {n: program.example[n.name] for n in source.inputs if n.name in program.example}
    if given and len(given) == len(source.inputs):
        yield from _computed(program, source, captured, given, is_padded=True)
    wanted = [captured, _others(program.dims)] if program.dims else [captured]
    for number, sizes in enumerate(wanted):
        patterns = ("none", *_PATTERNS) if source.inputs else ("none",)
        for pattern in patterns:
            feed = _Feed(program, source, roles, flipped, seed=number)
            inputs = feed.inputs(sizes, pattern)
            yield from _computed(program, source, sizes, inputs, is_padded=pattern != "none")
    for sizes in _long(program.dims, source):
        feed = _Feed(program, source, roles, flipped, seed=len(wanted))
        yield from _computed(program, source, sizes, feed.inputs(sizes, "none"), is_padded=False)


def longest_window(program: Captured, source: MaskSource) -> int | None:
    """A number beside positions that no trial reaches though the model takes as many; None without one."""
    reached = [c for c in source.constants if c > _LONGEST]
    free = [d for d in _lengths(program.dims, source) if d.maximum is None or d.maximum > _LONGEST]
    return reached[0] if reached and free else None


def _others(dims: Sequence[HasSize]) -> dict[str, int]:
    """Sizes that differ from each other and from the captured ones, where the ranges allow it."""
    return {d.name: _within(d, 5 + 2 * i if d.traced != 5 + 2 * i else 6 + 2 * i) for i, d in enumerate(dims)}


def _long(dims: Sequence[HasSize], source: MaskSource) -> Iterator[dict[str, int]]:
    """Sizes at which a window of each number would show."""
    lengths = _lengths(dims, source)
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
) -> Iterator[Trial]:
    given: dict[fx.Node, Any] = dict(inputs)
    try:
        for node in value_ancestors(source.mask):
            if is_shape_only(node):
                given[node] = _size_or_filled(program, node, sizes)
        value = node_values((source.mask,), program.read, given, raised=False)[source.mask]
    except RUN_ERRORS:
        return
    yield Trial(value, sizes, is_padded)


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
        self._random = torch.Generator().manual_seed(seed)

    def inputs(self, sizes: Mapping[str, int], pattern: str) -> dict[fx.Node, Tensor]:
        return {node: self._input(node, sizes, pattern) for node in self._source.inputs}

    def _input(self, node: fx.Node, sizes: Mapping[str, int], pattern: str) -> Tensor:
        value = recorded_tensor(node)
        assert value is not None  # inputs are tensors
        shape = tuple(self._program.concrete_size(size, sizes) for size in value.shape)
        real, hidden = self._values(node, shape)
        made = torch.where(self._shown(shape, pattern), real, hidden)
        return made.to(dtype=value.dtype, device=value.device)

    def _values(self, node: fx.Node, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """What stands where something is, and what stands for padding."""
        role = self._roles[node]
        if role.kind is Kind.MASK:
            shown = 0.0 if node in self._flipped else 1.0
            return torch.tensor(shown), torch.tensor(1.0 - shown)
        if role.kind is Kind.ADDITIVE_MASK:
            return torch.tensor(0.0), self._program.example[node.name].min().float()
        ids = self._compared()
        real = torch.randint(role.low, max(role.high, role.low + 1), shape, generator=self._random)
        for _ in range(len(ids) + 1):
            # Padding by chance would be padding that no pattern tells of.
            real = torch.where(
                torch.isin(real, ids), (real - role.low + 1) % max(role.high - role.low, 1) + role.low, real
            )
        chosen = torch.randint(0, len(ids), shape, generator=self._random) if len(ids) else None
        return real.double(), (real if chosen is None else ids[chosen]).double()

    def _compared(self) -> Tensor:
        """Numbers that ids are compared with, such as that of padding."""
        found: set[int] = set()
        for node in value_ancestors(self._source.mask):
            if depends_on(node, self._source.inputs):
                found |= whole_numbers(node)
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
