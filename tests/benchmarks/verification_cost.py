"""What verification of one pass costs, in forwards of the float64 oracle.

    python -m tests.benchmarks.verification_cost MODEL LEVEL      one run in a process of its own: one line of JSON

Counted is the processor's time of one thread, so that another process on the machine changes nothing. Evidence of the
original and the judgement of one pass together, without the pass itself, over the sum of one float64 forward of every
case.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from flowopt.program.program import Program
from flowopt.rewrite import RewritePass

_ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Cost:
    """One model at one level: forwards per case, seconds of the whole, and number of cases."""

    forwards: float
    seconds: float
    cases: int


def measured_cost(model: str, level: str) -> Cost:
    """Cost of verifying one right pass, in a process of its own."""
    command = [sys.executable, "-m", "tests.benchmarks.verification_cost", model, level]
    done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=True)
    return Cost(**json.loads(done.stdout.splitlines()[-1]))


def _minilm() -> tuple[Program, RewritePass]:
    from tests.goals.planted_right import DecomposeGelu
    from tests.goals.spine import captured

    return captured("minilm"), DecomposeGelu()


def _vit_small() -> tuple[Program, RewritePass]:
    from transformers import ViTConfig, ViTForImageClassification

    from tests.goals.planted_right import DecomposeGelu

    config = ViTConfig(
        hidden_size=384,
        num_hidden_layers=12,
        num_attention_heads=6,
        intermediate_size=1536,
        image_size=64,
        num_labels=1000,
    )
    return _image_model(ViTForImageClassification(config), 64), DecomposeGelu()


def _resnet18() -> tuple[Program, RewritePass]:
    from transformers import ResNetConfig, ResNetForImageClassification

    from flowopt.passes.fold.fold_batch_norm import FoldBatchNorm

    config = ResNetConfig(hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2], layer_type="basic", num_labels=1000)
    return _image_model(ResNetForImageClassification(config), 64), FoldBatchNorm()


def _image_model(module: nn.Module, size: int) -> Program:
    import flowopt
    from tests.zoo.inputs import images
    from tests.zoo.models import randomise

    randomise(module, 3)
    kwargs = {"pixel_values": images(2, 3, size, 3)}
    dynamic, dims = {"pixel_values": {0: "batch"}}, {"batch": (1, 4)}
    return flowopt.capture(module.eval(), (), kwargs, dynamic=dynamic, dims=dims)


MODELS: dict[str, Callable[[], tuple[Program, RewritePass]]] = {
    "minilm": _minilm,
    "vit-small": _vit_small,
    "resnet-18": _resnet18,
}


def main(name: str, level: str) -> None:
    """Print one line of JSON."""
    import torch

    from flowopt.pipeline.runner import run_passes
    from flowopt.pipeline.text import parse_pass
    from flowopt.verification.levels import LEVELS
    from flowopt.verification.running import run_case
    from flowopt.verification.verify_passes import VerifyPasses
    from tests.zoo.quiet import quiet_transformers

    quiet_transformers()
    torch.set_num_threads(1)
    program, rewrite_pass = MODELS[name]()
    program = run_passes(program, [parse_pass("canonicalize-aten")]).program
    verifier = VerifyPasses(level=next(one for one in LEVELS if one == level))
    run_passes(program, [rewrite_pass])
    started = time.process_time()
    run_passes(program, [rewrite_pass])
    unverified = time.process_time() - started
    run_case(program, _first_case(program), raised=True)
    started, clock = time.process_time(), time.perf_counter()
    (record,) = run_passes(program, [rewrite_pass], [verifier]).records
    spent, seconds = time.process_time() - started - unverified, time.perf_counter() - clock
    assert record.applied and record.outcome == "kept", record.reason
    forwards = 0.0
    for known in verifier.evidence.cases:
        started = time.process_time()
        run_case(program, known.case, raised=True)
        forwards += time.process_time() - started
    cases = len(verifier.evidence.cases)
    print(json.dumps({"forwards": spent / forwards, "seconds": seconds, "cases": cases}))


def _first_case(program: Program):  # type: ignore[no-untyped-def]  # it only warms up
    from flowopt.verification.inputs.cases import quick_cases

    return quick_cases(program, 0)[0]


if __name__ == "__main__":
    main(*sys.argv[1:3])
