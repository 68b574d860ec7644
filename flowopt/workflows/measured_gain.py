"""Time linear layers of one input, apart and merged, in ONNX Runtime."""

import tempfile
import time
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from flowopt.analysis.linear_group import LinearGroup
from flowopt.lowering.onnx.export import lower_to_onnx
from flowopt.lowering.staging import Staging
from flowopt.passes.merge.merge_parallel_linears import MergeParallelLinears
from flowopt.pipeline.runner import run_passes
from flowopt.program.capture import capture
from flowopt.program.program import Program
from flowopt.runtime.onnx_session import OnnxRunner, open_session

# A call into the runtime costs as much as a small layer: several groups share it, up to so many bytes of weights.
_MOST_GROUPS: Final = 8
_MOST_BYTES: Final = 64 << 20
_ROUND_SECONDS: Final = 2e-3
_MOST_CALLS: Final = 1000


def measured_gain(group: LinearGroup, *, provider: str, threads: int, repeats: int) -> float:
    """Time of the separate layers divided by that of the merged one, of the best of some alternated rounds.

    Both forms are lowered as a build lowers them, with random weights, and run at the runtime's default optimisation
    level. The best round is the one that other work on the machine disturbed least.

    Args:
        group: sizes of the layers.
        provider: ONNX Runtime's name of the device.
        threads: within one operator.
        repeats: rounds of each form.

    Raises:
        UserError: the runtime has no kernel for the layers.
        MissingDependency: onnxruntime is not installed.
    """
    apart, inputs = _program(group)
    merged = run_passes(apart, [MergeParallelLinears(min_gain=0.0)]).program
    runners = [_opened(program, provider, threads) for program in (apart, merged)]
    calls = min(max(1, round(_ROUND_SECONDS / max(_seconds(runners[0], inputs, 1), 1e-9))), _MOST_CALLS)
    best = [float("inf"), float("inf")]
    for _ in range(max(repeats, 1)):
        best = [min(known, _seconds(one, inputs, calls)) for known, one in zip(best, runners, strict=True)]
    return best[0] / best[1]


class _Layers(nn.Module):
    """Some groups of layers, each with an input of its own."""

    def __init__(self, group: LinearGroup, count: int) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(0)

        def stored(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(shape, generator=random).to(group.dtype), requires_grad=False)

        features = group.input_shape[-1]
        self.weights = nn.ParameterList(stored(n, features) for _ in range(count) for n in group.outputs)
        self.biases = nn.ParameterList(stored(n) for w in self.weights for n in w.shape[:1] if group.has_bias)
        self.layers = len(group.outputs)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        values = [value for value in inputs for _ in range(self.layers)]
        biases: Any = self.biases or [None] * len(values)
        layers = zip(values, self.weights, biases, strict=True)
        return tuple(nn.functional.linear(value, weight, bias) for value, weight, bias in layers)


def _program(group: LinearGroup) -> tuple[Program, dict[str, Tensor]]:
    size = group.input_shape[-1] * sum(group.outputs) * group.dtype.itemsize
    count = min(max(1, _MOST_BYTES // max(size, 1)), _MOST_GROUPS)
    random = torch.Generator().manual_seed(1)
    inputs = tuple(torch.randn(group.input_shape, generator=random).to(group.dtype) for _ in range(count))
    program = capture(_Layers(group, count).eval(), inputs)
    return program, dict(program.example)


def _opened(program: Program, provider: str, threads: int) -> OnnxRunner:
    # ONNX Runtime has the weights when the session is there; where it maps them, some systems keep the file for it.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, Staging(Path(folder)) as staging:
        return open_session(lower_to_onnx(program, staging).model, providers=(provider,), threads=threads)


def _seconds(runner: OnnxRunner, inputs: dict[str, Tensor], calls: int) -> float:
    started = time.perf_counter()
    for _ in range(calls):
        runner.run(inputs)
    return (time.perf_counter() - started) / calls
