"""The operators that are legalised to kernels of their own; every other one keeps TVM's legalisation."""

from collections.abc import Callable
from typing import Any

from flowopt.lowering.tvm.cpu.convolution import LEGALIZATIONS as CONVOLUTIONS
from flowopt.lowering.tvm.cpu.norms import layer_norm, rms_norm, softmax
from flowopt.lowering.tvm.cpu.products import matmul

LEGALIZATIONS: dict[str, Callable[[Any, Any], Any]] = {
    "relax.matmul": matmul,
    "relax.nn.layer_norm": layer_norm,
    "relax.nn.rms_norm": rms_norm,
    "relax.nn.softmax": softmax,
    **CONVOLUTIONS,
}
