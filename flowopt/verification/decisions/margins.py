"""Margins: how close decisions come to their boundaries in one case, and how far rounding may move what decides."""

from collections.abc import Callable, Sequence
from typing import Any, final

import torch
from torch import Tensor, fx

from flowopt.ir.evaluate import Value
from flowopt.ir.float64 import raised_tensor
from flowopt.program.program import Program
from flowopt.verification.decisions.decisions import Decision, flipped
from flowopt.verification.decisions.exact_inputs import exact_input
from flowopt.verification.decisions.flips import ROUNDINGS, Seen
from flowopt.verification.limits import MODEL_LIMITS

Turn = Callable[[Value], Value]


class Watch:
    """Keeps what decisions read and give in one run."""

    def __init__(self, watched: Sequence[Decision]) -> None:
        self._names = {node.name for one in watched for node in (*one.deciding, one.node)}
        self.values: dict[str, Value] = {}

    def observe(self, node: fx.Node, value: Value) -> None:
        """To be called with every computed node."""
        if node.name in self._names:
            self.values[node.name] = value


@final
class Margins:
    """What the decisions of a program read in one case.

    Attributes:
        original: watches the original.
        oracle: watches the float64 oracle.
    """

    def __init__(self, program: Program, watched: Sequence[Decision]) -> None:
        self._program, self._decisions = program, watched
        self._nodes = {node.name: node for one in watched for node in one.deciding}
        self.original, self.oracle = Watch(watched), Watch(watched)
        self._errors: dict[str, Tensor] = {}
        self._moving: set[str] = set()

    def widen(self, run: Watch) -> None:
        """Take in one more run: how far each deciding value is from the oracle's.

        Args:
            run: of the original or of a copy; the oracle has run before.
        """
        for name in self._nodes:
            oracle, value = self.oracle.values.get(name), run.values.get(name)
            if not isinstance(oracle, Tensor) or not isinstance(value, Tensor):
                continue
            if oracle.shape != value.shape or oracle.is_complex():
                self._errors.pop(name, None)
                continue
            error = (value.to(torch.float64) - oracle.to(torch.float64)).abs()
            error = torch.where(torch.isfinite(error), error, 0.0)
            known = self._errors.get(name) if run is not self.original else error
            if known is not None:
                self._errors[name] = torch.maximum(known, error)
            if name not in self._moving and _differs(self.original.values.get(name), value):
                self._moving.add(name)

    def turns(self) -> dict[str, Turn]:
        """For every node with undecided elements, what gives these the other way and leaves the rest."""
        known = {name: self._seen(node) for name, node in self._nodes.items()}
        seen = {name: value for name, value in known.items() if value is not None}
        found: dict[str, Turn] = {}
        for one in self._decisions:
            result = self.oracle.values.get(one.node.name)
            if result is None or any(node.name not in seen for node in one.deciding):
                continue
            other, count = flipped(one, seen, result)
            if count:
                found[one.node.name] = _turn(result, other)
        return found

    def _seen(self, node: fx.Node) -> Seen | None:
        """None for what is no tensor, and for shapes that depend on data.

        A value that the ensemble moves, but not here, is exact here and decides: a mask, the zeros of a ReLU. One
        that no copy moves (out of positions, say) is known from a single run, which may have been lucky.
        """
        if node.op == "get_attr":
            stored = raised_tensor(self._program.tensors[str(node.target)]).to(torch.float64)
            return Seen(stored, torch.zeros_like(stored))
        oracle, error = self.oracle.values.get(node.name), self._errors.get(node.name)
        if isinstance(oracle, int | float):
            number = torch.tensor(float(oracle), dtype=torch.float64)
            return Seen(number, torch.zeros_like(number))
        if not isinstance(oracle, Tensor) or error is None:
            return None
        if exact_input(node) is not None:
            return Seen(oracle.to(torch.float64), torch.zeros_like(oracle, dtype=torch.float64))
        row = error.amax(-1, keepdim=True) if error.dim() and error.numel() else error
        oracle = oracle.to(torch.float64)
        is_exact = (error == 0) if node.name in self._moving else (row == 0) | (oracle == 0)
        size = torch.where(torch.isfinite(oracle), oracle.abs(), 0.0)
        tolerance = MODEL_LIMITS.largest * row + ROUNDINGS * self._roundoff(node) * size
        return Seen(oracle, torch.where(is_exact | ~torch.isfinite(oracle), 0.0, tolerance))

    def _roundoff(self, node: fx.Node) -> float:
        value = self.original.values.get(node.name)
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return 0.0
        return torch.finfo(value.dtype).eps / 2


def _differs(left: Any, right: Tensor) -> bool:
    return isinstance(left, Tensor) and bool(((left != right) & (right == right)).any())


def _turn(result: Value, other: Value) -> Turn:
    """Replaces the elements in which ``other`` differs from ``result``.

    What changes them may have moved the rest of the node's value too, where an earlier decision was turned.
    """

    def turn(value: Value) -> Value:
        if isinstance(result, tuple):
            return tuple(_merged(v, r, o) for v, r, o in zip(value, result, other, strict=True))
        return _merged(value, result, other)

    return turn


def _merged(value: Tensor, result: Tensor, other: Tensor) -> Tensor:
    if value.shape != result.shape:
        return other
    return torch.where((other != result) & (other == other), other, value)
