"""Where nothing is said, the command line and Python do the same."""

import inspect

import flowopt
from flowopt.cli.adapt import adapt as command
from flowopt.workflows.adapting.recovery_plan import RecoveryPlan

COMMAND = {name: parameter.default for name, parameter in inspect.signature(command).parameters.items()}
PYTHON = {name: parameter.default for name, parameter in inspect.signature(flowopt.adapt).parameters.items()}


def test_a_recovery_is_the_same() -> None:
    words = inspect.signature(RecoveryPlan.of).parameters
    given = {name: COMMAND[name] for name in words if name != "text"}
    assert RecoveryPlan.of(COMMAND["recover"], **given) == flowopt.RecoveryPlan()
    assert flowopt.RecoveryPlan().settings == flowopt.RecoverySettings()


def test_everything_else_is_the_same() -> None:
    common = COMMAND.keys() & PYTHON.keys() - {"data"}
    assert {"norms", "threshold", "calibration", "target_weight", "padding", "most", "seed"} <= common
    assert float(COMMAND["held_out"]) == PYTHON["held_out"]
    common.remove("held_out")
    assert {name: COMMAND[name] for name in common} == {name: PYTHON[name] for name in common}


def test_a_tenth_of_the_steps_lies_between_evaluations() -> None:
    settings = flowopt.RecoverySettings
    assert [settings(steps=n).evaluation_interval for n in (5, 60, 500)] == [1, 6, 50]
    assert settings(steps=60, evaluate_every=15).evaluation_interval == 15
