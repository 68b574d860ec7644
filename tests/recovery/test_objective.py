"""What the loss of a recovery depends on."""

from typing import Any

from flowopt.recovery.objective import Objective
from flowopt.recovery.settings import RecoverySettings
from tests.recovery.tiny_recovery import tiny_data, tiny_student
from tests.recovery.tiny_transformer import tiny_program


def reads_all(put_into_place: int, **changed: Any) -> bool:
    program = tiny_program()
    student = tiny_student(program).eval()
    student.active = frozenset(list(student.leaves)[:put_into_place])
    batch = next(tiny_data(program).held_out())
    return Objective(student, program, RecoverySettings(**changed)).reads_all(batch.inputs, batch.extra)


def test_it_is_all_that_is_trained_once_every_norm_is_in_place() -> None:
    assert reads_all(5) and not reads_all(4)


def test_a_loss_of_something_else_reads_nothing() -> None:
    assert not reads_all(5, loss="tests.recovery.test_objective:constant_loss")


def constant_loss(outputs: Any, teacher: Any, extra: Any) -> Any:
    del outputs, extra
    (wanted,) = teacher.values()
    return wanted.mean()
