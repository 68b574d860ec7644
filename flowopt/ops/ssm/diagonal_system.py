"""A state space of which each state decays and turns by itself, at discrete steps."""

from dataclasses import dataclass
from typing import Literal, Self

import torch
from torch import Tensor

from flowopt.errors import UserError

Discretization = Literal["zoh", "bilinear", "dss"]


@dataclass(frozen=True, slots=True)
class DiagonalSystem:
    """y_t = Re sum_n gains[n] s_t[n] with s_t = poles s_{t-1} + u_t, for every channel.

    One of each conjugate pair of states is kept, and the factor of 2 that stands for the other is in the gains.

    Attributes:
        poles, gains: (H, N), complex128.
    """

    poles: Tensor
    gains: Tensor

    @classmethod
    def from_parameters(
        cls,
        log_dt: Tensor,
        log_A_real: Tensor,
        A_imag: Tensor,
        C: Tensor,
        *,
        discretization: Discretization = "zoh",
        length: int | None = None,
    ) -> Self:
        """The system of S4D's parameters, in float64.

        A = -exp(log_A_real) + i A_imag,  dtA = A exp(log_dt)
        zoh:       poles exp(dtA),                     gains 2 C (exp(dtA) - 1) / A
        bilinear:  poles (1 + dtA/2) / (1 - dtA/2),    gains 2 C dt / (1 - dtA/2)
        dss:       as zoh, gains divided by exp(length dtA) - 1

        Args:
            log_dt: (H,).
            log_A_real, A_imag: (H, N).
            C: (H, N, 2), real and imaginary part.
            discretization: how continuous time becomes steps.
            length: of the sequence; ``dss`` alone depends on it.

        Raises:
            UserError: ``dss`` without a length, or no such discretization.

        Source: Gu et al., "On the Parameterization and Initialization of Diagonal State Space Models", section 3; Gupta
            et al., "Diagonal State Spaces are as Effective as Structured State Spaces", section 3.
        """
        dt = log_dt.detach().double().exp()[:, None]
        a = torch.complex(-log_A_real.detach().double().exp(), A_imag.detach().double())
        c = torch.view_as_complex(C.detach().double().contiguous())
        turned = a * dt
        if discretization == "bilinear":
            return cls((1 + turned / 2) / (1 - turned / 2), 2 * c * dt / (1 - turned / 2))
        gains = 2 * c * torch.expm1(turned) / a
        if discretization == "zoh":
            return cls(turned.exp(), gains)
        if discretization != "dss":
            raise UserError(f"{discretization!r} is no discretization", hint="one of zoh, bilinear, dss")
        if length is None:
            raise UserError(
                "The kernel of dss depends on the length of the sequence, and none is given.",
                why="its gains are divided by exp(length * dtA) - 1",
            )
        return cls(turned.exp(), gains / torch.expm1(turned * length))


def kernel_of(system: DiagonalSystem, length: int) -> Tensor:
    """What one input of 1 gives at the steps that follow: K[h, l] = Re sum_n gains[h, n] poles[h, n]^l.

    Returns:
        (H, length), float64.
    """
    return torch.einsum("hn,hnl->hl", system.gains, powers(system.poles, length)).real


def powers(poles: Tensor, count: int) -> Tensor:
    """The powers 0 to count - 1 of each pole: (H, N, count).

    By products: exp(l log p) would lose digits to the phase, and has no value for a pole of 0.
    """
    factors = poles[..., None].repeat(1, 1, count)
    factors[..., :1] = 1
    return factors.cumprod(-1)
