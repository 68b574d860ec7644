"""Rewrites that other tools get wrong today, in our hands: every check runs the preset ``exact`` and compares."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from flowopt.errors import CaptureError
from flowopt.ir.text import operator_census
from flowopt.program.capture import capture
from flowopt.program.program import Program
from flowopt.workflows.pipelines import Pipeline
from tests.zoo.models import randomise

_NORM = "aten._native_batch_norm_legit_no_training"


class ConvCalledTwice(nn.Module):
    """One convolution, called twice; a batch norm after the first call only."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        called_again: Tensor = self.conv(self.norm(self.conv(x)).relu())
        return called_again


def conv_with_a_bias() -> None:
    """Row 1: the bias must be scaled too."""
    _check(nn.Sequential(nn.Conv2d(3, 4, 3, bias=True), nn.BatchNorm2d(4), nn.ReLU()), (2, 3, 6, 6), norms_left=0)


def norm_without_affine() -> None:
    """Row 2: a missing shift is zero, a missing gain one."""
    _check(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False)), (2, 3, 6, 6), norms_left=0)


def conv_called_twice() -> None:
    """Row 3: the norm belongs to one call, not to the module."""
    _check(ConvCalledTwice(), (2, 3, 6, 6), norms_left=0)


def train_mode() -> None:
    """Row 4: a model in train mode is refused, or captured as it behaves in eval mode when that is asked for."""
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).double()
    randomise(module, seed=4)
    module.eval()[1].train()
    x = _normal(2, 3, 6, 6)
    try:
        capture(module, (x,))
    except CaptureError as error:
        assert "train mode" in str(error), f"refused for another reason: {error}"
    else:
        raise AssertionError("a norm in train mode was captured")
    program = capture(module, (x,), eval_mode=True)
    assert module[1].training, "capture changed the module's mode"
    _compare(module.eval(), program, x, norms_left=0)


def linear_over_another_axis() -> None:
    """Row 5: the norm normalises axis 1 of (N, C, L), the layer works on axis 2, and C == L."""
    _check(nn.Sequential(nn.Linear(5, 5), nn.BatchNorm1d(5)), (2, 5, 5), norms_left=1)


def grouped_transposed_conv() -> None:
    """Row 12: the weight is stored (in, out / groups, ...)."""
    for groups in (1, 2, 4):
        layer = nn.ConvTranspose2d(8, 4, 3, stride=2, padding=1, output_padding=1, groups=groups)
        _check(nn.Sequential(layer, nn.BatchNorm2d(4)), (2, 8, 4, 4), norms_left=0)


ROWS: dict[str, Callable[[], None]] = {
    "1 conv with a bias": conv_with_a_bias,
    "2 norm without affine": norm_without_affine,
    "3 conv called twice": conv_called_twice,
    "4 train mode": train_mode,
    "5 linear over another axis": linear_over_another_axis,
    "12 grouped transposed conv": grouped_transposed_conv,
}


def _check(module: nn.Module, shape: tuple[int, ...], *, norms_left: int) -> None:
    randomise(module.double(), seed=sum(shape))
    x = _normal(*shape)
    _compare(module.eval(), capture(module, (x,)), x, norms_left=norms_left)


def _compare(module: nn.Module, program: Program, x: Tensor, *, norms_left: int) -> None:
    run = Pipeline("exact").run(program)
    reverted = [f"{r.name}: {r.reason}" for r in run.records if r.outcome == "reverted"]
    assert not reverted, f"undone: {reverted}"
    found = operator_census(run.program.graph)[_NORM]
    assert found == norms_left, f"{found} batch norms are left, not {norms_left}"
    for given in (x, -10.0 * x.abs()):
        with torch.no_grad():
            expected, got = module(given), run.program.run(given)
        assert isinstance(got, Tensor)
        error = float((got - expected).abs().max() / expected.abs().max())
        # Folding adds a few roundings of float64; the errors in question are above 1e-2.
        assert error <= 1e-13, f"differs by {error:.1e} of the largest value"


def _normal(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
