"""Programs imported, compiled by TVM's plain pipeline, and compared with eager torch and with float64."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flowopt.ir.float64 import raised_tensor
from flowopt.program.capture import capture
from flowopt.program.program import Program


class Function(nn.Module):
    """A function of tensors as a module."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor, y: Tensor | None = None) -> Any:
        return self.function(x) if y is None else self.function(x, y)


def captured(
    function: Callable[..., Any] | nn.Module, *inputs: Tensor, free: Mapping[str, Any] | None = None, dims: Any = None
) -> Program:
    """A function or module as a program; ``free`` maps ``x`` and ``y`` to free axes."""
    module = function if isinstance(function, nn.Module) else Function(function)
    return capture(module, inputs, dynamic=free, dims=dims, eval_mode=True)


def compiled(program: Program) -> Callable[[Mapping[str, Tensor]], dict[str, Tensor]]:
    """The program as TVM runs it: inputs by name to outputs by name."""
    tvm = pytest.importorskip("tvm")
    from flowopt.lowering.tvm.imported import imported

    found = imported(program)
    target = tvm.target.Target({"kind": "llvm", "opt-level": 1})
    machine = tvm.relax.VirtualMachine(tvm.compile(found.module, target=target), tvm.cpu())

    def run(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        tensors = [*(inputs[i.name] for i in program.inputs), *(program.tensors[name] for name in found.parameters)]
        results = machine["main"](*(tvm.runtime.from_dlpack(t.detach().clone()) for t in tensors))
        return {o.name: torch.utils.dlpack.from_dlpack(r) for o, r in zip(program.outputs, results, strict=True)}

    return run


def require_equivalent(program: Program, *inputs: Sequence[Tensor]) -> None:
    """Every output like torch's: integers and infinities equal, floating ones as near to float64 as eager is.

    Sixteen times eager's error, and a millionth of the scale (for half precision, a rounding of it).
    """
    run, twin = compiled(program), program.raised_copy()
    for given in inputs:
        bound = program.bind(tuple(given), {})
        eager, exact, found = program.run_named(bound), twin.run_named(raised(bound)), run(bound)
        for name, wanted in eager.items():
            require_near(found[name], wanted, exact[name], name)


def raised(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inputs of the float64 twin."""
    return {name: raised_tensor(tensor) for name, tensor in inputs.items()}


class Cases(nn.Module):
    """Many functions as one program, which is captured and compiled once."""

    def __init__(self, cases: Mapping[str, tuple[Callable[..., Any], tuple[Tensor, ...]]]) -> None:
        super().__init__()
        self.cases = cases
        self.parts = nn.ModuleList(f for f, _ in cases.values() if isinstance(f, nn.Module))

    def forward(self, *inputs: Tensor) -> Any:
        left, made = list(inputs), {}
        for k, (function, own) in enumerate(self.cases.values()):
            made[f"case{k}"] = function(*(left.pop(0) for _ in own))
        return made


def results(cases: Mapping[str, tuple[Callable[..., Any], tuple[Tensor, ...]]]) -> dict[str, list[tuple[Tensor, ...]]]:
    """Of every case its outputs: as TVM, eager torch and float64 give them."""
    inputs = [x for _, own in cases.values() for x in own]
    program = captured(Cases(cases), *inputs)
    bound = program.bind(tuple(inputs), {})
    eager, exact = program.run_named(bound), program.raised_copy().run_named(raised(bound))
    found = compiled(program)(bound)
    collected: dict[str, list[tuple[Tensor, ...]]] = {name: [] for name in cases}
    names = list(cases)
    for output in eager:
        case = names[int(output.split(".")[0].removeprefix("case"))]
        collected[case].append((found[output], eager[output], exact[output]))
    return collected


def require_near(found: Tensor, eager: Tensor, exact: Tensor, name: str) -> None:
    """One output; see ``require_equivalent``."""
    assert (found.dtype, found.shape) == (eager.dtype, eager.shape), name
    if not eager.is_floating_point():
        assert torch.equal(found, eager), f"{name}: {found} is not {eager}"
        return
    finite = eager.isfinite()
    assert torch.equal(found[~finite].nan_to_num(7.0), eager[~finite].nan_to_num(7.0)), (
        f"{name}: {found} is not {eager}"
    )
    if not finite.any():
        return
    scale = float(exact[finite].abs().max())
    rounding = max(1e-6, torch.finfo(eager.dtype).eps)
    allowed = 16 * float((eager - exact)[finite].abs().max()) + rounding * scale
    error = float((found - exact)[finite].abs().max())
    assert error <= allowed, f"{name}: off by {error:.3g}, allowed {allowed:.3g}"
