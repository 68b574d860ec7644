"""Ten wrong passes that verification must catch, and ten right ones that it must not accuse.

The wrong ones are mistakes that people make: a lost bias, a misplaced epsilon, a constant of the traced size. Each
comes with a small model that also holds a batch norm, so that a right pass can run beside it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import nn

from flowopt.program.program import Program
from flowopt.rewrite import RewritePass
from tests.goals import planted_models as models
from tests.goals import planted_right as right
from tests.goals import planted_wrong as wrong


@dataclass(frozen=True, slots=True)
class Plant:
    """A pass and a model on which it fires."""

    rewrite_pass: RewritePass
    program: Program


def _plant(rewrite_pass: type[RewritePass], model: Callable[[], nn.Module]) -> Callable[[], Plant]:
    return partial(_planted, rewrite_pass, model)


def _planted(rewrite_pass: type[RewritePass], model: Callable[[], nn.Module]) -> Plant:
    return Plant(rewrite_pass(), models.program(model))


WRONG: dict[str, Callable[[], Plant]] = {
    "dropped-bias": _plant(wrong.DropBias, models.Attending),
    "relu-to-identity": _plant(wrong.DropRelu, models.Rectifying),
    "wrong-at-batch-one": _plant(wrong.ShiftBatchOne, models.Rectifying),
    "wrong-at-odd-sizes": _plant(wrong.MeanOfHalves, models.Averaging),
    "wrong-for-negatives": _plant(wrong.RootOfSquare, models.Rooting),
    "epsilon-outside-the-root": _plant(wrong.EpsilonOutside, models.Normalizing),
    "gelu-for-tanh-gelu": _plant(wrong.PlainGelu, models.TanhGelu),
    "scale-off-by-1e-6": _plant(wrong.ScaleSlightly, models.Attending),
    "swallowed-nan": _plant(wrong.SwallowNan, models.Rectifying),
    "constant-of-the-traced-size": _plant(wrong.TracedMean, models.Averaging),
}

RIGHT: dict[str, Callable[[], Plant]] = {
    "reassociated-sum": _plant(right.ReassociateSum, models.Summing),
    "split-linear": _plant(right.SplitLinear, models.Attending),
    "division-to-product": _plant(right.DivisionToProduct, models.Summing),
    "conv-as-unfold": _plant(right.ConvAsUnfold, models.Convolving),
    "batch-norm-as-mul-add": _plant(right.BatchNormAsMulAdd, models.Convolving),
    "decomposed-layer-norm": _plant(right.DecomposeLayerNorm, models.Attending),
    "decomposed-attention": _plant(right.DecomposeAttention, models.Attending),
    "decomposed-gelu": _plant(right.DecomposeGelu, models.Gelu),
    "decomposed-silu": _plant(right.DecomposeSilu, models.Silu),
    "moved-transposes": _plant(right.MoveTransposes, models.Summing),
}
