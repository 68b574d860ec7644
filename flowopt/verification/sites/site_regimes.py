"""Kinds of numbers at the boundary of a site."""

from typing import Final

import torch
from torch import Generator, Tensor

from flowopt.verification.inputs import regimes
from flowopt.verification.levels import Level

MODEL_VALUES: Final = "model-values"
"""Where a rewrite is exact on a domain of the inputs alone, the boundary holds what the model computes from them."""

SIGNED_ZEROS: Final = "negative-zeros"
"""What hardly any model computes, and what equal bits are lost on: x + 0 and x differ there alone."""

OTHER_SIZES: Final = ("normal",)
"""At sizes beside the first, ordinary numbers show what depends on the size."""

_QUICK: Final = ("normal", "mixed-rows", "large")
# In 16 bits squares overflow at 256 and sums lose what is small: a norm taken apart shows there first.
_SIXTEEN_BIT: Final = ("huge", "offset-noise")
# A score of -Inf is nothing to one kernel of attention and NaN to another: of infinities, only what they must not
# become is judged.
INFINITIES: Final = ("infinity", "negative-infinity")
NAN: Final = "nan"
"""Where a NaN goes in attention is up to the kernel: torch's own on the CPU gives finite rows for a query of NaN."""

OFFSET_UNIT: Final = "offset-unit"
"""Ordinary differences between large numbers: the original keeps most of their digits, a variance in one pass none."""

ALIKE_ROWS: Final = ("large", "huge", "offset-noise")
"""Numbers so large that a softmax flips, of one kind in all rows."""

AT_FIRST_ALIKE: Final = ("normal", "large")
"""Of claims that differ in stored tensors and shapes alone, at ``quick``, only the first gets these as well: mixed rows
hold numbers of both kinds."""

_FULL: Final = (
    "negative",
    NAN,
    *INFINITIES,
    "outliers",
    "wide-rows",
    "constant-rows",
    "offset-noise",
    OFFSET_UNIT,
    "halves",
    "zeros",
    SIGNED_ZEROS,
    "huge",
    "tiny",
    "subnormals",
)


def site_regimes(level: Level, dtypes: set[torch.dtype]) -> tuple[str, ...]:
    """Names of the regimes at the first size.

    Args:
        level: more of them at ``full``.
        dtypes: of the program's values.
    """
    narrow = _SIXTEEN_BIT if dtypes & {torch.float16, torch.bfloat16} else ()
    more = _FULL if level == "full" else narrow
    return (*_QUICK, *more)


def site_values(name: str, shape: tuple[int, ...], generator: Generator, dtype: torch.dtype) -> Tensor:
    """Numbers of a regime in the dtype of a boundary tensor."""
    if name == OFFSET_UNIT:
        limits = torch.finfo(dtype)
        offset = min(1e4, limits.max / 32)
        noise = max(1.0, 8 * limits.eps * offset)
        return (offset + noise * torch.randn(shape, generator=generator)).to(dtype)
    if name != "mixed-rows":
        return regimes.fitted(name, shape, generator, dtype)
    made = regimes.mixed_rows(shape, generator)
    limit = torch.finfo(dtype).max / 32  # room for a sum: a boundary of infinities compares nothing
    return made.clamp(-limit, limit).to(dtype)
