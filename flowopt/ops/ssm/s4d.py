"""The minimal S4D layer: a state space of diagonal matrices, one for each channel."""

import math
from typing import Literal, final

import torch
from torch import Tensor, nn

from flowopt.errors import UserError
from flowopt.ops.ssm.diagonal_system import DiagonalSystem, Discretization, kernel_of
from flowopt.ops.ssm.real_recurrence import real_recurrence

SsmForm = Literal["fft", "convolution", "recurrent"]


@final
class S4D(nn.Module):
    """y = u * K + D u, causal along the last axis, with K[h, l] = Re sum_n gains[h, n] poles[h, n]^l.

    Parameters have the names, shapes and initial values of the official code.

    Args:
        channels: H.
        states: of a channel, twice the conjugate pairs that are kept, N = states / 2.
        discretization: ``zoh``, ``bilinear`` or ``dss``, whose kernel depends on the length.
        form: ``fft`` makes the kernel at every call, in complex numbers of the parameters' dtype, and multiplies
            spectra; ``convolution`` takes the stored kernel of ``precompute``; ``recurrent`` goes step by step. They
            compute the same function.
        dt_min, dt_max: the range of initial time steps.
        device: of the parameters.
        dtype: of the parameters.

    Attributes:
        log_dt, D: (H,).
        log_A_real, A_imag: (H, N).
        C: (H, N, 2), real and imaginary part.
        kernel: buffer (H, longest), with D in its first entry; None before ``precompute``.

    Shapes: u (B, H, L); so is the result.

    Source: Gu et al., "On the Parameterization and Initialization of Diagonal State Space Models".
    """

    kernel: Tensor | None

    def __init__(
        self,
        channels: int,
        states: int = 64,
        *,
        discretization: Discretization = "zoh",
        form: SsmForm = "fft",
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if channels < 1 or states < 2 or states % 2:
            raise UserError(f"channels={channels} must be positive, and states={states} even.")
        self.channels, self.states, self.discretization, self.form = channels, states, discretization, form
        pairs = states // 2
        made = torch.rand(channels, device=device, dtype=dtype)
        self.log_dt = nn.Parameter(made * math.log(dt_max / dt_min) + math.log(dt_min))
        # Each part of a complex normal number has half of its variance.
        self.C = nn.Parameter(torch.randn(channels, pairs, 2, device=device, dtype=dtype) * 0.5**0.5)
        self.log_A_real = nn.Parameter(torch.full((channels, pairs), 0.5, device=device, dtype=dtype).log())
        self.A_imag = nn.Parameter(math.pi * torch.arange(pairs, device=device, dtype=made.dtype).repeat(channels, 1))
        self.D = nn.Parameter(torch.randn(channels, device=device, dtype=dtype))
        self.register_buffer("kernel", None)

    def system(self, length: int | None = None) -> DiagonalSystem:
        """Poles and gains in complex128; ``dss`` asks for a length."""
        parameters = (self.log_dt, self.log_A_real, self.A_imag, self.C)
        return DiagonalSystem.from_parameters(*parameters, discretization=self.discretization, length=length)

    def precompute(self, longest: int) -> None:
        """Compute the kernel in float64 and store it in the parameters' dtype; then ``convolution`` can run.

        Args:
            longest: sequence; of dss, the only one.
        """
        taps = kernel_of(self.system(longest), longest)
        taps[:, 0] += self.D.detach().double()
        self.kernel = taps.to(self.D.dtype)

    def forward(self, u: Tensor) -> Tensor:
        if self.form == "fft":
            return self._transformed(u)
        if self.form == "convolution":
            return self._convolved(u)
        state, outputs = self.initial_state(u), list[Tensor]()
        for at in range(u.shape[-1]):
            y, state = self.step(u[..., at], state)
            outputs.append(y)
        return torch.stack(outputs, -1)

    def initial_state(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """What is carried before the first step, for inputs like (B, H, any): two of (B, H, N), zero."""
        shape = (like.shape[0], self.channels, self.states // 2)
        return like.new_zeros(shape), like.new_zeros(shape)

    def step(self, u: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """One step: an input (B, H) and the real and imaginary parts of the state; dss has no steps.

        Raises:
            UserError: the discretization is dss.
        """
        steps = real_recurrence(self.system())
        rounded = (t.to(u.dtype) for t in (steps.decay_re, steps.decay_im, steps.read_re, steps.read_im))
        decay_re, decay_im, read_re, read_im = rounded
        re, im = state
        re, im = decay_re * re - decay_im * im + u[..., None], decay_re * im + decay_im * re
        return (read_re * re - read_im * im).sum(-1) + self.D.to(u.dtype) * u, (re, im)

    def _transformed(self, u: Tensor) -> Tensor:
        length = u.shape[-1]
        spectrum = torch.fft.rfft(self._kernel(length), n=2 * length)
        y: Tensor = torch.fft.irfft(torch.fft.rfft(u, n=2 * length) * spectrum, n=2 * length)[..., :length]
        return y + u * self.D.unsqueeze(-1)

    def _kernel(self, length: int) -> Tensor:
        """As the official code makes it, in the dtype of the parameters."""
        dt = torch.exp(self.log_dt).unsqueeze(-1)
        c = torch.view_as_complex(self.C)
        a = -torch.exp(self.log_A_real) + 1j * self.A_imag
        turned = a * dt
        positions = torch.arange(length, device=a.device)
        if self.discretization == "bilinear":
            c = c * dt / (1 - turned / 2)
            turned = torch.log((1 + turned / 2) / (1 - turned / 2))
        else:
            c = c * (torch.exp(turned) - 1.0) / a
        if self.discretization == "dss":
            c = c / (torch.exp(turned * length) - 1.0)
        return 2 * torch.einsum("hn,hnl->hl", c, torch.exp(turned.unsqueeze(-1) * positions)).real

    def _convolved(self, u: Tensor) -> Tensor:
        if self.kernel is None or self.kernel.shape[-1] < u.shape[-1]:
            stored = 0 if self.kernel is None else self.kernel.shape[-1]
            raise UserError(f"The stored kernel has {stored} entries, and the input {u.shape[-1]} steps.")
        taps = self.kernel[:, : u.shape[-1]].flip(-1).unsqueeze(1)
        padded = nn.functional.pad(u, (u.shape[-1] - 1, 0))
        return nn.functional.conv1d(padded, taps, groups=self.channels)
