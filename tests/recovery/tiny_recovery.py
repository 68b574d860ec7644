"""A recovery of the tiny transformer with every norm swapped, ready to run."""

import itertools
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, fx, nn

from flowopt.ir.evaluate import evaluate
from flowopt.ops.power_norm import PowerNorm
from flowopt.ops.unified_norm import UnifiedNorm
from flowopt.program.program import Program
from flowopt.recovery.data.data import Data
from flowopt.recovery.data.open_data import open_data
from flowopt.recovery.distill import recover
from flowopt.recovery.recovered import Recovered
from flowopt.recovery.settings import RecoverySettings
from flowopt.recovery.trainable import Trainable
from tests.recovery.affine_leaf import AffineLeaf
from tests.recovery.tiny_transformer import inputs, norms_of, tiny_program

SAMPLES = 80


def tiny_data(program: Program, *, seed: int = 5, samples: int = SAMPLES) -> Data:
    """Batches of 8, a fifth held out, with labels beside the inputs."""
    arrays: dict[str, Any] = inputs(samples, seed)
    return open_data(
        arrays | {"labels": torch.arange(samples)}, program.interface, batch_size=8, held_out=0.2, seed=seed
    )


class FromAffine(Protocol):
    """A kind of leaf."""

    def __call__(self, scale: Tensor, shift: Tensor, mean_square: Tensor, /) -> nn.Module: ...


# The leaves of one student, in turn.
LEAVES: dict[str, tuple[FromAffine, ...]] = {
    "affine": (AffineLeaf,),
    "published": (PowerNorm.from_affine, UnifiedNorm.from_affine),
}


def fitted_leaves(
    program: Program, given: Mapping[str, Tensor], makers: tuple[FromAffine, ...]
) -> dict[str, tuple[str, nn.Module]]:
    """For every norm the per-channel affine map that is nearest to it in least squares."""
    values: dict[str, Tensor] = {}

    def observe(node: fx.Node, value: Any) -> None:
        values[node.name] = value

    evaluate(program.graph, program.read, given, observe=observe)
    real = given["mask"] == 1
    leaves: dict[str, tuple[str, nn.Module]] = {}
    for make, (name, source) in zip(itertools.cycle(makers), norms_of(program).items(), strict=False):
        x, y = values[source][real], values[name][real]
        off = x - x.mean(0)
        scale = (off * y).mean(0) / off.square().mean(0)
        leaves[name] = (source, make(scale, y.mean(0) - scale * x.mean(0), x.square().mean(0)))
    return leaves


def tiny_student(program: Program, leaves: str = "affine") -> Trainable:
    """With every norm swapped."""
    return Trainable(program, fitted_leaves(program, inputs(64, seed=9), LEAVES[leaves]), padding="mask")


SETTINGS: dict[str, Any] = {"steps": 12, "learning_rate": 3e-3, "loss": "mse", "evaluate_every": 4, "settle": 0.25}


def recovered(
    checkpoint: Path | None = None,
    *,
    resume: bool = False,
    on_progress: Any = None,
    leaves: str = "affine",
    dtype: torch.dtype = torch.float64,
    **changed: Any,
) -> tuple[Recovered, Trainable]:
    """Run it, with some settings changed."""
    program = tiny_program(dtype)
    student = tiny_student(program, leaves)
    settings = RecoverySettings(**(SETTINGS | changed))
    told = {} if on_progress is None else {"on_progress": on_progress}
    found = recover(student, program, tiny_data(program), settings, checkpoint=checkpoint, resume=resume, **told)
    return found, student


def label_loss(outputs: Mapping[str, Tensor], teacher: Mapping[str, Tensor], extra: Mapping[str, Tensor]) -> Tensor:
    """A user's loss that needs an array beside the inputs."""
    ((found, wanted),) = zip(outputs.values(), teacher.values(), strict=True)
    weight = (extra["labels"] % 2 + 1).to(found.dtype)
    return ((found - wanted).square().mean((1, 2)) * weight).mean()


def broken_loss(outputs: Mapping[str, Tensor], teacher: Mapping[str, Tensor], extra: Mapping[str, Tensor]) -> Tensor:
    """A user's loss that is NaN once it is trained with."""
    del teacher, extra
    (found,) = outputs.values()
    return found.mean() * float("nan") if found.requires_grad else found.square().mean()


def main() -> None:
    """In a process of its own, or several: ``checkpoint result resume setting=value ...``.

    Every step is printed. The result is the student's state and the held-out losses, written by the first process.
    """
    from safetensors.torch import save_file

    torch.set_num_threads(1)
    checkpoint, result, resume, *words = sys.argv[1:]
    changed = {name: json.loads(value) for name, _, value in (word.partition("=") for word in words)}
    found, student = recovered(
        None if checkpoint == "-" else Path(checkpoint),
        resume=resume == "resume",
        on_progress=lambda progress: print(progress.step, flush=True),
        dtype=getattr(torch, changed.pop("dtype", "float64")),
        **changed,
    )
    history = {"history": torch.tensor([evaluation.held_out for evaluation in found.history], dtype=torch.float64)}
    if result != "-" and os.environ.get("RANK", "0") == "0":
        save_file({name: t.contiguous() for name, t in student.state_dict().items()} | history, result)


if __name__ == "__main__":
    main()
