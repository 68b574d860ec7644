"""Which keys are real, out of the mask that softmax attention was given."""

import torch
from torch import Tensor


def key_mask_of(mask: Tensor) -> Tensor:
    """The key mask (.., 1, S) of a mask (.., L, S) that hides padding, and perhaps what comes later.

    The last query sees every real key.

    Args:
        mask: bool, True is visible; or additive, at most half the dtype's lowest number where something is hidden.
    """
    last = mask[..., -1:, :]
    return last if last.dtype is torch.bool else last > torch.finfo(last.dtype).min / 2
