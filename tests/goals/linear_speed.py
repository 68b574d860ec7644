"""The row of linear attention's speed, and the judgement that short sequences are not worth it."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

import flowopt
from examples.minilm import factory as minilm
from flowopt.analysis.activation_bytes import activation_bytes
from flowopt.measuring.attention_crossover import Crossover
from flowopt.ops.attention import AttentionShape, InPlaceOfSoftmax, linearization
from flowopt.recovery.data.open_data import open_data
from flowopt.report.attention_record import AttentionRecord
from flowopt.workflows.adapting.attention_speed import attention_speed
from flowopt.workflows.adapting.judged_attention import judged_attention
from flowopt.workflows.adapting.linear_choice import LinearChoice
from tests.goals.row import Measured, Row

HEADS, WIDTH = 4, 64
LENGTHS = (256, 512, 1024, 2048, 4096, 8192, 16_384)
NAMES = ("elu", "hedgehog", "flow", "hybrid")
MOST_SLOPE = 1.15
LEAST_FACTOR = 5.0
# Bytes are counted, not measured: what is not proportional is a few numbers at short lengths.
MOST_MEMORY_SLOPE = 1.02
SHORT = 256
_BUDGET_SECONDS = 600.0


def slope(lengths: Sequence[int], values: Sequence[float]) -> float:
    """The power of the length that fits best: of the least squares line where both axes are logarithmic."""
    return float(np.polyfit(np.log(lengths), np.log(values), 1)[0])


def shape_of(*, is_causal: bool) -> AttentionShape:
    return AttentionShape(HEADS, WIDTH, WIDTH, is_causal, WIDTH**-0.5)


def memory(name: str, *, is_causal: bool) -> Mapping[int, int]:
    """Bytes that live at once in a stand-in, by length."""
    leaf = InPlaceOfSoftmax(linearization(name)(shape_of(is_causal=is_causal))).eval()
    inputs = dict(zip(("query", "key", "value"), torch.randn(3, 1, HEADS, 200, WIDTH), strict=True))
    dynamic = dict.fromkeys(inputs, {2: "length"})
    program = flowopt.capture(leaf, (), inputs, dynamic=dynamic, dims={"length": (2, None)})
    return {length: activation_bytes(program, {"length": length}) for length in LENGTHS}


def timed(name: str, *, is_causal: bool) -> Crossover:
    """Beside softmax in ONNX Runtime on the CPU, batch 1."""
    found = attention_speed(
        linearization(name),
        shape_of(is_causal=is_causal),
        lengths=LENGTHS,
        rounds=3,
        budget_seconds=_BUDGET_SECONDS,
    )
    assert found.crossover is not None, f"{name}: {found.reason}"
    assert found.crossover.lengths == LENGTHS, f"{name}: {found.crossover.lengths} alone fit into the budget"
    return found.crossover


def _speed() -> Measured:
    lines: list[str] = []
    slopes: list[float] = []
    factors: list[float] = []
    memories: list[float] = []
    for name in NAMES:
        for is_causal in (False, True):
            found, held = timed(name, is_causal=is_causal), memory(name, is_causal=is_causal)
            slopes.append(slope(LENGTHS, found.linear_ms))
            factors.append(found.softmax_ms[-1] / found.linear_ms[-1])
            memories.append(slope(LENGTHS, list(held.values())))
            crossover = "none" if found.length is None else f"{found.length:.0f}"
            times = ", ".join(f"{ms:.3g}" for ms in found.linear_ms)
            lines.append(
                f"{name}{' causal' if is_causal else ''}: slope {slopes[-1]:.2f}, {factors[-1]:.1f} times faster at "
                f"{LENGTHS[-1]}, crossover {crossover}, {held[LENGTHS[-1]] / 1e6:.0f} MB (slope {memories[-1]:.2f}); "
                f"ms {times}; softmax {', '.join(f'{ms:.3g}' for ms in found.softmax_ms)}"
            )
    is_met = max(slopes) <= MOST_SLOPE and min(factors) >= LEAST_FACTOR and max(memories) <= MOST_MEMORY_SLOPE
    value = f"slope {max(slopes):.2f}, {min(factors):.1f} times faster, memory slope {max(memories):.2f}"
    return Measured(value, is_met, tuple(lines))


def judged_minilm(to: str = "hybrid", length: int = SHORT) -> tuple[AttentionRecord, ...]:
    """The trained sentence encoder, judged at a length; every layer has a crossover, or is slower up to the longest."""
    program = flowopt.capture(**minilm())
    data = open_data(dict(minilm()["kwargs"]), program.interface, held_out=0.34)
    return judged_attention(
        program,
        data,
        LinearChoice(to, length=length, calibration=1, dry_run=True),
        padding="auto",
        target="cpu",
        arch=None,
        outputs=("last_hidden_state",),
        seed=0,
        on_progress=lambda _: None,
    ).records


def problem_of_minilm() -> str:
    """Empty where every layer is refused for its speed, else what was decided."""
    reasons = sorted({record.reason.partition(":")[0] or record.decision for record in judged_minilm()})
    return "" if reasons == ["below-crossover"] else f"its layers at {SHORT} tokens are {reasons}"


ROWS = (
    Row(
        "linear.speed",
        f"ONNX Runtime, L = 256 ... 16,384: slope <= {MOST_SLOPE}, >= {LEAST_FACTOR:g} times faster than softmax",
        _speed,
        is_long=True,
    ),
)
