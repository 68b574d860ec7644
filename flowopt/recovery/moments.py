"""Sums over vectors from which linear layers are fitted, and judged, without looking at the vectors again."""

from typing import Self, final

import torch
from torch import Tensor


@final
class Moments:
    """First and second moments of inputs x and wanted outputs y, in float64.

    Attributes:
        count: vectors.
        x, y: (inputs,), (outputs,): sums.
        xx: (inputs, inputs): sum of x x^T.
        yx: (outputs, inputs): sum of y x^T.
        yy: (outputs,): sums of squares.
    """

    def __init__(self, inputs: int, outputs: int, device: torch.device | str = "cpu") -> None:
        def zeros(*sizes: int) -> Tensor:
            return torch.zeros(sizes, dtype=torch.float64, device=device)

        self.count = 0
        self.x, self.y, self.yy = zeros(inputs), zeros(outputs), zeros(outputs)
        self.xx, self.yx = zeros(inputs, inputs), zeros(outputs, inputs)

    def add(self, x: Tensor, y: Tensor) -> Self:
        """Count vectors: x (vectors, inputs) and y (vectors, outputs), of any floating dtype."""
        x, y = x.double(), y.double()
        self.count += len(x)
        self.x += x.sum(0)
        self.y += y.sum(0)
        self.xx += x.T @ x
        self.yx += y.T @ x
        self.yy += y.square().sum(0)
        return self

    def squared_errors(self, weight: Tensor, bias: Tensor | None) -> Tensor:
        """(outputs,): sum over the vectors of ``(W x + b - y)^2``, for W (outputs, inputs) and b (outputs,)."""
        weight = weight.double()
        errors = ((weight @ self.xx - 2 * self.yx) * weight).sum(1) + self.yy
        if bias is not None:
            bias = bias.double()
            errors = errors + bias * (2 * (weight @ self.x - self.y) + self.count * bias)
        # Where nothing is left, rounding leaves it on either side of zero.
        return errors.clamp(min=0)

    def energies(self) -> Tensor:
        """(outputs,): sum over the vectors of ``(y - mean y)^2``."""
        return (self.yy - self.y.square() / max(self.count, 1)).clamp(min=0)


def ridge_solution(moments: Moments, weight: Tensor, bias: Tensor | None, ridge: float) -> tuple[Tensor, Tensor | None]:
    """The layer nearest to the wanted outputs among those near to the one there is.

        argmin over W', b' of   sum |W' x + b' - y|^2 + lambda |W' - W|^2,   lambda = ridge * mean diagonal of sum x x^T

    With an intercept, x and y count from their means, which makes b' free of the penalty.

    Args:
        moments: of at least one vector.
        weight: W, (outputs, inputs).
        bias: b, (outputs,); None for a layer without an intercept, which stays without.
        ridge: above 0, which makes the solution unique.

    Returns:
        W' and b' in float64.

    Source: Hoerl & Kennard, "Ridge Regression: Biased Estimation for Nonorthogonal Problems", section 4, with W in the
    place of zero.
    """
    weight = weight.double()
    xx, yx = moments.xx, moments.yx
    if bias is not None:
        xx = xx - torch.outer(moments.x, moments.x) / moments.count
        yx = yx - torch.outer(moments.y, moments.x) / moments.count
    penalty = ridge * float(xx.diagonal().mean())
    if penalty > 0:
        penalised = xx + penalty * torch.eye(len(xx), dtype=xx.dtype, device=xx.device)
        weight = weight + torch.linalg.solve(penalised, (yx - weight @ xx).T).T
    # Otherwise x never moves: no weight is better than another.
    return weight, None if bias is None else (moments.y - weight @ moments.x) / moments.count
