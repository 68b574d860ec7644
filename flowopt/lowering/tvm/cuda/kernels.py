"""Every function of a module becomes kernels that a GPU can launch."""

import math
from collections.abc import Iterator
from typing import Any

import tvm
import tvm_ffi
from tvm import tirx
from tvm.ir import Expr
from tvm.s_tir.dlight import gpu

from flowopt.errors import InternalError
from flowopt.lowering.tvm.cuda.architecture import MAX_THREADS, PRIVATE_BYTES, SHARED_BYTES

# In this order; the last takes everything whose loops it can bind, one thread for each element.
_RULES: tuple[Any, ...] = (
    gpu.Matmul(),
    gpu.GEMV(),
    gpu.Reduction(),
    gpu.GeneralReduction(),
    gpu.Transpose(),
    gpu.Fallback(),
)

# How TVM's rules, and the lowering of what they make, say that a function is not theirs.
_REFUSALS = (RuntimeError, ValueError, TypeError, AttributeError, AssertionError, LookupError)


def with_kernels(module: Any, target: Any) -> Any:
    """The module with each of its loop nests bound to blocks and threads.

    TVM applies the first rule that takes a function. Some take what they then cannot schedule, and some make kernels
    with more shared memory than a GPU has. Here a rule's kernels have to be launchable, or the next rule is asked.

    Args:
        module: an ``IRModule`` after operators were fused.
        target: of ``cuda_target``.

    Raises:
        InternalError: no rule makes kernels of a function.
    """
    scheduled = {}
    for name, function in module.functions_items():
        if not isinstance(function, tirx.PrimFunc):
            continue
        made = next(_launchable(function, target, () if _is_scheduled(function) else _RULES), None)
        if made is None:
            raise InternalError(
                f"no schedule makes GPU kernels of {name.name_hint}",
                why=f"it computes\n{function.script()[:2000]}",
                hint="--target cuda (ONNX Runtime) for this model",
            )
        scheduled[name] = made.with_attr("tirx.is_scheduled", True)
    for name, function in scheduled.items():
        module[name] = function
    return module


def _is_scheduled(function: Any) -> bool:
    return bool(function.attrs is not None and function.attrs.get("tirx.is_scheduled", False))


def _launchable(function: Any, target: Any, rules: tuple[Any, ...]) -> Iterator[Any]:
    """What each rule makes of a function, and what it is without them, where it can be launched."""
    for rule in rules:
        made = _applied(rule, function, target)
        if made is not None:
            yield from _sound(made, target)
    # Scatters, sorts and scans launch threads themselves.
    yield from _sound(function, target)


def _applied(rule: Any, function: Any, target: Any) -> Any:
    try:
        made = rule.apply(function, target, False)
    except _REFUSALS:
        return None
    return None if made is None else made.mod["main"]


def _sound(kernels: Any, target: Any) -> Iterator[Any]:
    lowered = _lowered(kernels, target)
    if lowered is not None and _compares_vectors(lowered):
        # TVM writes a vector of comparisons as integers where CUDA wants one condition for each element.
        kernels = tirx.transform.VectorizeLoop(False)(tvm.IRModule({"main": kernels}))["main"]
        lowered = _lowered(kernels, target)
    if lowered is None or _computes_on_host(lowered):
        return
    if all(_is_within_limits(kernel) for kernel in _kernels(lowered)):
        yield kernels


def _lowered(function: Any, target: Any) -> Any:
    """The host's function and the kernels that it launches; None where TVM cannot lower them."""
    module = tvm.IRModule({"main": function.with_attr("global_symbol", "main")})
    lower, _, _ = tvm.tirx.get_default_tir_pipeline(target)
    try:
        with target:
            return lower(tirx.transform.BindTarget(target)(module))
    except _REFUSALS:
        return None


def _kernels(module: Any) -> list[Any]:
    return [function for function in module.functions.values() if function.attrs["target"].kind.name == "cuda"]


def _computes_on_host(module: Any) -> bool:
    """Whether a loop is bound to no thread: it would read and write the GPU's memory from the processor.

    TVM's own check, VerifyMemory, does not see it where a buffer was flattened.
    """
    stores: list[Any] = []
    kernels = _kernels(module)
    for function in module.functions.values():
        if function not in kernels:
            tvm_ffi.structural_walk(function.body, (tirx.BufferStore, stores.append), order="post")
    return bool(stores)


def _compares_vectors(module: Any) -> bool:
    found: list[Any] = []

    def visit(expression: Any) -> None:
        if str(expression.ty).startswith("boolx"):
            found.append(expression)

    for kernel in _kernels(module):
        tvm_ffi.structural_walk(kernel.body, (Expr, visit), order="post")
    return bool(found)


def _is_within_limits(kernel: Any) -> bool:
    """Whether the threads of a block and what it allocates are known when it is compiled, and not too many."""
    threads: dict[str, Any] = {}
    allocated: list[tuple[str, Any]] = []

    def visit_attribute(statement: Any) -> None:
        if statement.attr_key == "thread_extent":
            threads[statement.node.thread_tag] = statement.value

    def visit_allocation(statement: Any) -> None:
        buffer = statement.buffer
        size = math.prod(int(extent) if isinstance(extent, tirx.IntImm) else math.inf for extent in buffer.shape)
        allocated.append((buffer.scope(), size * tvm.DataType(str(buffer.dtype)).bits // 8))

    visitors = [(tirx.AttrStmt, visit_attribute), (tirx.AllocBuffer, visit_allocation)]
    tvm_ffi.structural_walk(kernel.body, visitors, order="post")
    sizes = [extent for tag, extent in threads.items() if tag.startswith("threadIdx")]
    shared = sum(size for scope, size in allocated if scope.startswith("shared"))
    private = sum(size for scope, size in allocated if not scope.startswith("shared"))
    return (
        all(isinstance(extent, tirx.IntImm) for extent in sizes)
        and math.prod(int(extent) for extent in sizes) <= MAX_THREADS
        and shared <= SHARED_BYTES
        and private <= PRIVATE_BYTES
    )
