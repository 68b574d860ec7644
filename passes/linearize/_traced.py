"""A stand-in for softmax attention as a program, for the values of one site."""

import copy
import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor, fx, nn

from flowopt.ir.metadata import recorded_tensor
from flowopt.ops.attention.in_place_of_softmax import InPlaceOfSoftmax
from flowopt.ops.attention.linear_form import AttentionShape
from flowopt.program.capture_freely import capture_freely
from flowopt.program.program import Program

_PLAIN = (int, float, str, type(None), torch.dtype, AttentionShape)


def traced(leaf: InPlaceOfSoftmax, inputs: Mapping[str, fx.Node], known: dict[str, Program]) -> Program:
    """The program of a leaf whose inputs are as free as the nodes that it will be given.

    Args:
        leaf: left as it is.
        inputs: node by name of the leaf's argument.
        known: programs of leaves that differ in tensors alone are one; what is traced here is added.
    """
    description = _description(leaf, inputs)
    if description not in known:
        known[description] = _captured(leaf, inputs)
    program = known[description]
    own = dict(leaf.named_parameters(remove_duplicate=False)) | dict(leaf.named_buffers(remove_duplicate=False))
    tensors = {name: own.get(name, tensor).detach() for name, tensor in program.tensors.items()}
    return dataclasses.replace(program, tensors=tensors)


def _captured(leaf: InPlaceOfSoftmax, inputs: Mapping[str, fx.Node]) -> Program:
    longest = 3 * leaf.linear.chunk + 1
    sizes: dict[str, int] = {}
    example: dict[str, Tensor] = {}
    free: dict[str, list[int]] = {}
    for argument, node in inputs.items():
        value = recorded_tensor(node)
        assert value is not None  # checked of every site
        free[argument] = [axis for axis, size in enumerate(value.shape) if not isinstance(size, int)]
        for axis in free[argument]:
            # Sizes that are named differently differ: export takes equal ones for one.
            sizes.setdefault(str(value.shape[axis]), 3 + len(sizes) if axis == 0 else longest + 2 * len(sizes))
        shape = [size if isinstance(size, int) else sizes[str(size)] for size in value.shape]
        # The leaf is traced with them, and computes nothing.
        example[argument] = torch.zeros(shape, dtype=value.dtype, device=value.device)
    # The graph says on which device it makes tensors; a leaf may have been trained on another.
    return capture_freely(copy.deepcopy(leaf).to(example["query"].device), example, free)


def _description(leaf: InPlaceOfSoftmax, inputs: Mapping[str, fx.Node]) -> str:
    """All that the graph depends on: classes and settings of modules, shapes of tensors, its own and given ones."""
    parts = [f"{name}: {_settings(module)}" for name, module in leaf.named_modules()]
    for name, tensor in (*leaf.named_parameters(), *leaf.named_buffers()):
        parts.append(f"{name}: {tensor.dtype} {tuple(tensor.shape)}")
    for argument, node in inputs.items():
        value = recorded_tensor(node)
        assert value is not None  # checked of every site
        parts.append(f"{argument}: {value.dtype} {value.device} {list(map(str, value.shape))}")
    return "\n".join(parts)


def _settings(module: nn.Module) -> str:
    own = {name: value for name, value in vars(module).items() if name not in vars(nn.Module())}
    # What has no plain text is told by what it is: another module's is another.
    told = {name: repr(value) if isinstance(value, _PLAIN) else id(value) for name, value in own.items()}
    return f"{type(module).__module__}.{type(module).__qualname__} {told}"
