"""A module whose forward takes inputs by given names, so that what is captured of it has them."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

from torch import Tensor, nn

Compute = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]


@final
class NamedModule(nn.Module):
    """Calls a function with its inputs by name, and returns what that returns, by name.

    Args:
        names: of the inputs, in order.
        compute: from inputs by name to outputs by name.
        parts: modules that ``compute`` uses, so that their tensors are found.
        tensors: stored tensors that ``compute`` gets beside the inputs, under these names.
    """

    def __init__(
        self,
        names: Sequence[str],
        compute: Compute,
        *,
        parts: Mapping[str, nn.Module] | None = None,
        tensors: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__()
        for name, part in (parts or {}).items():
            self.add_module(name, part)
        for name, tensor in (tensors or {}).items():
            self.register_buffer(name, tensor)
        stored = tuple(tensors or ())
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        signature = inspect.Signature([inspect.Parameter(name, kind) for name in names])

        def forward(*args: Any, **kwargs: Any) -> dict[str, Tensor]:
            given = dict(signature.bind(*args, **kwargs).arguments)
            return compute(given | {name: getattr(self, name) for name in stored})

        # torch.export names inputs after the signature that it finds.
        forward.__signature__ = signature  # type: ignore[attr-defined]  # functions take attributes
        self.forward = forward
