"""A recovery of the tiny transformer with every norm swapped, ready to run."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from flowopt.ir.evaluate import evaluate
from flowopt.program.program import Program
from flowopt.recovery.data.data import Data
from flowopt.recovery.data.open_data import open_data
from flowopt.recovery.distill import Recovered, recover
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


def fitted_leaves(program: Program, given: Mapping[str, Tensor]) -> dict[str, tuple[str, AffineLeaf]]:
    """For every norm the per-channel affine map that is nearest to it in least squares."""
    values: dict[str, Tensor] = {}

    def observe(node: fx.Node, value: Any) -> None:
        values[node.name] = value

    evaluate(program.graph, program.read, given, observe=observe)
    real = given["mask"] == 1
    leaves = {}
    for name, source in norms_of(program).items():
        x, y = values[source][real], values[name][real]
        off = x - x.mean(0)
        scale = (off * y).mean(0) / off.square().mean(0)
        leaves[name] = (source, AffineLeaf(scale, y.mean(0) - scale * x.mean(0), x.square().mean(0)))
    return leaves


def tiny_student(program: Program) -> Trainable:
    """With every norm swapped."""
    return Trainable(program, fitted_leaves(program, inputs(64, seed=9)), padding="mask")


SETTINGS: dict[str, Any] = {"steps": 12, "learning_rate": 3e-3, "loss": "mse", "evaluate_every": 4, "settle": 0.25}


def recovered(
    checkpoint: Path | None = None, *, resume: bool = False, on_progress: Any = None, **changed: Any
) -> tuple[Recovered, Trainable]:
    """Run it, with some settings changed."""
    program = tiny_program()
    student = tiny_student(program)
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
    """In a process of its own: ``checkpoint result resume``; the result is the student's state and the losses."""
    from safetensors.torch import save_file

    torch.set_num_threads(1)
    checkpoint, result, resume = sys.argv[1:4]
    found, student = recovered(
        None if checkpoint == "-" else Path(checkpoint),
        resume=resume == "resume",
        on_progress=lambda progress: print(progress.step, flush=True),
        **{name: eval(value) for name, _, value in (word.partition("=") for word in sys.argv[4:])},
    )
    history = {"history": torch.tensor([evaluation.held_out for evaluation in found.history], dtype=torch.float64)}
    if result != "-":
        save_file({name: t.contiguous() for name, t in student.state_dict().items()} | history, result)


if __name__ == "__main__":
    main()
