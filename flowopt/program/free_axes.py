"""Free axes of example inputs: ``dynamic=`` and ``dims=`` of a capture, checked against the inputs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from flowopt.errors import CaptureError
from flowopt.program.names import child_keys

DimRange = tuple[int, int | None]


@dataclass(frozen=True, slots=True)
class FreeAxes:
    """What the user said about sizes, in the forms that a capture needs.

    Attributes:
        shapes: ``dynamic_shapes`` for ``torch.export``, with one ``Dim`` per dimension name.
        names: per flat input (``ids``, ``images_0``: export's spelling of nesting) the name of each free axis.
        arguments: the example inputs as tensor objects of their own, repeated along free axes of size 1: torch.export
            would fix such an axis.
    """

    shapes: dict[str, Any]
    names: dict[str, dict[int, str]]
    arguments: dict[str, Any]


def free_axes(arguments: Mapping[str, Any], dynamic: Mapping[str, Any], dims: Mapping[str, DimRange]) -> FreeAxes:
    """Match ``dynamic`` with the example inputs; arguments as for ``flowopt.capture``.

    Raises:
        CaptureError: an input, axis or dimension that does not exist, or an impossible range.
    """
    unknown = sorted(dynamic.keys() - arguments.keys())
    if unknown:
        raise CaptureError(f"dynamic= names {unknown}, but the inputs are {sorted(arguments)}")
    walk = _Walk(dims)
    walked = {name: walk.value((name,), dynamic.get(name), value) for name, value in arguments.items()}
    unused = sorted(dims.keys() - walk.made.keys())
    if unused:
        raise CaptureError(f"dims= names {unused}, but dynamic= uses {sorted(walk.made)}")
    shapes = {name: shape for name, (shape, _) in walked.items()}
    return FreeAxes(shapes, walk.names, {name: value for name, (_, value) in walked.items()})


@dataclass(slots=True)
class _Walk:
    """One pass over specification and inputs side by side."""

    dims: Mapping[str, DimRange]
    made: dict[str, Any] = field(default_factory=dict)
    names: dict[str, dict[int, str]] = field(default_factory=dict)

    def value(self, path: tuple[str, ...], spec: Any, value: Any) -> tuple[Any, Any]:
        """The shape specification of one value, and the value with its free unit axes repeated."""
        if isinstance(value, Tensor):
            return self._tensor(path, spec, value)
        # One level of whatever torch flattens: lists, dictionaries, named tuples, dataclasses.
        children, structure = pytree.tree_flatten(value, is_leaf=lambda part: part is not value)
        if structure.is_leaf():
            if spec is not None:
                raise CaptureError(f"dynamic= gives axes to {'.'.join(path)!r}, which is {type(value).__name__}")
            return None, value
        keys = child_keys(structure)
        parts = _parts(path, spec, keys)
        walked = [self.value((*path, k), p, c) for k, p, c in zip(keys, parts, children, strict=True)]
        shapes = [shape for shape, _ in walked]
        # torch.export wants the same container where it is Python's own, and a list for every other.
        keeps_type = type(value) in (dict, list, tuple) or hasattr(value, "_fields")
        shape = pytree.tree_unflatten(shapes, structure) if keeps_type else shapes
        return shape, pytree.tree_unflatten([part for _, part in walked], structure)

    def _tensor(self, path: tuple[str, ...], spec: Any, value: Tensor) -> tuple[Any, Tensor]:
        # torch.export takes one tensor object given twice, or given as an input and stored as a weight, for one value.
        value = value.detach()
        if spec is None:
            return None, value
        axes = self._axes(".".join(path), spec, value.dim())
        self.names["_".join(path)] = axes
        for axis in axes:
            if value.shape[axis] == 1:
                value = torch.cat([value, value], dim=axis)
        return {axis: self._dimension(name) for axis, name in axes.items()}, value

    def _axes(self, where: str, spec: Any, rank: int) -> dict[int, str]:
        """Axis, counted from 0, to dimension name."""
        if isinstance(spec, (list, tuple)):
            spec = dict(enumerate(spec))
        if not isinstance(spec, Mapping):
            raise CaptureError(f"dynamic= for {where!r} is {spec!r}, not a mapping from axis to dimension name")
        found: dict[int, str] = {}
        for axis, name in spec.items():
            if not isinstance(axis, int) or not -rank <= axis < rank:
                raise CaptureError(f"dynamic= names axis {axis!r} of {where!r}, which has {rank} axes")
            if name is None:
                continue
            if not isinstance(name, str) or not name.isidentifier():
                raise CaptureError(f"dynamic= calls axis {axis} of {where!r} {name!r}: a dimension needs a plain name")
            found[axis % rank] = name
        return found

    def _dimension(self, name: str) -> Any:
        if name not in self.made:
            low, high = self.dims.get(name, (1, None))
            if low < 0 or (high is not None and high < max(low, 2)):
                raise CaptureError(
                    f"dims= gives {name!r} the range {low} to {high}",
                    hint="a free dimension takes at least two sizes; leave a fixed one out of dynamic=",
                )
            self.made[name] = torch.export.Dim(name, min=low, max=high)
        return self.made[name]


def _parts(path: tuple[str, ...], spec: Any, keys: Sequence[str]) -> list[Any]:
    """The part of a specification for each child: by key, by position, or nothing."""
    if spec is None:
        return [None] * len(keys)
    if isinstance(spec, Mapping):
        named = {str(key): part for key, part in spec.items()}
        unknown = sorted(named.keys() - set(keys))
        if unknown:
            raise CaptureError(f"dynamic= names {unknown} in {'.'.join(path)!r}, which holds {list(keys)}")
        return [named.get(key) for key in keys]
    if isinstance(spec, (list, tuple)) and len(spec) == len(keys):
        return list(spec)
    raise CaptureError(f"dynamic= for {'.'.join(path)!r} is {spec!r}, but it holds {list(keys)}")
