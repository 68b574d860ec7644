"""Weights without a graph: a state dictionary or ``.safetensors``, put into the module that a factory builds."""

import pickle
import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from flowopt.errors import MalformedModel, Untrusted, UserError
from flowopt.formats.kinds import Detected, Kind
from flowopt.formats.limits import Limits
from flowopt.formats.printable import printable
from flowopt.program.loading.safetensors_file import read_safetensors
from flowopt.program.loading.trust import Trust
from flowopt.sandbox.isolated import run_isolated

_TRIAL: Final = "flowopt.program.loading.trial:try_weights"
# Wrappers that leave their name before every key.
_PREFIXES: Final = ("module.", "_orig_mod.", "model.")
_MOST_NAMED: Final = 8
_WIDTH: Final = 110
_FACTORY: Final = "my_model:factory"
# How torch names what it refuses.
_FOREIGN: Final = re.compile(r"GLOBAL ([\w.]+)")


def require_factory(path: Path, found: Detected, *, trust: Trust, factory: str | None) -> None:
    """Weights need trust, unless they are ``.safetensors``, and a factory that builds their module.

    Raises:
        Untrusted: a pickle of weights without ``trust="weights"``.
        UserError: no factory.
    """
    how = (
        "weights have no graph, so first write my_model.py with a function factory() that builds the model\n"
        "and returns (model.eval(), (example_input,)); the file's weights replace its own"
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
        Untrusted: a pickle of more than tensors and plain values.
        UserError: no dictionary of tensors, or several inside each other.
    """
    if found.kind is Kind.SAFETENSORS:
        return read_safetensors(path, limits)
    run_isolated(_TRIAL, {"path": str(path.absolute())}, limits=limits, extra_memory=path.stat().st_size)
    return _tensors(path, unpickled(path))


def unpickled(path: Path) -> Any:
    """What torch's restricted unpickler reads in a file; there is no other attempt.

    Raises:
        Untrusted: it holds more than tensors and plain values.
        MalformedModel: it is damaged.
    """
    with path.open("rb") as file:
        is_zip = file.read(2) == b"PK"
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except pickle.UnpicklingError as error:
        # torch's own words advise to read it without restrictions.
        found = _FOREIGN.search(str(error))
        if found is None:
            raise _damaged(path, f"it is not a pickle that torch can have written: {type(error).__name__}") from error
        raise Untrusted(
            f"refused {path.name}: beside weights it holds {printable(found[1])}",
            why="torch's restricted unpickler refuses that, and flowopt reads pickles of weights with no other",
            hint="ask the owner for .safetensors; or, if you trust its author, save the weights alone in Python:\n"
            f"state = torch.load({str(path)!r}, weights_only=False)  # runs what the file says\n"
            'torch.save(state["state_dict"], "weights.pt")  # under the key that the model has in it',
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise _damaged(path, (str(error).splitlines() or [type(error).__name__])[0]) from error


def _damaged(path: Path, why: str) -> MalformedModel:
    return MalformedModel(f"{path.name} cannot be read", why=printable(why, 200), hint="download or save it again")


def put_into(module: nn.Module, weights: Mapping[str, Tensor], file: str, factory: str) -> None:
    """Copy weights into a module that a factory has built.

    Raises:
        UserError: keys that are missing, not expected, or of another shape; it lists them. Or a model without memory.
    """
    own = {key: value for key, value in module.state_dict(keep_vars=True).items() if isinstance(value, Tensor)}
    if any(tensor.is_meta for tensor in own.values()):
        raise UserError(
            f"{factory} builds its model on the meta device, where no weights can be put into it",
            hint='build it on the CPU: without torch.device("meta")',
        )
    named = _without_prefix(weights, own)
    if other := [printable(key) for key, tensor in named.items() if not _is_plain(tensor)]:
        raise UserError(
            f"{file} holds tensors without plain memory",
            why=_listed("sparse, quantized, nested or on the meta device", other),
            hint="save dense weights: call .to_dense() or .dequantize() on them first",
        )
    shapes = {
        key: f"{printable(key)}: {list(tensor.shape)} in the file, {list(own[key].shape)} in the model"
        for key, tensor in named.items()
        if key in own and tensor.shape != own[key].shape
    }
    # torch decides what fits: modules read what their older versions wrote, such as batch norms without a counter.
    fitting = {key: tensor for key, tensor in named.items() if key not in shapes}
    left = module.load_state_dict(fitting, strict=False)
    # A tied weight is often stored under one of its names only.
    stored = {id(own[key]) for key in named if key in own}
    missing = [key for key in left.missing_keys if key not in named and id(own.get(key)) not in stored]
    unexpected = list(map(printable, left.unexpected_keys))
    titled = (("missing", missing), ("unexpected", unexpected), ("of another shape", [*shapes.values()]))
    problems = [_listed(title, keys) for title, keys in titled if keys]
    if problems:
        raise UserError(
            f"the weights of {file} do not fit the model of {factory}",
            why="\n".join(problems),
            hint="build the same model as the one that was saved: its class, its options, its version",
        )


def _tensors(path: Path, loaded: Any) -> dict[str, Tensor]:
    """The dictionary of tensors: the file itself, or the one entry of a checkpoint that is one."""
    if _is_state(loaded):
        return dict(loaded)
    inner = {k: v for k, v in loaded.items() if _is_state(v)} if isinstance(loaded, Mapping) else {}
    preferred = [key for key in inner if key in ("state_dict", "model_state_dict", "model", "module")]
    if len(preferred) == 1:
        return dict(inner[preferred[0]])
    if len(inner) == 1:
        return dict(next(iter(inner.values())))
    keys = ", ".join(printable(repr(key)) for key in list(loaded)[:_MOST_NAMED]) if isinstance(loaded, Mapping) else ""
    keys = keys or type(loaded).__name__
    raise UserError(
        f"{path.name} holds {'several dictionaries' if inner else 'no dictionary'} of tensors",
        why=f"which of these is the model's cannot be known: {keys}" if inner else f"it holds {keys}",
        hint="save the weights alone; where they lie deeper, with the key of the model:\n"
        f"state = torch.load({str(path)!r}, weights_only=True){'[key]' if inner else ''}\n"
        'torch.save({k: t for k, t in state.items() if torch.is_tensor(t)}, "weights.pt")',
    )


def _listed(title: str, keys: Sequence[str]) -> str:
    text = f"{title} ({len(keys)}): {', '.join(keys[:_MOST_NAMED])}{' ...' if len(keys) > _MOST_NAMED else ''}"
    return textwrap.fill(text, _WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def _is_state(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and bool(value)
        and all(isinstance(key, str) and isinstance(item, Tensor) for key, item in value.items())
    )


def _is_plain(tensor: Tensor) -> bool:
    special = tensor.is_nested or tensor.is_quantized or tensor.is_meta
    return tensor.layout is torch.strided and not special


def _without_prefix(weights: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights under the module's names: DataParallel and torch.compile put a word before each."""
    for prefix in _PREFIXES:
        if not all(key.startswith(prefix) for key in weights):
            continue
        shortened = {key.removeprefix(prefix): tensor for key, tensor in weights.items()}
        if sum(key in own for key in shortened) > sum(key in own for key in weights):
            return shortened
    return dict(weights)
