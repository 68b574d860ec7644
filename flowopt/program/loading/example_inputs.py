"""Example inputs for a module: from shapes, from a file, or a guess to start from."""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

from flowopt.errors import UserError
from flowopt.program.loading.input_spec import InputSpec, parse_input_spec
from flowopt.program.loading.npz import read_npz

Inputs = str | Path | Mapping[str, Tensor]
_SEQUENCE: Final = 16
_IMAGE: Final = 224


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
    given = dict(inputs) if isinstance(inputs, Mapping) else read_npz(Path(inputs)) if inputs is not None else {}
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
