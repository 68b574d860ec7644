"""Example inputs for a module: from shapes, from a file, or a guess to start from."""

import inspect
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from flowopt.errors import MalformedModel, ModelNotFound, UserError
from flowopt.formats.limits import GIBIBYTE
from flowopt.formats.printable import printable
from flowopt.program.loading.input_spec import InputSpec, parse_input_spec

Inputs = str | Path | Mapping[str, Tensor]
_SEQUENCE: Final = 16
_IMAGE: Final = 224
_MOST_UNPACKED_BYTES: Final = GIBIBYTE
_MOST_EXPANSION: Final = 100
_MOST_WHY: Final = 200


def example_inputs(shapes: Mapping[str, str], inputs: Inputs | None, *, seed: int = 0) -> dict[str, Tensor]:
    """Example inputs by name; those with a shape get random numbers.

    Args:
        shapes: input name to ``sizes[:dtype][[low..high]]``.
        inputs: tensors by name, or a ``.npz`` file of arrays.
        seed: of the random numbers.

    Raises:
        UserError: a shape of another form, or an input that is given twice.
        ModelNotFound, MalformedModel: no such file, or none of plain arrays.
    """
    given = dict(inputs) if isinstance(inputs, Mapping) else _stored(Path(inputs)) if inputs is not None else {}
    twice = sorted(given.keys() & shapes.keys())
    if twice:
        raise UserError(f"the input {twice[0]!r} is given twice: by shape and by value")
    generator = torch.Generator().manual_seed(seed)
    return given | {name: _made(parse_input_spec(name, text), generator) for name, text in shapes.items()}


def suggested_shapes(module: nn.Module) -> tuple[tuple[str, str], ...]:
    """A guess at a module's inputs: name and shape of each that it requires, from the first layer with weights."""
    parameters = inspect.signature(module.forward).parameters.values()
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    required = [p.name for p in parameters if p.kind in kinds and p.default is inspect.Parameter.empty]
    # Library models give every input a default; they say which one is theirs.
    main = getattr(module, "main_input_name", None)
    names = required or ([main] if isinstance(main, str) else [p.name for p in parameters if p.kind in kinds][:1])
    shape = next((s for m in module.modules() if (s := _taken_by(m)) is not None), f"1x{_SEQUENCE}")
    return tuple((name, f"1x{_SEQUENCE}:int64[1..1]" if "mask" in name else shape) for name in names)


def _taken_by(layer: nn.Module) -> str | None:
    """The shape that a layer with weights takes."""
    if isinstance(layer, nn.Embedding | nn.EmbeddingBag):
        return f"1x{_SEQUENCE}:int64[0..{layer.num_embeddings - 1}]"
    if isinstance(layer, nn.Linear):
        return f"1x{layer.in_features}"
    if isinstance(layer, nn.modules.conv._ConvNd):
        axes = len(layer.kernel_size)
        return "x".join(map(str, (1, layer.in_channels, *[_IMAGE if axes == 2 else 4 * _SEQUENCE] * axes)))
    if isinstance(layer, nn.RNNBase):
        return f"1x{_SEQUENCE}x{layer.input_size}"
    if isinstance(layer, nn.LayerNorm):
        return "x".join(map(str, (1, _SEQUENCE, *layer.normalized_shape)))
    if isinstance(layer, nn.modules.batchnorm._BatchNorm):
        axes = {nn.BatchNorm1d: 0, nn.BatchNorm2d: 2, nn.BatchNorm3d: 3}.get(type(layer), 0)
        return "x".join(map(str, (1, layer.num_features, *[_SEQUENCE] * axes)))
    return None


def _made(spec: InputSpec, generator: torch.Generator) -> Tensor:
    dtype: torch.dtype = getattr(torch, spec.dtype)
    if dtype.is_floating_point or dtype.is_complex:
        made = torch.randn(
            spec.sizes, generator=generator, dtype=torch.complex64 if dtype.is_complex else torch.float32
        )
        return made.to(dtype)
    return torch.randint(spec.low, spec.high + 1, spec.sizes, generator=generator).to(dtype)


def _stored(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ModelNotFound(f"no file {path}", hint="numpy.savez('inputs.npz', x=..., mask=...) writes one")
    try:
        _require_no_bomb(path)
        # Arrays of objects are pickles; they stay unread.
        with np.load(path, allow_pickle=False) as arrays:
            found: dict[str, Any] = {name: arrays[name] for name in arrays.files}
        return {name: _tensor(name, value) for name, value in found.items()}
    except Exception as error:
        # NumPy, zipfile and the unpackers raise whatever a damaged file provokes, bare OSErrors too.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise MalformedModel(
            f"{path.name} is no .npz file of plain arrays",
            why=_why_not(error),
            hint="numpy.savez('inputs.npz', x=..., mask=...) writes one",
        ) from error


def _require_no_bomb(path: Path) -> None:
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(member.file_size for member in archive.infolist())
    if unpacked > max(_MOST_UNPACKED_BYTES, _MOST_EXPANSION * path.stat().st_size):
        raise ValueError(f"it would unpack to {unpacked:,} bytes, more than {_MOST_EXPANSION} times its size")


def _why_not(error: Exception) -> str:
    """NumPy's words where they say something, and do not advise to read pickles."""
    first = next(iter(str(error).splitlines()), "")
    if "pickle" in first:
        return "it holds Python objects, which are pickles and stay unread"
    if not first or isinstance(error, TypeError | AttributeError):
        return "it holds no arrays by name"
    return printable(first, _MOST_WHY)


def _tensor(name: str, value: Any) -> Tensor:
    """A NumPy array as a tensor; members of a zip file that are no arrays come as bytes."""
    array = np.asarray(value, order="C") if isinstance(value, np.ndarray) else None
    if array is None or array.dtype.kind not in "fiubc":
        what = "no array" if array is None else f"an array of {array.dtype}, not of numbers"
        raise ValueError(f"{printable(name)} is {what}")
    return torch.from_numpy(array)
