"""The one vocabulary of refusal codes. Passes share it so that "why not" can be counted over a model zoo."""

from typing import Final

CODES: Final[dict[str, str]] = {
    "already-canonical": "the operator has the spelling that flowopt's passes expect already",
    "already-rewritten": "another rewrite of the same pass has removed this site",
    "axis-mismatch": "the operators work on different axes",
    "batch-statistics": "the norm computes its statistics from the batch, also in eval mode",
    "dynamic-shape": "a size that must be known at capture is free",
    "extreme-scale": "a scale is zero or not finite, or would push weights out of the range of their dtype",
    "graph-output": "the value is an output of the model, so it must stay as it is",
    "grows-too-much": "the new tensor takes more memory than what it replaces",
    "lost-in-rounding": "the weight's dtype would round away what is folded into it",
    "mask-may-hide-a-row": "a mask may leave nothing to attend to, and such a row gives zeros",
    "missing-metadata": "a node carries no recorded shape or dtype, and flowopt does not guess",
    "multiple-readers": "the value is read elsewhere too",
    "no-affine": "the norm has no gain and no shift: there is nothing to fold",
    "no-bias": "the layer has no bias: there is nothing to fold",
    "no-gain": "the rewritten form would do as much work, or is not faster as predicted or measured",
    "no-partner": "there is no other operator to rewrite this one with",
    "not-a-norm": "the operator is no normalization that this pass knows",
    "not-a-row-shift": "what is added to all scores of a row would not be added to a row of the softmax",
    "not-constant": "the tensor is computed at run time or is state that the model changes",
    "not-finite": "the folded tensor would overflow its dtype or hold a NaN",
    "not-linear-producer": "the value does not come from a convolution or a linear layer",
    "not-linear-reader": "a reader is no linear layer",
    "post-norm": "the norm's output is added into the residual stream",
    "quantized-weight": "the weight is stored in fewer bits than it is used in",
    "stale-choice": "the measured choice is for other sizes",
    "tiny-scale": "a variance is so small that folding would lose the shift to cancellation",
    "train-mode": "the operator was captured in train mode",
    "unsupported-spelling": "the operator's arguments have a form that this pass does not handle",
}
