"""Which keys are real, out of the mask that softmax attention was given."""

from typing import Final

import torch
from torch import Tensor

HIDDEN_SCORE: Final = -5e3
"""What is added to the score of a hidden key is lower, in every dtype: models add from -1e4 on, or minus infinity."""


def key_mask_of(mask: Tensor) -> Tensor:
    """The key mask (.., 1, S) of a mask (.., L, S) that hides padding, and perhaps what comes later.

    The last query sees every real key, in all heads the same.

    Args:
        mask: bool, True is visible; or additive: 0, or below ``HIDDEN_SCORE``.
    """
    # The dtype's lowest number would be no threshold: the float64 twin has the float32 one.
    last = mask[..., -1:, :]
    if mask.dim() > 2 and mask.shape[-3] != 1:
        last = last[..., :1, :, :]
    return last if last.dtype is torch.bool else last > HIDDEN_SCORE
