"""The one-ulp ensemble: copies of a model whose stored weights moved by at most one unit in the last place.

How far their outputs scatter is the condition estimate that a rounding gate needs: one lucky run of the original
must not set a bar that no right rewrite can pass. Source: Parker, "Monte Carlo Arithmetic", in its cheapest form.
"""

import zlib

import torch
from torch import Tensor

COPIES = 3
_DRAWS = 16
_DRAWS_OF_ALL = 64
_PART = 1 << 18
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
    moved = torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)
    source, target = tensor.detach().reshape(-1), moved.view(-1)
    # In parts, so that what is drawn and the steps between stay in the cache, and cost no memory of their own.
    for start in range(0, source.numel(), _PART):
        _move(source[start : start + _PART], target[start : start + _PART], integer, generator)
    return moved


def _move(source: Tensor, target: Tensor, integer: torch.dtype, generator: torch.Generator) -> None:
    step = _steps(source.numel(), generator).to(source.device)
    # In IEEE formats the next float in magnitude is the next integer; the largest one would become infinite.
    step *= (source != 0) & (source.abs() < torch.finfo(source.dtype).max)
    torch.add(source.view(integer), step, out=target.view(integer))


def _steps(count: int, generator: torch.Generator) -> Tensor:
    """-1, 0, 0 or 1 for every two random bits, 32 of them out of one drawn number."""
    drawn = torch.empty(-(-count // 32), dtype=torch.int64).random_(-(2**63), None, generator=generator)
    bits = drawn.view(torch.int8)
    pairs = torch.stack([(bits >> shift) & 3 for shift in (0, 2, 4, 6)]).reshape(-1)[:count]
    return (pairs == 3).to(torch.int8) - (pairs == 0).to(torch.int8)


def copies_for(value: Tensor, *, at_site: bool = False) -> int:
    """How many copies tell the own error of a row: three, and more where a row is so short that it hardly scatters.

    Sixteen draws all below a quarter of their spread do not happen. Maps of four axes get enough by joining short
    rows instead (see the gates). At a site, where they cost little, a value of few elements altogether gets more.
    """
    width = value.shape[-1] if value.dim() else 1
    if value.numel() == 0:
        return COPIES
    few = min(_DRAWS - 1, -(-_DRAWS_OF_ALL // value.numel()) - 1) if at_site else 0
    return max(COPIES, few, 0 if value.dim() > 3 else -(-_DRAWS // width) - 1)
