"""A schedule is taken only where its kernels can be launched."""

from typing import Any

import pytest

from flowopt.errors import InternalError

tvm = pytest.importorskip("tvm")


class WholeRows:
    """A rule that copies a row into shared memory before it works on it."""

    def apply(self, function: Any, target: Any, tunable: bool) -> Any:
        from tvm import s_tir

        schedule = s_tir.Schedule(function)
        block = schedule.get_child_blocks(schedule.get_sblock("root"))[0]
        row, element = schedule.get_loops(block)
        schedule.bind(row, "blockIdx.x")
        schedule.bind(schedule.split(element, [None, 256])[1], "threadIdx.x")
        copied = schedule.cache_read(block, 0, "shared")
        schedule.compute_at(copied, row)
        schedule.bind(schedule.split(schedule.get_loops(copied)[-1], [None, 256])[1], "threadIdx.x")
        return schedule


class Raising:
    """A rule that raises for a function that is not its own, as TVM's do."""

    def apply(self, function: Any, target: Any, tunable: bool) -> Any:
        raise AssertionError("not mine")


def _exponentials(length: int | None) -> Any:
    """Of four rows, whose length is free where it is None."""
    from tvm import te, tirx, topi

    size = tirx.Var("length", "int64") if length is None else tirx.IntImm("int64", length)
    rows = te.placeholder((tirx.IntImm("int64", 4), size), name="rows")
    function = te.create_prim_func([rows, topi.exp(rows)])
    return tvm.IRModule({"exponentials": function.with_attr("global_symbol", "exponentials")})


def _with(rules: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch, length: int | None = None) -> Any:
    from flowopt.lowering.tvm.cuda import kernels
    from flowopt.lowering.tvm.cuda.architecture import cuda_target

    monkeypatch.setattr(kernels, "_RULES", rules)
    return kernels.with_kernels(_exponentials(length), cuda_target("sm_90"))["exponentials"]


def test_a_function_that_no_rule_takes_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InternalError, match="no schedule makes GPU kernels of exponentials"):
        _with((), monkeypatch)


def test_kernels_within_the_limits_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "shared" in _with((WholeRows(),), monkeypatch, length=1024).script()


@pytest.mark.parametrize("length", [None, 16384])
def test_more_shared_memory_than_a_block_has_is_not_taken(monkeypatch: pytest.MonkeyPatch, length: int | None) -> None:
    with pytest.raises(InternalError, match="no schedule"):
        _with((WholeRows(),), monkeypatch, length)


@pytest.mark.parametrize("first", [WholeRows(), Raising()], ids=["too large", "raises"])
def test_the_next_rule_is_asked(first: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from tvm.s_tir.dlight import gpu

    taken = _with((first, gpu.Fallback()), monkeypatch)
    assert taken.attrs["tirx.is_scheduled"]
    assert "threadIdx.x" in taken.script()
    assert "shared" not in taken.script()
