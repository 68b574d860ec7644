"""Weights without a graph: a state dictionary or ``.safetensors``, put into the module that a factory builds."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from flowopt.errors import MalformedModel, Untrusted, UserError
from flowopt.formats.kinds import Detected, Kind
from flowopt.formats.limits import Limits
from flowopt.formats.safetensors_header import read_header
from flowopt.program.loading.trust import Trust
from flowopt.sandbox.isolated import run_isolated

_TRIAL: Final = "flowopt.program.loading.trial:try_weights"
# Wrappers that leave their name before every key.
_PREFIXES: Final = ("module.", "_orig_mod.", "model.")
_MOST_NAMED: Final = 8
_FACTORY: Final = "my_model:factory"


def require_factory(path: Path, found: Detected, *, trust: Trust, factory: str | None) -> None:
    """Weights need trust, unless they are ``.safetensors``, and a factory that builds their module.

    Raises:
        Untrusted: a pickle of weights without ``trust="weights"``.
        UserError: no factory.
    """
    how = (
        "weights have no graph, so write my_model.py with a function factory() that builds the model and returns "
        "(model.eval(), (example_input,)); the file's weights replace its own"
    )
    lacking = (("--factory", _FACTORY),) if factory is None else ()
    if found.kind is Kind.STATE_DICT and trust == "data":
        raise Untrusted(
            f"refused {path.name}: it is {found.detail}",
            why="it is a pickle; torch reads it with a restricted unpickler, whose safety has been broken before",
            hint=f"{how}\nor ask the owner for .safetensors" if lacking else "or ask the owner for .safetensors",
            retry=(("--trust", "weights"), *lacking),
        )
    if factory is None:
        raise UserError(f"{path.name} is {found.detail}", why="it holds no graph", hint=how, retry=lacking)


def read_weights(path: Path, found: Detected, limits: Limits) -> dict[str, Tensor]:
    """Tensors by name, mapped from the file where its format allows.

    Raises:
        MalformedModel: a damaged file.
        UserError: no dictionary of tensors, or several inside each other.
    """
    if found.kind is Kind.SAFETENSORS:
        from safetensors.torch import load_file

        read_header(path, limits)
        return load_file(path)
    run_isolated(_TRIAL, {"path": str(path.absolute())}, limits=limits, extra_memory=path.stat().st_size)
    try:
        with path.open("rb") as file:
            is_zip = file.read(2) == b"PK"
        loaded: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise MalformedModel(
            f"{path.name} cannot be read", why=first[:200], hint="download or save it again"
        ) from error
    return _tensors(path.name, loaded)


def put_into(module: nn.Module, weights: Mapping[str, Tensor], file: str, factory: str) -> None:
    """Copy weights into a module that a factory has built.

    Raises:
        UserError: keys that are missing, not expected, or of another shape; it lists them.
    """
    own = module.state_dict(keep_vars=True)
    named = _without_prefix(weights, own)
    loaded = {own[key].data_ptr() for key in named if key in own}
    # A tied weight is often stored under one of its names only.
    missing = [key for key, tensor in own.items() if key not in named and tensor.data_ptr() not in loaded]
    unexpected = [key for key in named if key not in own]
    shapes = [
        f"{key}: {list(tensor.shape)} in the file, {list(own[key].shape)} in the model"
        for key, tensor in named.items()
        if key in own and tensor.shape != own[key].shape
    ]
    problems = [
        f"{title} ({len(keys)}): {', '.join(keys[:_MOST_NAMED])}{' ...' if len(keys) > _MOST_NAMED else ''}"
        for title, keys in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
        if keys
    ]
    if problems:
        raise UserError(
            f"the weights of {file} do not fit the model of {factory}",
            why="\n".join(problems),
            hint="build the same model as the one that was saved: its class, its options, its version",
        )
    module.load_state_dict(named, strict=False)


def _tensors(file: str, loaded: Any) -> dict[str, Tensor]:
    """The dictionary of tensors: the file itself, or the one entry of a checkpoint that is one."""
    if _is_state(loaded):
        return dict(loaded)
    inner = {k: v for k, v in loaded.items() if _is_state(v)} if isinstance(loaded, Mapping) else {}
    preferred = [key for key in inner if key in ("state_dict", "model_state_dict", "model", "module")]
    if len(preferred) == 1:
        return dict(inner[preferred[0]])
    if len(inner) == 1:
        return dict(next(iter(inner.values())))
    keys = ", ".join(map(repr, list(loaded)[:_MOST_NAMED])) if isinstance(loaded, Mapping) else type(loaded).__name__
    raise UserError(
        f"{file} holds no single dictionary of tensors",
        why=f"it holds {keys}",
        hint="save the weights alone: torch.save(checkpoint[key], 'weights.pt'), with the key of the model",
    )


def _is_state(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(value) and all(isinstance(item, Tensor) for item in value.values())


def _without_prefix(weights: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights under the module's names: DataParallel and torch.compile put a word before each."""
    for prefix in _PREFIXES:
        if not all(key.startswith(prefix) for key in weights):
            continue
        shortened = {key.removeprefix(prefix): tensor for key, tensor in weights.items()}
        if sum(key in own for key in shortened) > sum(key in own for key in weights):
            return shortened
    return dict(weights)
