"""Load a module that ``torch.save`` pickled whole. Reading it runs whatever the file says: trust comes first."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from flowopt.errors import FlowoptError, MalformedModel, MissingDependency, Untrusted, UserError
from flowopt.formats.kinds import Detected
from flowopt.formats.printable import printable
from flowopt.program.loading.trust import Trust

_MOST_WHY: Final = 200


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
            hint="if you trust its author; else ask for .safetensors, or for what this line writes:\n"
            'torch.export.save(torch.export.export(model, args), "model.pt2")',
            retry=(("--trust", "code"),),
        )
    module = _module(path, _unpickled(path, found))
    # It spreads batches over GPUs; its own forward names no inputs, and its mode says nothing about the model's.
    return module.module if isinstance(module, nn.DataParallel) else module


def _unpickled(path: Path, found: Detected) -> Any:
    try:
        with _current_folder():
            return torch.load(path, map_location="cpu", weights_only=False)
    except (ImportError, AttributeError) as error:
        raise _lacks_class(path, found, error) from error
    except (FlowoptError, OSError, MemoryError):
        raise
    except Exception as error:
        # A damaged pickle makes torch, and the classes it names, raise anything.
        first = (str(error).splitlines() or [""])[0]
        raise MalformedModel(
            f"{path.name} cannot be read: {type(error).__name__}",
            why=printable(first, _MOST_WHY),
            hint="download or save it again",
        ) from error


def _lacks_class(path: Path, found: Detected, error: ImportError | AttributeError) -> MissingDependency:
    """Its class is nowhere to be found; Python's own words hold paths of this machine."""
    # Both kinds of error name a module or a class, never a file.
    name = error.name if isinstance(error, ImportError) and error.name else found.class_name or "a class"
    if name.startswith("__main__."):
        return MissingDependency(
            f"{path.name} needs {name}, which cannot be imported here",
            why="its class was written in the script or notebook that saved it, and a pickle holds no code",
            hint='save the weights there: torch.save(model.state_dict(), "weights.pt")\n'
            "write my_model.py with the class and a function factory() that returns (model.eval(), (example_input,))\n"
            "flowopt optimize weights.pt --trust weights --factory my_model:factory",
        )
    return MissingDependency(
        f"{path.name} needs {name}, which cannot be imported here",
        why="a pickle holds no code: it names the module and the class that the model was made of",
        hint="run from the folder that holds the model's code, or install its package in the version of then",
    )


def _module(path: Path, loaded: Any) -> nn.Module:
    """The module: the file itself, or the one entry of a checkpoint that is one."""
    if isinstance(loaded, nn.Module):
        return loaded
    inner = {k: v for k, v in loaded.items() if isinstance(v, nn.Module)} if isinstance(loaded, Mapping) else {}
    chosen = [key for key in inner if key == "model"] or list(inner)
    if len(chosen) == 1:
        return inner[chosen[0]]
    raise UserError(
        f"{path.name} holds {type(loaded).__name__}, not a module",
        why=f"several of its entries are modules: {', '.join(map(repr, inner))}" if inner else "its module lies deeper",
        hint="save the module alone, with the key of the model:\n"
        f'torch.save(torch.load({str(path)!r}, weights_only=False)[key], "model.pt")',
    )


@contextmanager
def _current_folder() -> Iterator[None]:
    """Where the user's classes usually lie; ``flowopt`` as a program does not search it."""
    sys.path.insert(0, "")
    try:
        yield
    finally:
        sys.path.remove("")
