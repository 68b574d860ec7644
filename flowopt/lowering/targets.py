"""Targets: what an artifact is built for."""

from dataclasses import dataclass, replace
from typing import Literal

from flowopt.errors import UserError
from flowopt.runtime.layout import ONNX_MODEL, TORCH_MODEL, TVM_MODEL


@dataclass(frozen=True, slots=True)
class Target:
    """A backend, a device and a precision, and the name of the model file that they need.

    Attributes:
        arch: of compilers: the CUDA architecture, or the processor as LLVM names it; None: this machine's processor.
    """

    name: str
    backend: Literal["onnx", "torch", "tvm"]
    device: Literal["cpu", "cuda"]
    model_name: str
    precision: Literal["fp32", "fp16", "bf16"] = "fp32"
    arch: str | None = None


TARGETS: dict[str, Target] = {
    "cpu": Target("cpu", "onnx", "cpu", ONNX_MODEL),
    "cuda": Target("cuda", "onnx", "cuda", ONNX_MODEL),
    "torch": Target("torch", "torch", "cpu", TORCH_MODEL),
    "tvm": Target("tvm", "tvm", "cpu", TVM_MODEL),
    "tvm-cuda": Target("tvm-cuda", "tvm", "cuda", TVM_MODEL),
}


def target(name: str, arch: str | None = None) -> Target:
    """The target of a name, for an architecture where it compiles for one.

    Raises:
        UserError: there is none, it takes no architecture, or needs one.
    """
    if name not in TARGETS:
        raise UserError(f"no target {name!r}", hint=f"use one of {', '.join(TARGETS)}")
    found = TARGETS[name]
    if arch is not None and found.backend != "tvm":
        raise UserError(f"--arch {arch} is for --target tvm and tvm-cuda: {name} compiles for no architecture")
    if name == "tvm-cuda" and arch is None:
        raise UserError(
            "--target tvm-cuda compiles for one architecture, and none was given",
            hint="--arch sm_90 (H100, H200), sm_89 (L4, RTX 40), sm_80 (A100), sm_75 (T4)",
            retry=(("--arch", "sm_90"),),
        )
    return found if arch is None else replace(found, arch=arch)
