from typing import Any

import pytest
import torch

from flowopt.analysis.linear_group import LinearGroup
from flowopt.errors import UserError
from flowopt.program.capture import capture
from flowopt.workflows import tune as module
from flowopt.workflows.measured_gain import measured_gain
from flowopt.workflows.optimize import optimize
from flowopt.workflows.pipelines import Pipeline
from flowopt.workflows.tune import tune
from tests.workflows.parallel_model import PASSES, program

FIRST = LinearGroup((5, 6), (4, 4), torch.float32, has_bias=False)
SECOND = LinearGroup((5, 4), (2, 3, 1), torch.float32, has_bias=True)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[LinearGroup]:
    """The groups that are timed; layers with a bias are said to gain, and others to lose."""
    groups: list[LinearGroup] = []

    def gain(group: LinearGroup, **options: Any) -> float:
        groups.append(group)
        return 1.5 if group.has_bias else 0.5

    monkeypatch.setattr(module, "measured_gain", gain)
    return groups


def test_every_group_is_measured_as_the_pass_sees_it(asked: list[LinearGroup]) -> None:
    tuned = tune(program(), passes=PASSES)
    assert asked == [FIRST, SECOND]
    found = [(choice.site, choice.group, choice.merge, choice.gain) for choice in tuned.merges]
    assert found == [("linear", FIRST, False, 0.5), ("linear_2", SECOND, True, 1.5)]


def test_groups_of_equal_sizes_are_measured_once(asked: list[LinearGroup]) -> None:
    class Twice(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = torch.nn.ModuleList(torch.nn.Linear(4, 4) for _ in range(4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.layers[0](x) * self.layers[1](x)
            product: torch.Tensor = self.layers[2](y) * self.layers[3](y)
            return product

    tuned = tune(capture(Twice().eval(), (torch.zeros(3, 4),)), passes=PASSES)
    assert len(asked) == 1 and len(tuned.merges) == 2


def test_a_gain_below_the_passes_own_is_none(asked: list[LinearGroup]) -> None:
    tuned = tune(program(), passes=f"{PASSES}:min_gain=2.0")
    assert [choice.merge for choice in tuned.merges] == [False, False]


def test_a_loss_is_none_whatever_the_pass_asks_for(asked: list[LinearGroup]) -> None:
    tuned = tune(program(), passes=Pipeline(f"{PASSES}:min_gain=0"))
    assert [choice.merge for choice in tuned.merges] == [False, True]


def test_a_pipeline_that_does_not_name_the_pass_runs_before_it(asked: list[LinearGroup]) -> None:
    assert [choice.site for choice in tune(program(), passes="none").merges] == ["linear", "linear_2"]


def test_what_was_measured_with_is_recorded(asked: list[LinearGroup]) -> None:
    tuned = tune(program(), passes=PASSES, threads=3)
    assert (tuned.target, tuned.threads) == ("cpu", 3)
    assert tuned.runtime.startswith("onnxruntime") and tuned.version[0].isdigit()


def test_a_build_follows_what_was_measured(asked: list[LinearGroup]) -> None:
    found = program()
    result = optimize(found, passes=PASSES, dry_run=True, tuned=tune(found, passes=PASSES))
    assert [site.site for site in result.report.passes[-1].applied] == ["linear_2"]
    assert result.report.warnings == ()


def test_a_target_without_a_runtime_to_time_is_an_error() -> None:
    with pytest.raises(UserError, match="no runtime is timed for the target torch"):
        tune(program(), target="torch")


def test_both_forms_run_and_give_a_ratio() -> None:
    random = torch.get_rng_state()
    group = LinearGroup((1, 3, 4), (2, 3, 1), torch.float32, has_bias=True)
    assert 0 < measured_gain(group, provider="CPUExecutionProvider", threads=1, repeats=2) < float("inf")
    assert torch.equal(torch.get_rng_state(), random)


def test_progress_names_each_group(asked: list[LinearGroup]) -> None:
    lines: list[str] = []
    tune(program(), passes=PASSES, on_progress=lines.append)
    assert lines[1:] == ["timing 5x6 -> 4+4 float32", "timing 5x4 -> 2+3+1 float32 with bias"]
