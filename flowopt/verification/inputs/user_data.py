"""The user's own data as cases: the only numbers that they are sure to care about."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from flowopt.errors import ModelNotFound, UserError
from flowopt.formats.printable import printable
from flowopt.ir.metadata import recorded_tensor
from flowopt.program.interface import TensorSpec
from flowopt.program.loading.npz import read_npz
from flowopt.program.program import Program
from flowopt.verification.inputs.case import Case
from flowopt.verification.inputs.lossless import STORED_AS, lossless

OVERRIDE_PREFIX: Final = "override."
_SUFFIX: Final = ".npz"
_MOST_NAME: Final = 255
_MOST_NAMES: Final = 8
_HOW: Final = "numpy.savez('inputs.npz', x=..., mask=...) writes one case; a folder of such files holds several"


def user_cases(program: Program, data: Path | Mapping[str, Tensor]) -> Iterator[Case]:
    """One case per file, called ``data:<file name>``, read when it is asked for.

    Files of a folder come in natural order (``case2`` before ``case10``); others than ``.npz``, hidden ones and inner
    folders are passed over. State that a file leaves out takes its stored value. Arrays ``override.<node name>`` take
    the place of nodes; ``save_reproducer`` writes them.

    Args:
        program: whose inputs they are, by name. A dtype may differ where no value changes: int32 for int64 always,
            float32 for bfloat16 when bfloat16 holds every value. The sizes of free dimensions are found in the shapes.
        data: a ``.npz`` file, a folder of them, or the tensors of one case.

    Raises:
        ModelNotFound: no such file or folder.
        UserError: a folder without ``.npz`` files; and, when its case is asked for, a file whose arrays do not fit.
        MalformedModel: when its case is asked for, a file that holds no plain arrays.
    """
    if isinstance(data, Mapping):
        return iter((_Fitting(program, "inputs").case(data),))
    return (_Fitting(program, printable(file.name, _MOST_NAME)).case(read_npz(file)) for file in _files(data))


def _files(path: Path) -> list[Path]:
    shown = printable(str(path), _MOST_NAME)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise ModelNotFound(f"no file or folder {shown}", hint=_HOW)
    found = [f for f in path.iterdir() if f.suffix.lower() == _SUFFIX and f.is_file() and not f.name.startswith(".")]
    if not found:
        raise UserError(f"the folder {shown} holds no {_SUFFIX} file", hint=_HOW)
    return sorted(found, key=lambda file: (_natural(file.name), file.name))


def _natural(name: str) -> list[tuple[str, int]]:
    """Digits count as one number. Text and numbers alternate, so that two names compare like with like."""
    parts = re.split(r"(\d+)", name)
    return [("", int(part)) if i % 2 else (part.casefold(), 0) for i, part in enumerate(parts)]


class _Fitting:
    """Arrays of one file, made to fit the inputs of a program."""

    def __init__(self, program: Program, name: str) -> None:
        self._program = program
        self._name = name
        interface = program.interface
        self._dims = interface.dims
        self._specs = {spec.name: spec for spec in interface.inputs}

    def case(self, arrays: Mapping[str, Tensor]) -> Case:
        given = {n: t for n, t in arrays.items() if not n.startswith(OVERRIDE_PREFIX)}
        replaced = {n.removeprefix(OVERRIDE_PREFIX): t for n, t in arrays.items() if n not in given}
        self._require_names(given)
        stored = {i.name: self._program.tensors[i.state] for i in self._program.inputs if i.state is not None}
        inputs = {n: self._cast(n, given[n], s.dtype) if n in given else stored[n] for n, s in self._specs.items()}
        sizes = self._sizes(inputs)
        overrides = {n: self._override(n, tensor, sizes) for n, tensor in replaced.items()}
        label = f"data:{self._name}"
        return Case(label, sizes, inputs, overrides, regime="data", is_natural=not overrides)

    def _require_names(self, given: Mapping[str, Tensor]) -> None:
        unknown = sorted(given.keys() - self._specs.keys())
        missing = [n for n, spec in self._specs.items() if spec.state is None and n not in given]
        problems = [f"arrays that are no inputs: {_listed(unknown)}"] if unknown else []
        problems += [f"missing inputs: {_listed(missing)}"] if missing else []
        if problems:
            raise self._refusal("; ".join(problems))

    def _cast(self, name: str, value: Tensor, dtype: torch.dtype) -> Tensor:
        cast = lossless(value, dtype)
        if cast is not None:
            return cast
        found, wanted = (str(d).removeprefix("torch.") for d in (value.dtype, dtype))
        if (value.is_floating_point(), value.is_complex()) != (dtype.is_floating_point, dtype.is_complex):
            raise self._refusal(f"{printable(name)} is {found}, but the model takes {wanted}")
        raise self._refusal(
            f"{printable(name)} is {found}, the model takes {wanted}, and some of its values do not exist in {wanted}",
            hint=_rounding(dtype),
        )

    def _sizes(self, inputs: Mapping[str, Tensor]) -> dict[str, int]:
        """Size of every free dimension, once all shapes fit."""
        found: dict[str, tuple[int, str]] = {}
        for name, spec in self._specs.items():
            shape = inputs[name].shape
            if len(shape) != len(spec.shape):
                raise self._refusal(f"{name} has {len(shape)} axes, but the model takes {len(spec.shape)}", spec)
            for axis, (size, wanted) in enumerate(zip(shape, spec.shape, strict=True)):
                where = f"axis {axis} of {name}"
                if isinstance(wanted, int) and size != wanted:
                    raise self._refusal(f"{where} is {size}, but the model takes {wanted}", spec)
                if isinstance(wanted, str) and wanted in self._dims:
                    known, first = found.setdefault(wanted, (size, where))
                    if known != size:
                        raise self._refusal(f"{wanted!r} is {known} at {first} and {size} at {where}")
                    self._require_in_range(wanted, size, where)
        sizes = {d.name: found[d.name][0] for d in self._program.dims}
        for name, tensor in inputs.items():
            self._require_shape(name, name, tensor, sizes)
        return sizes

    def _require_in_range(self, dim: str, size: int, where: str) -> None:
        low, high = self._dims[dim]
        if size < low or (high is not None and size > high):
            allowed = f"{low} to {high}" if high is not None else f"{low} or more"
            raise self._refusal(f"{where} is {size}, but the model takes {allowed} for {dim!r}")

    def _override(self, name: str, value: Tensor, sizes: Mapping[str, int]) -> Tensor:
        nodes = {node.name: node for node in self._program.graph.nodes}
        recorded = recorded_tensor(nodes[name]) if name in nodes else None
        if recorded is None:
            raise self._refusal(f"{printable(OVERRIDE_PREFIX + name)} names no tensor inside the model")
        self._require_shape(name, OVERRIDE_PREFIX + name, value, sizes)
        return self._cast(OVERRIDE_PREFIX + name, value, recorded.dtype)

    def _require_shape(self, node: str, name: str, value: Tensor, sizes: Mapping[str, int]) -> None:
        """Derived sizes (``2*batch``) are checked too; those of no named dimension, or of data, cannot be."""
        recorded = recorded_tensor(self._program.node(node))
        assert recorded is not None
        try:
            wanted = self._program.concrete_shape(recorded, sizes)
        except TypeError:
            return
        if tuple(value.shape) != wanted:
            raise self._refusal(f"{name} is {list(value.shape)}, but at these sizes the model takes {list(wanted)}")

    def _refusal(self, message: str, spec: TensorSpec | None = None, hint: str = "") -> UserError:
        takes = "; ".join(map(str, [spec] if spec is not None else self._specs.values()))
        return UserError(f"{self._name}: {message}", hint=hint or f"the model takes {takes}")


def _listed(names: list[str]) -> str:
    shown = ", ".join(map(printable, names[:_MOST_NAMES]))
    return f"{shown} and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else shown


def _rounding(dtype: torch.dtype) -> str:
    """How to round an array to a dtype and store it."""
    name = str(dtype).removeprefix("torch.")
    if not (dtype.is_floating_point or dtype.is_complex):
        return ""
    if dtype not in STORED_AS:
        return f"round them first: x.astype('{name}')"
    wider = str(STORED_AS[dtype]).removeprefix("torch.")
    return f"round them first: torch.from_numpy(x).to(torch.{name}).to(torch.{wider}).numpy()"
