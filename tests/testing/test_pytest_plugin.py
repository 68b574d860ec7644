"""The pytest plugin, in runs of pytest inside of pytest."""

import subprocess
import sys
from pathlib import Path
from typing import Any, final

import pytest

# What the inner runs need is imported here: they forget every module that they were the first to import.
import flowopt.workflows.verify  # noqa: F401
from flowopt.program.program import Program
from flowopt.report.verdict import Finding, Outcome, Verdict
from tests.testing.test_assert_equivalent import with_bias

pytest_plugins = "pytester"

# The first rewrites hypothesis's assertions in every inner run, the second collects garbage five times at its end:
# seconds each, with torch loaded.
INNER_OPTIONS = "-p no:hypothesispytest -p no:unraisableexception"
COMPARES = "def test_pair(flowopt_equivalent): flowopt_equivalent('one', 'other')"
FULL_IN_THE_CALL = "def test_pair(flowopt_equivalent): flowopt_equivalent('one', 'other', level='full')"


@final
class Models:
    """Fixtures of the inner runs."""

    def __init__(self, program: Program) -> None:
        self._program = program

    @pytest.fixture
    def model(self) -> Program:
        return self._program

    @pytest.fixture
    def same(self) -> Program:
        return with_bias(self._program, 0.0)

    @pytest.fixture
    def other(self) -> Program:
        return with_bias(self._program, 0.01)


@pytest.fixture(autouse=True)
def inner_options(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    # After pytester, which unsets the variable.
    monkeypatch.setenv("PYTEST_ADDOPTS", INNER_OPTIONS)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Options that reach ``flowopt.verify``, which finds everything equivalent."""
    found: list[dict[str, Any]] = []

    def verify(*_: object, **options: Any) -> Verdict:
        found.append(options)
        return Verdict(Outcome.EQUIVALENT)

    def with_signature(reference: object, candidate: object, *, level: str, reproducer: Path | None) -> Verdict:
        return verify(reference, candidate, level=level, reproducer=reproducer)

    monkeypatch.setattr("flowopt.workflows.verify.verify", with_signature)
    return found


def test_a_pair_that_is_the_same_function_passes(pytester: pytest.Pytester, program: Program) -> None:
    pytester.makepyfile(
        """
        def test_pair(flowopt_equivalent, model, same):
            assert flowopt_equivalent(model, same).outcome == "equivalent"
        """
    )
    pytester.inline_run(plugins=[Models(program)]).assertoutcome(passed=1)


def test_a_pair_that_is_not_fails_with_the_gate_the_output_and_the_case(
    pytester: pytest.Pytester, program: Program
) -> None:
    pytester.makepyfile("def test_pair(flowopt_equivalent, model, other): flowopt_equivalent(model, other)")
    result = pytester.runpytest_inprocess(plugins=[Models(program)])
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "E *AssertionError: different: ratio gate: output: error * (case traced[[]batch=2]) and *",
            "E *level='quick'*",
        ]
    )


def test_the_report_of_a_failure_shows_the_test_and_not_the_plugin(pytester: pytest.Pytester, program: Program) -> None:
    pytester.makepyfile("def test_pair(flowopt_equivalent, model, other): flowopt_equivalent(model, other)")
    result = pytester.runpytest_inprocess(plugins=[Models(program)])
    result.stdout.fnmatch_lines(["> *flowopt_equivalent(model, other)"])
    for hidden in ("*pytest_plugin.py*", "*assert_equivalent.py*"):
        result.stdout.no_fnmatch_line(hidden)


@pytest.mark.parametrize(
    ("test", "ini", "arguments", "level"),
    [
        (COMPARES, "", [], "quick"),
        (COMPARES, "", ["--flowopt-level", "full"], "full"),
        (COMPARES, "flowopt_level = full", [], "full"),
        (COMPARES, "flowopt_level = full", ["--flowopt-level", "quick"], "quick"),
        (FULL_IN_THE_CALL, "", [], "full"),
    ],
)
def test_the_level_reaches_verify(
    pytester: pytest.Pytester, calls: list[dict[str, Any]], test: str, ini: str, arguments: list[str], level: str
) -> None:
    pytester.makepyfile(test)
    pytester.makeini(f"[pytest]\n{ini}\n")
    pytester.inline_run(*arguments).assertoutcome(passed=1)
    assert [call["level"] for call in calls] == [level]


def test_a_run_keeps_nothing_for_the_next(pytester: pytest.Pytester, calls: list[dict[str, Any]]) -> None:
    pytester.makepyfile(COMPARES)
    pytester.inline_run("--flowopt-level", "full")
    pytester.inline_run()
    assert [call["level"] for call in calls] == ["full", "quick"]


@pytest.mark.parametrize("level", ["quick", "full"])
def test_the_header_of_the_report_says_the_level(pytester: pytest.Pytester, level: str) -> None:
    pytester.makepyfile("def test_nothing(): pass")
    result = pytester.runpytest_inprocess("--flowopt-level", level)
    result.stdout.fnmatch_lines([f"flowopt: level {level}"])


def test_a_level_that_does_not_exist_is_a_usage_error(pytester: pytest.Pytester) -> None:
    result = pytester.runpytest_inprocess("--flowopt-level", "thorough")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--flowopt-level: invalid choice: 'thorough' (choose from *quick*full*)"])


def test_such_a_level_in_the_configuration_is_a_usage_error(pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\nflowopt_level = thorough\n")
    result = pytester.runpytest_inprocess("-q")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: flowopt_level = 'thorough' in *tox.ini: write quick or full"])


def test_worst_cases_of_one_test_lie_beside_each_other_in_its_folder(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    def verify(reference: object, candidate: object, *, level: str, reproducer: Path) -> Verdict:
        reproducer.touch()
        return Verdict(Outcome.DIFFERENT, (Finding("twin", "logits", "prime", "too far"),))

    monkeypatch.setattr("flowopt.workflows.verify.verify", verify)
    pytester.makepyfile(
        """
        import pytest

        def test_pairs(flowopt_equivalent, tmp_path):
            for name in ("worst", "worst_2", "worst_3"):
                with pytest.raises(AssertionError, match=f"worst case saved to .*/{name}.npz;"):
                    flowopt_equivalent("one", "other")
            assert sorted(p.name for p in tmp_path.iterdir()) == ["worst.npz", "worst_2.npz", "worst_3.npz"]
        """
    )
    pytester.inline_run().assertoutcome(passed=1)


def test_an_equivalent_pair_leaves_nothing_in_the_folder_of_the_test(
    pytester: pytest.Pytester, program: Program
) -> None:
    pytester.makepyfile(
        """
        def test_pair(flowopt_equivalent, model, same, tmp_path):
            flowopt_equivalent(model, same)
            assert not list(tmp_path.iterdir())
        """
    )
    pytester.inline_run(plugins=[Models(program)]).assertoutcome(passed=1)


def test_the_call_may_name_its_own_file(pytester: pytest.Pytester, program: Program) -> None:
    pytester.makepyfile(
        """
        def test_pair(flowopt_equivalent, model, same, tmp_path):
            flowopt_equivalent(model, same, reproducer=tmp_path / "mine.npz")
            assert [p.name for p in tmp_path.iterdir()] == ["mine.npz"]
        """
    )
    pytester.inline_run(plugins=[Models(program)]).assertoutcome(passed=1)


def test_it_can_be_switched_off(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(COMPARES)
    result = pytester.runpytest_inprocess("-p", "no:flowopt")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*fixture 'flowopt_equivalent' not found"])
    result.stdout.no_fnmatch_line("flowopt: level*")


def test_help_lists_the_option_and_the_fixture_is_listed(pytester: pytest.Pytester) -> None:
    result = pytester.runpytest_inprocess("--help")
    result.stdout.fnmatch_lines(["flowopt:", "*--flowopt-level*quick,full*", "*flowopt_level (string):*"])
    result = pytester.runpytest_inprocess("--fixtures")
    result.stdout.fnmatch_lines(["flowopt_equivalent*", "    Assert that two models are the same function*"])


def test_pytest_loads_it_without_anything_heavy(tmp_path: Path) -> None:
    report = "print(sorted({m.split('.')[0] for m in sys.modules} & {'torch', 'numpy', 'onnx', 'onnxruntime', 'rich'}))"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys, pytest; pytest.main(['--help', '-p', 'no:hypothesis']); {report}"],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "--flowopt-level" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_plugin_loads_only_these_modules_of_flowopt(tmp_path: Path) -> None:
    code = (
        "import sys, flowopt.testing.pytest_plugin; print(*sorted(m for m in sys.modules if m.startswith('flowopt')))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    loaded = {m.removeprefix("flowopt.") for m in done.stdout.split() if not m.startswith("flowopt.testing")}
    assert loaded == {"flowopt", "errors", "verification", "verification.levels"}
