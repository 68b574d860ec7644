"""A diagonal state space as products of matrices inside chunks, and a state between them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from flowopt.ops.ssm.diagonal_system import DiagonalSystem, kernel_of, powers


@dataclass(frozen=True, slots=True)
class ChunkTables:
    """What a chunk u of C inputs is multiplied with, for every channel; N states, real and imaginary part.

    [y | re | im] = u @ enter               y of the chunk's own inputs; what they add to the state behind the chunk
    y = y + [re | im] @ leave               re, im: the state before the chunk
    re + i im of k chunks before            = (decays[k][0] + i decays[k][1]) (re + i im)       for k = 1, 2, 4, ..

    Attributes:
        enter: (H, C, C + 2N).
        leave: (H, 2N, C).
        decays: pairs of (H, 1, N), one for each doubling.
    """

    enter: Tensor
    leave: Tensor
    decays: tuple[tuple[Tensor, Tensor], ...]


def chunk_tables(system: DiagonalSystem, chunk: int, doublings: int, skip: Tensor | None = None) -> ChunkTables:
    """The tables of a system, in float64.

    Args:
        system: of H channels.
        chunk: inputs in a chunk, C.
        doublings: so that 2^doublings chunks or fewer are a sequence.
        skip: (H,), is added to what an input gives at its own step.
    """
    taps = kernel_of(system, chunk)
    if skip is not None:
        taps[:, 0] += skip
    at = torch.arange(chunk, device=taps.device)
    behind = at[None, :] - at[:, None]
    own = torch.where(behind >= 0, taps[:, behind.clamp(min=0)], 0)
    powered = powers(system.poles, chunk + 1)
    entering = powered[..., :chunk].flip(-1).mT
    leaving = system.gains[..., None] * powered[..., 1:]
    decay, decays = powered[..., chunk][:, None], list[tuple[Tensor, Tensor]]()
    for _ in range(doublings):
        decays.append((decay.real, decay.imag))
        decay = decay * decay
    enter = torch.cat([own, entering.real, entering.imag], -1)
    return ChunkTables(enter, torch.cat([leaving.real, -leaving.imag], 1), tuple(decays))
