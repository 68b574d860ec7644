"""Runs one operator on images through the kernels for the CPU, and says which schedules it took."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor


def tensor(seed: int, *shape: int) -> Tensor:
    """Normal random values."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def relative_error(found: Tensor, wanted: Tensor) -> float:
    """The largest error over the largest value wanted."""
    assert found.shape == wanted.shape
    return float((found.double() - wanted).abs().max() / wanted.abs().max())


@dataclass(frozen=True, slots=True)
class Kernels:
    """An operator's compiled kernels.

    Args:
        machine: the virtual machine that runs them.
        scheduled: for each kernel of the module, in order, the name of the schedule it took, or none.
        made: the module they are compiled to.
    """

    machine: Any
    scheduled: dict[str, str]
    made: Any

    def __call__(self, *arguments: Tensor) -> Tensor:
        """The operator's result."""
        import tvm

        device = tvm.cpu()
        result = self.machine["main"](*(tvm.runtime.tensor(a.contiguous().numpy(), device) for a in arguments))
        return torch.from_numpy(result.numpy())


def kernels(
    operator: Callable[..., Any],
    arguments: Sequence[Tensor],
    free: Sequence[int] = (),
    processor: str | None = None,
    **options: Any,
) -> Kernels:
    """Compiles ``operator(*arguments, **options)``, of relax expressions.

    Args:
        operator: makes the relax expression.
        arguments: examples; their shapes and dtypes are those of the parameters.
        free: the dimensions of the first argument that are symbolic.
        processor: LLVM's name of the processor to compile for; this one's where it is not given.
        options: passed to the operator.
    """
    tvm = pytest.importorskip("tvm")
    from tvm import relax, s_tir, tirx
    from tvm.target import codegen

    from flowopt.lowering.tvm.cpu.aliases import kernels_without_aliases
    from flowopt.lowering.tvm.cpu.convolution import LEGALIZATIONS
    from flowopt.lowering.tvm.cpu.convolution_rule import schedule_convolution
    from flowopt.lowering.tvm.cpu.pooling_rule import schedule_pooling

    target = tvm.target.Target({"kind": "llvm", "mcpu": processor or codegen.llvm_get_system_cpu()})
    with target:
        module = tvm.transform.Sequential(
            [
                relax.transform.LegalizeOps(customize_legalize_map=LEGALIZATIONS),
                relax.transform.AnnotateTIROpPattern(),
                relax.transform.FuseOps(),
                relax.transform.FuseTIR(),
                relax.transform.DeadCodeElimination(),
            ]
        )(_module(operator, arguments, free, options))
    scheduled = {}
    for variable, function in module.functions_items():
        if not isinstance(function, tirx.PrimFunc):
            continue
        for rule in (schedule_convolution, schedule_pooling):
            schedule = s_tir.Schedule(function)
            if rule(schedule, target):
                module[variable] = schedule.mod["main"]
                scheduled[variable.name_hint] = rule.__name__
                break
        else:
            scheduled[variable.name_hint] = ""
    with target:
        lowered = tvm.transform.Sequential([relax.get_default_pipeline(target), kernels_without_aliases()])
    executable = tvm.compile(module, target=target, relax_pipeline=lowered)
    return Kernels(relax.VirtualMachine(executable, tvm.cpu()), scheduled, executable.mod)


def _module(operator: Any, arguments: Sequence[Tensor], free: Sequence[int], options: dict[str, Any]) -> Any:
    from tvm import relax, tirx

    builder = relax.BlockBuilder()
    parameters = []
    for position, argument in enumerate(arguments):
        shape: list[Any] = list(argument.shape)
        for dimension in free if position == 0 else ():
            shape[dimension] = tirx.Var(f"size_{dimension}", "int64")
        dtype = str(argument.dtype).removeprefix("torch.")
        parameters.append(relax.Var(f"argument_{position}", relax.TensorType(shape, dtype)))
    with builder.function("main", parameters):
        with builder.dataflow():
            result = builder.emit_output(operator(*parameters, **options))
        builder.emit_func_output(result)
    return builder.get()
