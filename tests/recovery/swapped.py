"""The tiny transformer with leaves of a fixed scale in the place of its norms, and batches for it."""

import torch
from torch import Tensor, fx, nn

from flowopt.program.program import Program
from flowopt.recovery.observed import teacher_values
from flowopt.recovery.trainable import Trainable
from tests.recovery.affine_leaf import AffineLeaf
from tests.recovery.tiny_transformer import inputs, norms_of, tiny_program


def batches(count: int = 12, seed: int = 10) -> list[dict[str, Tensor]]:
    """Sixteen sequences each, some with padding."""
    return [inputs(16, seed=seed + i) for i in range(count)]


def swapped_student(names: tuple[str, ...] | None = None) -> Trainable:
    """Each leaf has one gain per channel over the mean deviation of what it reads."""
    program = tiny_program()
    sources = {name: source for name, source in norms_of(program).items() if names is None or name in names}
    values = teacher_values(program, batches(1)[0], list(sources.values()))
    leaves: dict[str, tuple[str, nn.Module]] = {}
    for name, source in sources.items():
        scale = program.constant(stored(program, name, 2)) / values[source].std(-1).mean()
        shift = program.constant(stored(program, name, 3))
        leaves[name] = source, AffineLeaf(scale, shift, seed=len(leaves))
    return Trainable(program, leaves, padding="mask")


def stored(program: Program, name: str, position: int) -> fx.Node:
    found = program.node(name).args[position]
    assert isinstance(found, fx.Node)
    return found


def linears(program: Program) -> list[str]:
    return [node.name for node in program.graph.nodes if node.target is torch.ops.aten.linear.default]


def parameter(student: Trainable, layer: str, position: int = 1) -> Tensor:
    found = student.tensors.parameter(str(stored(student.program, layer, position).target))
    assert found is not None
    return found


def distance(student: Trainable, seed: int = 90) -> float:
    """Of outputs from the teacher's, on new data, real tokens alone."""
    given = inputs(32, seed=seed)
    with torch.no_grad():
        (found,), (wanted,) = student(given)[0].values(), tiny_program().run_named(given).values()
    real = given["mask"] == 1
    return float((found[real] - wanted[real]).norm() / wanted[real].norm())
