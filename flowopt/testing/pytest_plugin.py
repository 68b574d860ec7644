"""The pytest plugin: fixture ``flowopt_equivalent``, option ``--flowopt-level``.

pytest loads it in every run of an environment that has flowopt, so it imports nothing heavy: torch comes with the
first call of the fixture.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from flowopt.testing.assert_equivalent import assert_equivalent
from flowopt.verification.levels import LEVELS

if TYPE_CHECKING:
    from flowopt.program.program import Program
    from flowopt.report.verdict import Verdict
    from flowopt.verification.levels import Level

_INI = "flowopt_level"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Offer the option and its default in the configuration file."""
    group = parser.getgroup("flowopt")
    group.addoption(
        "--flowopt-level",
        choices=LEVELS,
        help="how thoroughly flowopt_equivalent compares; default: the ini option flowopt_level, else quick",
    )
    parser.addini(
        _INI, f"level of flowopt_equivalent without --flowopt-level: {' or '.join(LEVELS)}", default=LEVELS[0]
    )


def pytest_configure(config: pytest.Config) -> None:
    """Refuse a level that does not exist before any test runs."""
    _level(config)


def pytest_report_header(config: pytest.Config) -> str:
    """One line, so that a log says how thorough its checks were."""
    return f"flowopt: level {_level(config)}"


@pytest.fixture
def flowopt_equivalent(pytestconfig: pytest.Config, tmp_path: Path) -> Callable[..., "Verdict"]:
    """Assert that two models are the same function: ``flowopt_equivalent(reference, candidate, **options)``.

    Arguments and result are those of ``flowopt.testing.assert_equivalent``. The level is that of ``--flowopt-level``
    unless the call passes its own; where the models differ, the inputs of the worst case are left in ``tmp_path``.
    """
    chosen = _level(pytestconfig)

    def check(reference: "Program | str | Path", candidate: Any, **options: Any) -> "Verdict":
        __tracebackhide__ = True
        worst = _unused(tmp_path)
        verdict = assert_equivalent(reference, candidate, **({"level": chosen, "reproducer": worst} | options))
        # The worst case of two equivalent models is no news, and the folder is the test's own.
        worst.unlink(missing_ok=True)
        return verdict

    return check


def _level(config: pytest.Config) -> "Level":
    given = config.getoption("--flowopt-level") or config.getini(_INI)
    for level in LEVELS:
        if given == level:
            return level
    raise pytest.UsageError(f"{_INI} = {given!r} in {config.inipath}: write {' or '.join(LEVELS)}")


def _unused(folder: Path) -> Path:
    """``worst.npz``, or a numbered one where an earlier comparison of the same test has left it."""
    candidate, number = folder / "worst.npz", 1
    while candidate.exists():
        number += 1
        candidate = folder / f"worst_{number}.npz"
    return candidate
