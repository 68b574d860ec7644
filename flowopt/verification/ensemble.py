"""The one-ulp ensemble: copies of a model whose stored weights moved by at most one unit in the last place.

How far their outputs scatter is the condition estimate that a rounding gate needs: one lucky run of the original
must not set a bar that no right rewrite can pass. Source: Parker, "Monte Carlo Arithmetic", in its cheapest form.
"""

import zlib

import torch
from torch import Tensor

COPIES = 3
_DRAWS = 16
_INTEGER_OF = {
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
    torch.float32: torch.int32,
    torch.float64: torch.int64,
}


def moved_by_one_ulp(name: str, tensor: Tensor, copy: int, seed: int) -> Tensor:
    """Every element one ulp smaller in magnitude, the same, or one ulp larger (1/4, 1/2, 1/4).

    Args:
        name: of the tensor; the choice depends on it, on ``copy`` and on ``seed`` alone.
        tensor: integers, zeros and non-finite elements come back unchanged.
        copy: number of the ensemble's copy.
        seed: of the verification.
    """
    integer = _INTEGER_OF.get(tensor.dtype)
    if integer is None:
        return tensor
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}/{copy}/{name}".encode()))
    # Two random bits per element: 0 -> down, 1 and 2 -> stay, 3 -> up.
    drawn = torch.randint(0, 4, tensor.shape, generator=generator, dtype=torch.int8)
    step = (drawn == 3).to(torch.int8) - (drawn == 0).to(torch.int8)
    # In IEEE formats the next float in magnitude is the next integer; the largest one would become infinite.
    limit = torch.finfo(tensor.dtype).max
    step[(tensor == 0) | ~(tensor.abs() < limit)] = 0
    return (tensor.contiguous().view(integer) + step.to(integer)).view(tensor.dtype)


def copies_for(value: Tensor) -> int:
    """How many copies tell the own error of a row: three, and more where a row is so short that it hardly scatters.

    Sixteen draws all below a quarter of their spread do not happen. Maps of four axes get enough by joining short
    rows instead (see the gates).
    """
    width = value.shape[-1] if value.dim() else 1
    if value.dim() > 3 or width == 0:
        return COPIES
    return max(COPIES, -(-_DRAWS // width) - 1)
