"""Contender: one way to run a model, as a worker process opens it."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Kind = Literal["artifact", "onnxruntime", "eager", "compile", "openvino"]


@dataclass(frozen=True, slots=True)
class Contender:
    """A runtime and what it runs.

    Attributes:
        name: in tables.
        kind: which runner opens it.
        path: artifact folder, ONNX file, archive of ``torch.export``, or ``package.module:factory``.
        is_plain: ONNX Runtime on what torch exports, untouched.
    """

    name: str
    kind: Kind
    path: str
    is_plain: bool = False

    def plain(self) -> dict[str, object]:
        """As a worker is told of it."""
        return dataclasses.asdict(self)

    @staticmethod
    def of(told: Mapping[str, object]) -> "Contender":
        """What ``plain`` told."""
        return Contender(**told)  # type: ignore[arg-type]  # written by plain()
