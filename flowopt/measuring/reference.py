"""The model that contenders run, in the forms that they take: a factory's module, or an archive of ``torch.export``."""

import inspect
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from flowopt.errors import UserError
from flowopt.program.capture import exported_module
from flowopt.program.loading.factory import arguments_of_factory


def is_factory(text: str) -> bool:
    """Whether a text is ``package.module:factory`` rather than a path."""
    return re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", text) is not None


def exported_reference(text: str) -> ExportedProgram:
    """The model as torch's own exporter would get it: nothing of flowopt's has touched it.

    Args:
        text: a factory; or the path of an archive that this process, or one that it trusts, has written.
    """
    if not is_factory(text):
        return torch.export.load(text)
    return exported_module(**arguments_of_factory(text))


def eager_model(text: str, inputs: Mapping[str, Tensor]) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """The model in torch, and the arguments by position and by name that give it inputs by name.

    Args:
        text: a factory, whose constants (such as ``use_cache=False``) stay; or an archive, which takes all inputs by
            position.
        inputs: by name, in the order of the captured program.

    Raises:
        UserError: an input lies inside a list or a dictionary, or the factory returns a captured program, whose
            module is gone.
    """
    if not is_factory(text):
        return torch.export.load(text).module(check_guards=False), tuple(inputs.values()), {}
    made = arguments_of_factory(text)
    signature = inspect.signature(made["module"].forward)
    bound = signature.bind(*made.get("args", ()), **(made.get("kwargs") or {}))
    nested = [name for name, value in bound.arguments.items() if isinstance(value, (list, tuple, dict))]
    if nested:
        raise UserError(
            f"inputs {nested} of {text} hold tensors in lists or dictionaries",
            hint="give the reference as an archive of torch.export.save",
        )
    for name, value in bound.arguments.items():
        bound.arguments[name] = inputs[name] if isinstance(value, Tensor) else value
    return made["module"].eval(), bound.args, bound.kwargs
