"""The stand-ins for softmax attention by name."""

from collections.abc import Callable, Mapping
from typing import Final

from flowopt.errors import UserError
from flowopt.nearest import nearest
from flowopt.ops.attention.linear_form import LinearForm
from flowopt.ops.attention.mean_attention import MeanAttention

LINEARIZATIONS: Final[Mapping[str, Callable[..., LinearForm]]] = {
    "mean": MeanAttention,
}
"""Makers: called with an ``AttentionShape``, and with options of their own by keyword."""


def linearization(name: str) -> Callable[..., LinearForm]:
    """The maker of a name.

    Raises:
        UserError: there is none.
    """
    if name not in LINEARIZATIONS:
        raise UserError(f"{name!r} is no linear attention", hint=nearest(name, LINEARIZATIONS, otherwise="one of"))
    return LINEARIZATIONS[name]
