"""Time a linear stand-in beside softmax attention as artifacts of a target run them."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from flowopt.errors import BackendFailed, CaptureError, MissingDependency, UserError
from flowopt.lowering.targets import target as target_named
from flowopt.measuring.attention_crossover import LINEAR, SOFTMAX, Crossover, measured_crossover
from flowopt.ops.attention.in_place_of_softmax import InPlaceOfSoftmax
from flowopt.ops.attention.linear_form import AttentionShape, LinearForm
from flowopt.program.capture import capture
from flowopt.program.program import Program
from flowopt.runtime.artifact import Artifact
from flowopt.runtime.onnx_session import cuda_available
from flowopt.runtime.tvm_package import cuda_device_available
from flowopt.workflows.optimize import optimize

LENGTHS: Final = (256, 512, 1024, 2048, 4096)
_NAMES: Final = ("query", "key", "value")
# Length of the example where the length is free: no multiple of a usual chunk.
_CAPTURED: Final = 200


@dataclass(frozen=True, slots=True)
class AttentionSpeed:
    """What was timed, or why nothing was.

    Attributes:
        crossover: None where nothing was timed.
        reason: empty where it was.
    """

    crossover: Crossover | None
    reason: str = ""


def attention_speed(
    maker: Callable[[AttentionShape], LinearForm],
    shape: AttentionShape,
    *,
    key_heads: int | None = None,
    dtype: torch.dtype = torch.float32,
    target: str = "cpu",
    arch: str | None = None,
    lengths: Sequence[int] = (),
    threads: int | None = None,
    budget_seconds: float = 12.0,
    rounds: int = 5,
    on_progress: Callable[[str], None] = lambda _: None,
) -> AttentionSpeed:
    """Lower one attention of each kind by the road of artifacts, unverified, and time both by turns.

    Both read projections (1, L, heads * features) as a model's layers give them, of as many keys as queries and without
    padding, and are rewritten by the exact passes. The length is free where the stand-in can be captured so. Random
    weights: speed does not depend on them.

    Args:
        maker: of the stand-in.
        shape: of the attention.
        key_heads: of keys and values; as many as of the queries by default.
        dtype: of all three.
        target, arch: as for ``optimize``.
        lengths: to time; 256 to 4096 by default.
        threads: of the runtime within one operator.
        budget_seconds: of timing; lowering takes a few seconds more, on ``tvm`` some tens.
        rounds: in which both are timed, at each length.
        on_progress: gets one line per step.
    """
    backend = target_named(target, arch)
    is_there = {"onnx": cuda_available, "torch": lambda: True, "tvm": cuda_device_available}[backend.backend]
    if backend.device == "cuda" and not is_there():
        return AttentionSpeed(None, f"there is no device to time {target} on")
    heads = key_heads or shape.heads
    modules: dict[str, nn.Module] = {
        SOFTMAX: _Projected(shape, heads, _Softmax(shape)),
        LINEAR: _Projected(shape, heads, InPlaceOfSoftmax(maker(shape)).to(torch.promote_types(dtype, torch.float32))),
    }
    examples = _Examples(shape, heads, dtype)
    with tempfile.TemporaryDirectory(prefix="flowopt-adapt-") as scratch:
        lower = _Lowering(examples, target, arch, threads, Path(scratch), on_progress)
        try:
            runs = {name: lower.runs(name, module.eval()) for name, module in modules.items()}
            crossover = measured_crossover(
                runs, lengths or LENGTHS, budget_seconds=budget_seconds, rounds=rounds, on_progress=on_progress
            )
        except (BackendFailed, MissingDependency, UserError) as error:
            # That a target cannot run it is told where the model is lowered; here it is a figure less.
            return AttentionSpeed(None, error.message)
    return AttentionSpeed(crossover)


@final
@dataclass(frozen=True, slots=True)
class _Examples:
    """Inputs of any length."""

    shape: AttentionShape
    key_heads: int
    dtype: torch.dtype

    def of(self, length: int) -> dict[str, Tensor]:
        random = torch.Generator().manual_seed(0)
        widths = (
            self.shape.heads * self.shape.head_dim,
            self.key_heads * self.shape.head_dim,
            self.key_heads * self.shape.value_dim,
        )
        drawn = (torch.randn(1, length, width, generator=random).to(self.dtype) for width in widths)
        return dict(zip(_NAMES, drawn, strict=True))


@final
class _Projected(nn.Module):
    """Attention between layers, which have the heads beside each other on the last axis."""

    def __init__(self, shape: AttentionShape, key_heads: int, attention: nn.Module) -> None:
        super().__init__()
        self.shape, self.key_heads, self.attention = shape, key_heads, attention

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        heads = (self.shape.heads, self.key_heads, self.key_heads)
        parted = (t.unflatten(-1, (n, -1)).transpose(1, 2) for t, n in zip((query, key, value), heads, strict=True))
        mixed: Tensor = self.attention(*parted)
        return mixed.transpose(1, 2).flatten(2)


@final
class _Softmax(nn.Module):
    def __init__(self, shape: AttentionShape) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return scaled_dot_product_attention(
            query,
            key,
            value,
            is_causal=self.shape.is_causal,
            scale=self.shape.scale,
            enable_gqa=key.shape[1] != self.shape.heads,
        )


@final
@dataclass(frozen=True, slots=True)
class _Lowering:
    """Makes artifacts of modules for one target."""

    examples: _Examples
    target: str
    arch: str | None
    threads: int | None
    scratch: Path
    on_progress: Callable[[str], None]

    def runs(self, name: str, module: nn.Module) -> Callable[[int], Callable[[], Any]]:
        """What gives a call of a length: of one artifact of any length where that can be captured."""
        free = self._captured(module, _CAPTURED, is_free=True)
        kept = None if free is None else self._opened(free, name)

        def run(length: int) -> Callable[[], Any]:
            artifact = kept
            if artifact is None:
                fixed = self._captured(module, length, is_free=False)
                assert fixed is not None, "what cannot be captured has raised"
                artifact = self._opened(fixed, f"{name}-{length}")
            inputs = self.examples.of(length)
            return lambda: artifact.run_named(inputs)

        return run

    def _captured(self, module: nn.Module, length: int, *, is_free: bool) -> Program | None:
        try:
            return capture(
                module,
                (),
                self.examples.of(length),
                dynamic=dict.fromkeys(_NAMES, {1: "length"}) if is_free else None,
                dims={"length": (2, None)} if is_free else None,
            )
        except CaptureError:
            if is_free:
                return None
            raise

    def _opened(self, program: Program, name: str) -> Artifact:
        self.on_progress(f"lowering {name} attention to time it")
        folder = self.scratch / name
        optimize(program, target=self.target, arch=self.arch, folder=folder, verify="off")
        # It was written a moment ago.
        return Artifact.open(folder, trust="code", threads=self.threads)
