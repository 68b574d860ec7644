"""What belongs to the caller, in digests: to see that a pass left it alone, and to name what it did not."""

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from flowopt.ir.text import graph_text
from flowopt.program.program import Program
from flowopt.testing.captured import Inputs, Model

Digest = Mapping[str, str]
_PLAIN = (bool, int, float, str, type(None))
# Modules keep these under names of their own; what they hold is known by its name alone.
_NAMELESS = ("_parameters", "_buffers")


def digest(model: Model, inputs: Inputs = ()) -> Digest:
    """Name of each thing to the digest of its content.

    Of a module: parameters, buffers (persistent or not), tensors in attributes, and plain attributes such as
    ``training``. Of a program: graph, interface, stored tensors and example inputs.
    """
    found = _of_program(model) if isinstance(model, Program) else _of_module(model)
    return dict(found) | dict(_inside("input", inputs))


def changed(before: Digest, after: Digest) -> tuple[str, ...]:
    """Names of what came, went or has other content."""
    return tuple(name for name in dict.fromkeys([*before, *after]) if before.get(name) != after.get(name))


def _of_program(program: Program) -> Iterator[tuple[str, str]]:
    yield "the graph", _of_text(graph_text(program.graph))
    yield "the interface", _of_text(f"{program.inputs} {program.outputs} {program.dims}")
    for name, tensor in program.tensors.items():
        yield name, _of_tensor(tensor)
    yield from _inside("example", program.example)


def _of_module(model: nn.Module) -> Iterator[tuple[str, str]]:
    for path, module in model.named_modules():
        prefix = f"{path}." if path else ""
        for attribute, value in vars(module).items():
            if attribute in _NAMELESS:
                yield from ((prefix + name, _of_tensor(t)) for name, t in value.items() if t is not None)
            elif isinstance(value, _PLAIN):
                yield prefix + attribute, _of_text(repr(value))
            else:
                yield from _inside(prefix + attribute, value)


def _inside(name: str, value: Any) -> Iterator[tuple[str, str]]:
    """Tensors in nested lists, tuples and dictionaries."""
    if isinstance(value, Tensor):
        yield name, _of_tensor(value)
    elif isinstance(value, Mapping):
        for key, element in value.items():
            yield from _inside(f"{name}[{key!r}]", element)
    elif isinstance(value, (list, tuple)):
        for index, element in enumerate(value):
            yield from _inside(f"{name}[{index}]", element)


def _of_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _of_tensor(tensor: Tensor) -> str:
    found = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)} {tensor.requires_grad}".encode())
    if not tensor.is_meta:
        value = tensor.detach().resolve_conj().resolve_neg()
        value = value if value.layout is torch.strided else value.to_dense()
        found.update(value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
