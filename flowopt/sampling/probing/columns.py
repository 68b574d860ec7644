"""What a scheduler computes with while it is probed: given values instead of noise, in float64 throughout."""

from collections.abc import Callable
from typing import Any, final

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from flowopt.errors import UserError

_NORMAL = frozenset({torch.randn, torch.randn_like})
_OTHER = frozenset(
    {
        torch.bernoulli,
        torch.multinomial,
        torch.normal,
        torch.poisson,
        torch.rand,
        torch.rand_like,
        torch.randint,
        torch.randint_like,
        torch.randperm,
        Tensor.bernoulli,
        Tensor.bernoulli_,
        Tensor.cauchy_,
        Tensor.exponential_,
        Tensor.geometric_,
        Tensor.log_normal_,
        Tensor.multinomial,
        Tensor.normal_,
        Tensor.random_,
        Tensor.uniform_,
    }
)
_CASTS = frozenset({Tensor.to, Tensor.type, Tensor.float, Tensor.type_as})


@final
class Draws(TorchFunctionMode):
    """Gives ``noise(k)`` for the k-th call of ``torch.randn`` or ``randn_like``, on this thread and inside the context.

    No function is replaced: torch asks the mode first, under whatever name a scheduler got hold of the function, and
    no random number generator moves.

    Args:
        noise: the values of draw k, of the sample's shape.
        keeps_double: a sample in float64 stays so where the scheduler converts it to float32, as many do before a
            step. The numbers it is multiplied with stay those of the scheduler.

    Raises:
        UserError: a draw of another shape, or of numbers that are not normal.
    """

    def __init__(self, noise: Callable[[int], Tensor], *, keeps_double: bool) -> None:
        super().__init__()
        self.count = 0
        self._noise = noise
        self._keeps_double = keeps_double

    def __torch_function__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        keywords = kwargs or {}
        if func in _NORMAL:
            return self._drawn(func, args, keywords)
        if func in _OTHER:
            raise UserError(
                f"the scheduler calls {func.__name__}, and only noise drawn by torch.randn can become an input"
            )
        result = func(*args, **keywords)
        if self._keeps_double and func in _CASTS and _is_rounded_sample(args[0], result):
            return args[0]
        return result

    def _drawn(self, func: Any, args: tuple[Any, ...], keywords: dict[str, Any]) -> Tensor:
        value = self._noise(self.count)
        self.count += 1
        shape = _shape(func, args, keywords)
        if shape != tuple(value.shape):
            raise UserError(f"the scheduler draws noise of shape {list(shape)} for a sample of {list(value.shape)}")
        return value


def _shape(func: Any, args: tuple[Any, ...], keywords: dict[str, Any]) -> tuple[int, ...]:
    if func is torch.randn_like:
        return tuple((args[0] if args else keywords["input"]).shape)
    sizes = args if args else (keywords["size"],)
    return tuple(sizes[0]) if len(sizes) == 1 and not isinstance(sizes[0], int) else tuple(sizes)


def _is_rounded_sample(before: object, after: object) -> bool:
    """A scheduler's own numbers are scalars or lists; samples have a batch, channels and an extent."""
    return (
        isinstance(before, Tensor)
        and isinstance(after, Tensor)
        and before.dim() >= 4
        and (before.dtype, after.dtype) == (torch.float64, torch.float32)
    )
