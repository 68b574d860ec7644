"""Tensors that only one of two programs stores: what a rewrite folded away, and what it made of it."""

from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from flowopt.program.program import Program
from flowopt.verification.ensemble import moved_by_one_ulp

# A tensor of few elements may not move at all in one draw: it is drawn again.
_FEW = 16
_DRAWS = 8


@dataclass(frozen=True, slots=True)
class OtherTensors:
    """Names of the tensors that the graph of one program reads and the other does not store, by content."""

    of_original: frozenset[str]
    of_candidate: frozenset[str]


def other_tensors(original: Program, candidate: Program) -> OtherTensors:
    """What each of two programs stores that the other does not; names do not count where the content is the same."""
    return OtherTensors(_missing(original, candidate), _missing(candidate, original))


def moving_reader(program: Program, moving: Collection[str], copy: int, seed: int) -> Callable[[str], Tensor]:
    """Reads a program's tensors, some of them moved by one ulp."""
    return lambda name: _moved(name, program.tensors[name], copy, seed) if name in moving else program.tensors[name]


def _moved(name: str, tensor: Tensor, copy: int, seed: int) -> Tensor:
    moved = moved_by_one_ulp(name, tensor, copy, seed)
    for draw in range(_DRAWS if tensor.numel() <= _FEW else 0):
        if not torch.equal(moved, tensor):
            break
        moved = moved_by_one_ulp(f"{name}/{draw}", tensor, copy, seed)
    return moved


def _missing(program: Program, other: Program) -> frozenset[str]:
    by_kind: dict[tuple[torch.dtype, torch.Size], list[Tensor]] = {}
    for tensor in other.tensors.values():
        by_kind.setdefault((tensor.dtype, tensor.shape), []).append(tensor)
    missing: set[str] = set()
    for name in {str(node.target) for node in program.graph.nodes if node.op == "get_attr"}:
        tensor = program.tensors[name]
        namesake = other.tensors.get(name)
        if namesake is not None and _is_same(namesake, tensor):
            continue
        if not any(_is_same(one, tensor) for one in by_kind.get((tensor.dtype, tensor.shape), ())):
            missing.add(name)
    return frozenset(missing)


def _is_same(left: Tensor, right: Tensor) -> bool:
    return left is right or (left.dtype == right.dtype and torch.equal(left, right))
