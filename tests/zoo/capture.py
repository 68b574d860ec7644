"""Exporting a zoo model, and inputs of other sizes to compare the export with."""

import warnings

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from tests.zoo.inputs import right_padded_mask, token_ids
from tests.zoo.zoo_model import ZooModel


def exported(model: ZooModel) -> ExportedProgram:
    """The functional graph that flowopt works on: exported with the declared dimensions, decomposed by {}."""
    program = undecomposed(model)
    with warnings.catch_warnings():
        # torch copies its own deprecated LeafSpec here; no caller can avoid it.
        warnings.filterwarnings("ignore", message=".*LeafSpec", category=FutureWarning)
        return program.run_decompositions({})


def undecomposed(model: ZooModel) -> ExportedProgram:
    """The graph as people save it: exported with the declared dimensions."""
    # One Dim object a name: two objects would let two inputs disagree on the batch.
    dims = {name: Dim(name, min=low, max=high) for name, (low, high) in model.dims.items()}
    shapes = {
        name: {axis: dims[dim] for axis, dim in model.dynamic[name].items()} if name in model.dynamic else None
        for name in model.kwargs
    }
    return torch.export.export(model.module, (), model.kwargs, dynamic_shapes=shapes, strict=False)


def resized(model: ZooModel, sizes: dict[str, int], seed: int) -> dict[str, Tensor | bool]:
    """Random inputs like the example's, with these sizes of the dynamic dimensions; constants as they are."""
    return {name: resized_input(model, name, value, sizes, seed) for name, value in model.kwargs.items()}


def resized_input(model: ZooModel, name: str, value: Tensor | bool, sizes: dict[str, int], seed: int) -> Tensor | bool:
    if not isinstance(value, Tensor):
        return value
    shape = list(value.shape)
    for axis, dim in model.dynamic.get(name, {}).items():
        shape[axis] = sizes[dim]
    if value.is_floating_point():
        return torch.randn(shape, dtype=value.dtype, generator=torch.Generator().manual_seed(seed))
    if name == "attention_mask":
        return right_padded_mask(*shape)
    batch, sequence = shape
    return token_ids(batch, sequence, int(value.max()) + 1, seed)
