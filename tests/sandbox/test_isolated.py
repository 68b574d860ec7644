"""A function in a process of its own: its result or an error comes back, whatever it does."""

import os
import time
from pathlib import Path
from typing import Any

import pytest

import flowopt
from flowopt.errors import InternalError, MalformedModel, UserError
from flowopt.formats.limits import MEBIBYTE, Limits
from flowopt.sandbox.isolated import run_isolated
from tests.sandbox.run import ROOT, run


class TestResults:
    def test_a_json_value_comes_back(self) -> None:
        value: dict[str, Any] = {"a": [1, 2.5, None, True, "ü\udcff\n"], "b": {"c": []}}
        assert run("echo", **value) == value

    def test_starting_costs_little(self) -> None:
        times = []
        for _ in range(3):
            start = time.perf_counter()
            run_isolated("flowopt.sandbox.network:network_namespace", {})
            times.append(time.perf_counter() - start)
        assert min(times) < 0.5  # 0.04 s here; torch alone would take more than a second

    def test_a_result_that_json_cannot_hold_is_our_own_error(self) -> None:
        with pytest.raises(InternalError, match="functions:unspeakable returned what JSON cannot hold"):
            run("unspeakable")

    def test_an_answer_beyond_all_bounds_is_refused(self) -> None:
        with pytest.raises(MalformedModel, match="more than 64 MiB to say"):
            run("talkative")

    def test_flowopt_is_the_one_that_asks(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "flowopt.py").write_text("raise SystemExit")
        (tmp_path / "json.py").write_text("raise SystemExit")
        monkeypatch.syspath_prepend(tmp_path)
        assert run("package_files") == [flowopt.__file__, str(ROOT / "tests" / "__init__.py")]

    def test_arguments_must_be_json_values(self) -> None:
        with pytest.raises(TypeError, match="not JSON serializable"):
            run("echo", path=Path("model"))


class TestErrors:
    def test_an_error_of_flowopt_keeps_its_class_and_fields(self) -> None:
        with pytest.raises(MalformedModel) as caught:
            run("refuse")
        error = caught.value
        assert (error.message, error.why, error.hint) == ("no", "because", "do this")
        assert error.retry == (("--limit", "nodes=5"), ("--trust", "code"))
        assert error.__notes__ == ["model.onnx: node 3"]

    def test_a_private_subclass_arrives_as_the_public_class_above_it(self) -> None:
        with pytest.raises(UserError, match="private") as caught:
            run("refuse_privately")
        assert type(caught.value) is UserError

    def test_any_other_exception_is_the_models_fault(self) -> None:
        with pytest.raises(MalformedModel) as caught:
            run("fail")
        assert caught.value.message == "KeyError: 'first line\\nsecond line'"
        assert "functions.py" in str(caught.value.__cause__) and "in fail" in str(caught.value.__cause__)

    def test_only_the_first_line_of_a_message_is_shown(self) -> None:
        with pytest.raises(MalformedModel) as caught:
            run("raise_text", text="first\nsecond")
        assert caught.value.message == "RuntimeError: first"

    def test_leaving_is_an_exception_too(self) -> None:
        with pytest.raises(MalformedModel, match="SystemExit: 0"):
            run("leave")

    def test_an_end_without_an_answer_names_the_status_and_the_last_words(self) -> None:
        with pytest.raises(MalformedModel, match=r"without an answer \(exit status 7\)") as caught:
            run("end_at_once")
        assert caught.value.why == "the last words"

    @pytest.mark.parametrize("function", ["flowopt.sandbox.absent:f", "flowopt.sandbox.child:absent", "no_such:f"])
    def test_a_function_that_is_not_there_is_our_own_error(self, function: str) -> None:
        with pytest.raises(InternalError, match=r"absent|no_such"):
            run_isolated(function, {})


class TestMemory:
    @pytest.mark.parametrize("function", ["fill_memory", "fill_memory_with_small_things", "wrap_a_memory_error"])
    def test_too_much_memory_names_the_limit_and_twice_as_much(self, function: str) -> None:
        with pytest.raises(MalformedModel, match=r"more than 0\.293 GiB of memory") as caught:
            run(function, Limits(memory=300 * MEBIBYTE))
        assert caught.value.retry == (("--limit", f"memory={600 * MEBIBYTE}"),)
        assert f"in {function}" in str(caught.value.__cause__)

    @pytest.mark.parametrize("function", ["numpy_array", "torch_tensor"])
    def test_a_huge_array_is_too_much_memory(self, function: str) -> None:
        with pytest.raises(MalformedModel, match="more than 2 GiB of memory"):
            run(function, Limits(memory=2 << 30), size_bytes=3 << 30)

    def test_extra_memory_is_added(self) -> None:
        with pytest.raises(MalformedModel, match="GiB of memory"):
            run("numpy_array", Limits(memory=300 * MEBIBYTE), size_bytes=400 * MEBIBYTE)
        assert run("numpy_array", Limits(memory=300 * MEBIBYTE), 400 * MEBIBYTE, size_bytes=400 * MEBIBYTE)

    def test_without_a_limit_of_its_own_the_machines_counts(self) -> None:
        with pytest.raises(MalformedModel, match="GiB of memory"):
            run("numpy_array", size_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))

    def test_a_limit_in_which_python_cannot_start_is_too_little_memory(self) -> None:
        with pytest.raises(MalformedModel, match="GiB of memory"):
            run("echo", Limits(memory=1))

    def test_other_runtime_errors_are_not_taken_for_it(self) -> None:
        with pytest.raises(MalformedModel, match="RuntimeError: shapes differ"):
            run("raise_text", text="shapes differ")


class TestTime:
    def test_an_endless_loop_ends(self) -> None:
        start = time.monotonic()
        with pytest.raises(MalformedModel, match="took more than 1 seconds") as caught:
            run("loop", Limits(seconds=1))
        assert time.monotonic() - start < 8
        assert caught.value.retry == (("--limit", "seconds=2"),)

    @pytest.mark.usefixtures("hurried")
    def test_sleeping_uses_no_cpu_but_ends_too(self) -> None:
        start = time.monotonic()
        with pytest.raises(MalformedModel, match="took more than 1 seconds"):
            run("sleep", Limits(seconds=1))
        assert 1.5 < time.monotonic() - start < 8


class TestCrashes:
    def test_an_abort_is_named_with_the_last_words(self) -> None:
        with pytest.raises(MalformedModel, match=r"crashed the checking process \(SIGABRT\)") as caught:
            run("abort")
        assert caught.value.why == "a library says why"
        assert "in abort" in str(caught.value.__cause__)

    def test_a_read_of_nothing_is_named(self) -> None:
        with pytest.raises(MalformedModel, match=r"crashed the checking process \(SIGSEGV\)") as caught:
            run("read_null")
        assert "read_null" in str(caught.value.__cause__)

    def test_a_kill_from_outside_is_told_apart(self) -> None:
        with pytest.raises(MalformedModel, match=r"was killed \(SIGKILL\)"):
            run("kill_self")
