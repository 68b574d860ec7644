import pytest

from flowopt.program.program import Program
from flowopt.verification import verify_passes
from flowopt.verification.inputs.cases import Case, quick_cases
from flowopt.verification.levels import Level


@pytest.fixture
def few_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    """Level full on the cases of level quick: the battery has tests of its own."""

    def selected(program: Program, level: Level, seed: int, **_: object) -> tuple[tuple[Case, ...], tuple[str, ...]]:
        return quick_cases(program, seed), ()

    monkeypatch.setattr(verify_passes, "selected_cases", selected)
