"""Targets: what an artifact is built for."""

from dataclasses import dataclass
from typing import Literal

from flowopt.errors import UserError
from flowopt.runtime.layout import ONNX_MODEL, TORCH_MODEL


@dataclass(frozen=True, slots=True)
class Target:
    """A backend, a device and a precision, and the name of the model file that they need."""

    name: str
    backend: Literal["onnx", "torch"]
    device: Literal["cpu", "cuda"]
    model_name: str
    precision: Literal["fp32", "fp16", "bf16"] = "fp32"


TARGETS: dict[str, Target] = {
    "cpu": Target("cpu", "onnx", "cpu", ONNX_MODEL),
    "cuda": Target("cuda", "onnx", "cuda", ONNX_MODEL),
    "torch": Target("torch", "torch", "cpu", TORCH_MODEL),
}


def target(name: str) -> Target:
    """The target of a name.

    Raises:
        UserError: there is none.
    """
    if name not in TARGETS:
        raise UserError(f"no target {name!r}", hint=f"use one of {', '.join(TARGETS)}")
    return TARGETS[name]
