"""Every kernel gets a schedule, whatever its axes, and other processors get theirs."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.lowering.tvm.cpu_modules import kernels_of, module_of, numbers, require_close, runner

FLOAT = "float32"
Case = tuple[Callable[[Any, Any], Any], Callable[[np.ndarray], np.ndarray]]

CASES: dict[str, Case] = {
    "transpose": (lambda op, x: op.permute_dims(x, [2, 0, 1]), lambda x: x.transpose(2, 0, 1)),
    "sum of the middle": (lambda op, x: op.sum(x, axis=[1]), lambda x: x.sum(1)),
    "mean of the last": (lambda op, x: op.mean(x, axis=[-1], keepdims=True), lambda x: x.mean(-1, keepdims=True)),
    "largest of all": (lambda op, x: op.max(x), lambda x: x.max()),
    "index of the largest": (lambda op, x: op.argmax(x, axis=-1), lambda x: x.argmax(-1)),
    "running sum": (lambda op, x: op.cumsum(x, axis=1), lambda x: x.cumsum(1)),
    "concatenation": (lambda op, x: op.concat([x, x], axis=1), lambda x: np.concatenate([x, x], 1)),
    "elementwise": (lambda op, x: op.add(op.multiply(x, x), x), lambda x: x * x + x),
    "softmax of the middle": (
        lambda op, x: op.nn.softmax(x, axis=1),
        lambda x: np.exp(x) / np.exp(x).sum(1, keepdims=True),
    ),
}


def _module(name: str, shape: tuple[int | str, ...]) -> Any:
    from tvm import relax

    return module_of(lambda x: CASES[name][0](relax.op, x), [(shape, FLOAT)])


@pytest.mark.parametrize("name", CASES)
def test_free_and_fixed_extents_agree_with_float64(name: str) -> None:
    x = numbers(3, 37, 48)
    exact = np.asarray(CASES[name][1](x.astype(np.float64)))
    for shape in ((3, 37, 48), ("a", "b", "c")):
        require_close(runner(_module(name, shape))(x), exact, 2e-6)  # 48 additions in a chain


# TVM scans in a kernel without blocks, which stays as it is.
@pytest.mark.parametrize("name", [name for name in CASES if name != "running sum"])
def test_every_kernel_is_scheduled(name: str) -> None:
    kernels = kernels_of(_module(name, ("a", "b", 48)))
    assert kernels and all(kernel.attrs["tirx.is_scheduled"] for kernel in kernels.values())


@pytest.mark.parametrize(
    ("target", "register"),
    [
        ({"kind": "llvm", "mcpu": "znver4"}, "zmm"),
        ({"kind": "llvm", "mcpu": "haswell"}, "ymm"),
        ({"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mattr": ["+neon"]}, "fmla"),
    ],
)
def test_tiles_use_the_vectors_of_the_target(target: dict[str, Any], register: str) -> None:
    import tvm

    from flowopt.lowering.tvm.cpu.pipeline import compiled_for_cpu, scheduled_for_cpu

    module = module_of(lambda x, w: tvm.relax.op.matmul(x, w), [(("rows", 32), FLOAT)], [(32, 64)])
    made = tvm.target.Target(target)
    library = compiled_for_cpu(scheduled_for_cpu(module, made), made).mod.imports[0]
    assert register in library.inspect_source("s")
