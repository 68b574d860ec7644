"""Small Relax functions, scheduled for this machine's processor and run."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tvm")

Shape = Sequence[int | str]


def native() -> Any:
    import tvm

    processor = tvm.target.codegen.llvm_get_system_cpu()
    return tvm.target.Target({"kind": "llvm", "mcpu": processor, "num-cores": 2})


def module_of(body: Callable[..., Any], inputs: Sequence[tuple[Shape, str]], parameters: Sequence[Shape] = ()) -> Any:
    """``main(inputs.., parameters..)`` around an expression; extents given as names are free."""
    from tvm import ir, relax, tirx

    names: dict[str, Any] = {}

    def extents(shape: Shape) -> list[Any]:
        return [names.setdefault(e, tirx.Var(e, "int64")) if isinstance(e, str) else e for e in shape]

    given = [relax.Var(f"x{n}", relax.TensorType(extents(s), dtype)) for n, (s, dtype) in enumerate(inputs)]
    stored = [relax.Var(f"w{n}", relax.TensorType(extents(s), "float32")) for n, s in enumerate(parameters)]
    builder = relax.BlockBuilder()
    with builder.function("main", [*given, *stored], attrs={"num_input": len(given)}):
        with builder.dataflow():
            out = builder.emit_output(relax.Tuple([builder.normalize(body(*given, *stored))]))
        builder.emit_func_output(out)
    module = builder.get()
    assert isinstance(module, ir.IRModule)
    return module


def runner(module: Any, weights: Sequence[np.ndarray] = ()) -> Callable[..., np.ndarray]:
    """The module compiled, with these parameters transformed once."""
    import tvm

    from flowopt.lowering.tvm.cpu.pipeline import compiled_for_cpu, scheduled_for_cpu

    machine = tvm.relax.VirtualMachine(compiled_for_cpu(scheduled_for_cpu(module, native()), native()), tvm.cpu())
    stored = [tvm.runtime.tensor(w) for w in weights]
    transformed = list(machine["main_transform_params"](stored)) if stored else []

    def run(*inputs: np.ndarray) -> np.ndarray:
        result: np.ndarray = machine["main"](*(tvm.runtime.tensor(x) for x in inputs), *transformed)[0].numpy()
        return result

    return run


def kernels_of(module: Any) -> Mapping[str, Any]:
    """The kernels that ``main`` calls after scheduling, by name."""
    import tvm

    from flowopt.lowering.tvm.cpu.pipeline import scheduled_for_cpu

    scheduled = scheduled_for_cpu(module, native())
    called: dict[str, Any] = {}

    def visit(expression: Any) -> None:
        if isinstance(expression, tvm.relax.Call) and expression.op == tvm.ir.Op.get("relax.call_tir"):
            called[str(expression.args[0].name_hint)] = scheduled[expression.args[0]]

    tvm.relax.analysis.post_order_visit(scheduled["main"], visit)
    return called


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def require_close(found: np.ndarray, exact: np.ndarray, relative: float) -> None:
    """Largest error against the largest exact value; infinities and NaN in the same places."""
    assert found.shape == exact.shape
    finite = np.isfinite(exact)
    assert np.array_equal(np.isfinite(found), finite)
    error = np.abs(found[finite].astype(np.float64) - exact[finite]).max(initial=0.0)
    assert error <= relative * np.abs(exact[finite]).max(initial=1e-30), error
