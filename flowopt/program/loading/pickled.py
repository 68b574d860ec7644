"""Load a module that ``torch.save`` pickled whole. Reading it runs whatever the file says: trust comes first."""

import pickle
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from flowopt.errors import MalformedModel, MissingDependency, Untrusted, UserError
from flowopt.formats.kinds import Detected
from flowopt.program.loading.trust import Trust


def load_pickled(path: Path, found: Detected, *, trust: Trust) -> nn.Module:
    """The module of a pickle. Its classes are imported, from the current folder too.

    Args:
        path: the file.
        found: what it is, for messages.
        trust: must be ``code``.

    Raises:
        Untrusted: another trust.
        MissingDependency: a class of the module cannot be imported.
        MalformedModel: a damaged pickle.
        UserError: it holds something else than a module.
    """
    if trust != "code":
        raise Untrusted(
            f"refused {path.name}: it is {found.detail}",
            why="reading a pickle can run any program on this machine; flowopt does not do that by default",
            hint="if you trust its author; else ask for .safetensors, or for "
            "torch.export.save(torch.export.export(model, args), 'model.pt2')",
            retry=(("--trust", "code"),),
        )
    module = _unpickled(path)
    if not isinstance(module, nn.Module):
        raise UserError(
            f"{path.name} holds {type(module).__name__}, not a module",
            hint="name a factory that builds the model and loads it: flowopt optimize package.module:factory",
        )
    return module


def _unpickled(path: Path) -> Any:
    try:
        with _current_folder():
            return torch.load(path, map_location="cpu", weights_only=False)
    except (ModuleNotFoundError, AttributeError) as error:
        missing = getattr(error, "name", None) or str(error)
        raise MissingDependency(
            f"{path.name} needs {missing}, which cannot be imported here",
            why=str(error).splitlines()[0],
            hint="run from the folder that holds the model's code, or install its package",
        ) from error
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, IndexError, TypeError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise MalformedModel(
            f"{path.name} cannot be read: {type(error).__name__}", why=first[:200], hint="download or save it again"
        ) from error


@contextmanager
def _current_folder() -> Iterator[None]:
    """Where the user's classes usually lie; ``flowopt`` as a program does not search it."""
    sys.path.insert(0, "")
    try:
        yield
    finally:
        sys.path.remove("")
