"""The one-ulp ensemble: copies of a model whose stored weights moved by at most one unit in the last place.

How far their outputs scatter is the condition estimate that a rounding gate needs: one lucky run of the original
must not set a bar that no right rewrite can pass. Source: Parker, "Monte Carlo Arithmetic", in its cheapest form.
"""

import functools
import zlib

import torch
from torch import Tensor

COPIES = 3
_DRAWS = 16
_DRAWS_OF_ALL = 64
_PART = 1 << 17
_POOL = 1 << 20
_TURNS = 4
_INTEGER_OF = {
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
    torch.float32: torch.int32,
    torch.float64: torch.int64,
}


def moved_by_one_ulp(name: str, tensor: Tensor, copy: int, seed: int) -> Tensor:
    """Every element one ulp smaller in magnitude, the same, or one ulp larger (1/4, 1/2, 1/4 of all copies).

    Args:
        name: of the tensor; the choice depends on it, on ``copy`` and on ``seed`` alone.
        tensor: integers, zeros and non-finite elements come back unchanged.
        copy: number of the ensemble's copy.
        seed: of the verification.
    """
    integer = _INTEGER_OF.get(tensor.dtype)
    if integer is None:
        return tensor
    moved = torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)
    source, target = tensor.detach().reshape(-1), moved.view(-1)
    # In parts, so that the steps between stay in the cache, and cost no memory of their own.
    for start in range(0, source.numel(), _PART):
        part = source[start : start + _PART]
        steps = _steps(part.numel(), f"{seed}/{name}/{start}", copy).to(part.device, integer)
        _move(part, target[start : start + _PART], integer, steps)
    return moved


def _move(source: Tensor, target: Tensor, integer: torch.dtype, steps: Tensor) -> None:
    smallest, largest = source.abs().aminmax()
    # In IEEE formats the next float in magnitude is the next integer; the largest one would become infinite.
    if not (smallest > 0 and largest < torch.finfo(source.dtype).max):
        steps = steps * (source.bool() & (source.abs() < torch.finfo(source.dtype).max))
    torch.add(source.view(integer), steps, out=target.view(integer))


def _steps(count: int, key: str, copy: int) -> Tensor:
    """-1, 0, 0 or 1 for each element, out of a pool: drawing them anew for every weight would cost more than moving it.

    Two weights may share some of them at different places, where nothing adds them up. One of the first three copies
    moves any element, so that a row whose scale is one element's never stands still.
    """
    start = zlib.crc32(f"{key}/{copy // _TURNS}".encode()) % (_POOL - count + 1)
    return _pools()[copy % _TURNS][start : start + count]


@functools.cache
def _pools() -> tuple[Tensor, ...]:
    drawn = torch.randint(0, _TURNS, (_POOL,), dtype=torch.int32, generator=torch.Generator().manual_seed(0))
    turned = [(drawn + turn) % _TURNS for turn in range(_TURNS)]
    return tuple((one == 2).to(torch.int32) - (one == 0).to(torch.int32) for one in turned)


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
