"""Put linear attention in the place of a trained transformer's softmax, win its quality back, and time both.

    python examples/linearize_attention.py                   # all kinds, all layers and three in four: half an hour
    python examples/linearize_attention.py hybrid 0.25 1000  # one kind, a quarter keeps softmax, 1000 steps

The transformer works out nested list operations (``listops.py``). Untrained, a linear attention is about as good as
the mean of the values; its maps are then trained to give what softmax gave, and the model is distilled from its
original. Every figure is of questions that neither training nor recovery saw. At the end, ``attention_latency.png``
shows what one attention costs over the length of the sequence, in ONNX Runtime.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from listops import Questions, batches, held_out, train, training
from torch import Tensor, nn

import flowopt
from flowopt.ops.attention import AttentionShape, InPlaceOfSoftmax, linearization
from flowopt.report.adaptation import Adaptation

# Questions are short: chunks and the window of hybrid are shorter still, where by default both are 64.
KINDS: dict[str, dict[str, int]] = {"flow": {}, "hedgehog": {}, "hybrid": {"window": 4, "chunk": 16}}
STAGES = ("mean-of-values", "zero-shot", "transfer", "distill")
LENGTHS = (256, 512, 1024, 2048, 4096, 8192, 16384)


def main() -> None:
    torch.set_num_threads(1)
    kinds = sys.argv[1:2] or list(KINDS)
    shares = [float(share) for share in sys.argv[2:3]] or [0.25, 0.0]
    steps = int(sys.argv[3]) if len(sys.argv) > 3 else 2000
    model, _ = train()
    print(f"{'':9s} {'softmax kept':>12s}  " + "  ".join(f"{name:>14s}" for name in ("original", *STAGES)))
    for kind in kinds:
        for share in shares:
            show(kind, convert(model, kind, share, steps))
    times = latency(kinds)
    plot(times, Path("attention_latency.png"))
    for name, curve in times.items():
        print(f"{name:9s} " + "  ".join(f"{length}: {ms:.2f} ms" for length, ms in curve.items()))
    print("drawn: attention_latency.png")


def convert(model: nn.Module, kind: str, keep_softmax: float, steps: int, seed: int = 0) -> Adaptation:
    """What became of the model that ``train`` made with this seed."""
    program = flowopt.capture(
        model,
        (held_out(seed).tokens[:3],),
        dynamic={"tokens": {0: "batch", 1: "length"}},
        dims={"batch": (1, 256), "length": (2, 4096)},
    )
    settings = flowopt.RecoverySettings(steps=steps, learning_rate=1.5e-3, loss="kl", feature_weight=0.5)
    with tempfile.TemporaryDirectory() as folder:
        return flowopt.adapt(
            program,
            linearize=kind,
            attention=KINDS.get(kind),
            keep_softmax=keep_softmax,
            force=True,  # at 48 tokens, softmax is faster
            data=as_data(training(seed), seed),
            held_out=as_data(held_out(seed), seed),
            padding="tokens",  # which are 0 there
            recovery=flowopt.RecoveryPlan(settings=settings),
            metric="accuracy:labels",
            folder=f"{folder}/listops",
            timing=False,
        ).adaptation


def as_data(questions: Questions, seed: int) -> list[dict[str, Tensor]]:
    """Batches, each of its own length."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return [{"tokens": part.tokens, "labels": part.labels} for part in batches(questions)]


def show(kind: str, said: Adaptation) -> None:
    kept = ", ".join(str(layer.position) for layer in said.kept_softmax) or "none"
    found = [said.original_metric, *(stage.metric for stage in map(said.stage, STAGES) if stage is not None)]
    print(f"{kind:9s} {kept:>12s}  " + "  ".join(f"{value:14.4f}" for value in found if value is not None), flush=True)


class Softmax(nn.Module):
    """The attention that the others take the place of."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value)


def latency(kinds: list[str]) -> dict[str, dict[int, float]]:
    """Milliseconds of one attention of four heads of 64 features, by kind and length, on one thread."""
    shape = AttentionShape(heads=4, head_dim=64, value_dim=64, is_causal=False, scale=0.125)
    modules: dict[str, nn.Module] = {"softmax": Softmax()}
    modules |= {kind: InPlaceOfSoftmax(linearization(kind)(shape)) for kind in kinds}
    return {name: timed(module.eval()) for name, module in modules.items()}


def timed(module: nn.Module) -> dict[int, float]:
    names = ("query", "key", "value")
    example = {name: torch.randn(1, 4, 200, 64) for name in names}
    program = flowopt.capture(
        module, kwargs=example, dynamic=dict.fromkeys(names, {2: "length"}), dims={"length": (2, None)}
    )
    with tempfile.TemporaryDirectory() as folder:
        flowopt.optimize(program, folder=f"{folder}/attention", verify="off")
        artifact = flowopt.Artifact.open(f"{folder}/attention", threads=1)
        return {length: milliseconds(artifact, length) for length in LENGTHS}


def milliseconds(artifact: flowopt.Artifact, length: int) -> float:
    """Median of five calls after one to warm up, of fewer where they take long."""
    inputs = {name: torch.randn(1, 4, length, 64) for name in ("query", "key", "value")}
    taken: list[float] = []
    while len(taken) < 2 or (len(taken) < 6 and sum(taken) < 3000):
        started = time.perf_counter()
        artifact.run_named(inputs)
        taken.append(1000 * (time.perf_counter() - started))
    return statistics.median(taken[1:])


def plot(times: Mapping[str, Mapping[int, float]], path: Path) -> None:
    """Draw the curves with both axes logarithmic: a power of the length is a straight line, and its power the slope."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    for name, curve in times.items():
        axes.loglog(list(curve), list(curve.values()), marker="o", label=name)
    axes.set_xticks(LENGTHS, [str(length) for length in LENGTHS])
    axes.minorticks_off()
    axes.set_xlabel("tokens")
    axes.set_ylabel("milliseconds of one attention, 4 heads of 64")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
