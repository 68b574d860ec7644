"""Which nodes draw random numbers."""

from typing import Any

import torch
from torch import fx

# Operators that draw only while one of these is set: attention's dropout, dropout in eval mode.
_SWITCHES = ("dropout_p", "train", "training")


def draws_random_numbers(node: fx.Node) -> bool:
    """True when running the node twice may give two results."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload) or torch.Tag.nondeterministic_seeded not in target.tags:
        return False
    switches = [s for s in (_argument(node, target, name) for name in _SWITCHES) if s is not None]
    return not switches or any(bool(s) for s in switches)


def _argument(node: fx.Node, target: torch._ops.OpOverload[Any, Any], name: str) -> Any:
    """Value of an argument by its name in the schema, its default included; None when there is no such argument."""
    for position, argument in enumerate(target._schema.arguments):
        if argument.name == name:
            given = node.args[position] if position < len(node.args) else node.kwargs.get(name)
            return argument.default_value if given is None else given
    return None
