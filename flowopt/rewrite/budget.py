"""Budget: what an APPROXIMATE rewrite may cost, in numbers."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Budget:
    """What an APPROXIMATE rewrite may cost on inputs of ordinary numbers.

    What is set must hold for every output in every such case. Integers and booleans stay as they are, but for the
    share that ``min_agreement`` leaves them, or else as many as the naive cast changes, times ``cast_factor``.

    Attributes:
        min_snr_db: smallest signal-to-noise ratio in dB against float64, 20 log10(|oracle| / |error|): 40 dB is 1 %
            of relative error, 20 dB is 10 %.
        min_agreement: smallest share, 0 to 1, of rows (last axis) whose largest element stays where it was.
        max_relative: largest error of an element, of its row's largest element.
        cast: dtype of a cast, which is judged beside the naive cast of the whole model: the same graph with tensors,
            inputs and dtype arguments of that dtype.
        cast_factor: how many times the naive cast's error a cast may have.

    Source: the factor of 2 is FlashAttention's (Dao et al., arXiv:2205.14135, its tests).
    """

    min_snr_db: float | None = None
    min_agreement: float | None = None
    max_relative: float | None = None
    cast: torch.dtype | None = None
    cast_factor: float = 2.0

    def __post_init__(self) -> None:
        if all(v is None for v in (self.min_snr_db, self.min_agreement, self.max_relative, self.cast)):
            raise ValueError("a budget sets at least one of min_snr_db, min_agreement, max_relative and cast")
        if self.min_agreement is not None and not 0.0 <= self.min_agreement <= 1.0:
            raise ValueError(f"min_agreement={self.min_agreement} is a share between 0 and 1, such as 0.995")
        if self.cast is not None and not self.cast.is_floating_point:
            raise ValueError(f"cast={self.cast} is no floating dtype")
