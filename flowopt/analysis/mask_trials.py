"""What a mask of attention is for inputs with and without padding, at several sizes."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from flowopt.analysis.captured import Captured, HasSize
from flowopt.analysis.input_roles import Kind, Role, input_role
from flowopt.ir.constants import node_values
from flowopt.ir.evaluate import RUN_ERRORS, called
from flowopt.ir.metadata import recorded_tensor

_aten = torch.ops.aten
# Of their first argument only the sizes matter.
_SHAPE_ONLY = {
    _aten.zeros_like.default,
    _aten.ones_like.default,
    _aten.full_like.default,
    _aten.empty_like.default,
    _aten.new_zeros.default,
    _aten.new_ones.default,
    _aten.new_full.default,
    _aten.new_empty.default,
}
# A mask is computed in a few dozen operators; what takes more is computed by the model.
_MOST_NODES = 400
# A matrix of this many positions squared is still evaluated in a second.
_LONGEST = 8192
# The ends of slices and the lowest numbers of dtypes are no ids.
_BEYOND_ANY_ID = 2**31
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


@dataclass(frozen=True, slots=True)
class MaskSource:
    """What a mask is computed from.

    Attributes:
        mask: the node.
        inputs: placeholders on whose values it depends; those whose sizes alone matter are not among them.
        features: those of them whose values are no masks, ids or other integers.
        tables: stored tensors of floating numbers that it reads.
        constants: numbers beside integer positions, which a window may be as wide as.
        is_computed: by more operators than a mask takes.
    """

    mask: fx.Node
    inputs: tuple[fx.Node, ...]
    features: tuple[str, ...]
    tables: tuple[str, ...]
    constants: tuple[int, ...]
    is_computed: bool


def mask_source(program: Captured, mask: fx.Node) -> MaskSource:
    """What a mask, or anything that is added to scores, is computed from."""
    needed = sorted(_needed(mask))
    placeholders = [n for n in needed if n.op == "placeholder"]
    roles = {n: input_role(n, program.example.get(n.name)) for n in placeholders}
    is_computed = len(needed) > _MOST_NODES
    stored = [(n, recorded_tensor(n)) for n in needed if n.op == "get_attr"]
    return MaskSource(
        mask=mask,
        inputs=tuple(placeholders),
        features=tuple(n.name for n in placeholders if roles[n].kind is Kind.FEATURES),
        tables=tuple(str(n.target) for n, t in stored if t is not None and t.is_floating_point() and t.dim() > 0),
        constants=() if is_computed else _constants(n for n in needed if not _depends(n, placeholders)),
        is_computed=is_computed,
    )


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


def _needed(mask: fx.Node) -> set[fx.Node]:
    """What the mask's value is computed from; values of which sizes alone matter are not among it."""
    needed: set[fx.Node] = set()
    pending = [mask]
    while pending:
        node = pending.pop()
        if node in needed:
            continue
        needed.add(node)
        if not _is_given(node):
            pending.extend(node.all_input_nodes)
    return needed


def _is_given(node: fx.Node) -> bool:
    """A size, or a tensor of one number that takes sizes alone from another."""
    return isinstance(node.meta.get("val"), (int, torch.SymInt)) or node.target in _SHAPE_ONLY


def _depends(node: fx.Node, placeholders: Sequence[fx.Node]) -> bool:
    return not _needed(node).isdisjoint(placeholders)


def _constants(nodes: Iterable[fx.Node]) -> tuple[int, ...]:
    """Whole numbers from 2 on in arithmetic and comparisons."""
    found: set[int] = set()
    for node in nodes:
        is_pointwise = isinstance(node.target, torch._ops.OpOverload) and torch.Tag.pointwise in node.target.tags
        value = recorded_tensor(node)
        if is_pointwise and value is not None and not value.is_floating_point():
            found |= {abs(number) for number in _whole_numbers(node)}
    return tuple(sorted(c for c in found if c >= 2))


def _whole_numbers(node: fx.Node) -> set[int]:
    """Those among the operator's arguments."""
    numbers = [a for a in node.args if isinstance(a, (int, float)) and not isinstance(a, bool)]
    return {int(a) for a in numbers if abs(a) < _BEYOND_ANY_ID and a == int(a)}


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
        for node in _needed(source.mask):
            if _is_given(node):
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

    return called(node, stand_in, raised=False) if node.target in _SHAPE_ONLY else stand_in(node)


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
        for node in _needed(self._source.mask):
            if _depends(node, self._source.inputs):
                found |= _whole_numbers(node)
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
        return places >= cut.clamp(max=length - 1) if pattern == "left" else torch.ones(length, dtype=torch.bool)
