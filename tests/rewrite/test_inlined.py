from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flowopt.errors import CaptureError, InternalError
from flowopt.ir.legality import violations
from flowopt.program.capture import capture
from flowopt.program.capture_freely import capture_freely
from flowopt.program.program import Program
from flowopt.rewrite.edit import Edit
from flowopt.rewrite.inlined import inlined
from tests.passes.programs import Written, normal


def outer(*, is_free: bool = True) -> Program:
    """tanh of x, (batch, length, 3)."""
    dynamic = {"x": {0: "batch", 1: "length"}} if is_free else None
    return capture(Written(lambda m, x: x.tanh().relu()).eval(), (normal(2, 5, 3),), dynamic=dynamic)


def chunked(m: Any, x: Tensor) -> Tensor:
    """Sums within chunks of four, positions that are compared, sums in float32 or more, a cast back."""
    batch, length, width = x.shape
    count = (length + 3) // 4
    filled = nn.functional.pad(x.float() * m.scale, (0, 0, 0, count * 4 - length))
    sums = filled.reshape(batch, count, 4, width).cumsum(2).reshape(batch, count * 4, width)[:, :length]
    early = torch.arange(length) < m.first
    return (sums * early[:, None]).to(x.dtype)


def put(program: Program, inner: Program, prefix: str = "here") -> Program:
    """The inner program in the place of the relu."""
    made = program.copy()
    relu = made.node("relu")
    edit = Edit(made, relu, "test-pass")
    edit.replace(relu, inlined(edit, inner, {"x": made.node("tanh")}, prefix=prefix))
    made.drop_unused()
    return made


PARTS: dict[str, Any] = {"scale": torch.tensor([1.5, -2.0, 0.3]), "first": torch.tensor(9)}
INNER = Written(chunked, **PARTS).eval()
FREE = {"x": (0, 1)}


@pytest.fixture(scope="module")
def inner() -> Program:
    return capture_freely(INNER, {"x": normal(2, 13, 3)}, FREE)


@pytest.mark.parametrize("length", [1, 3, 4, 11])
def test_what_is_computed_of_sizes_follows_the_outer_program(inner: Program, length: int) -> None:
    made = put(outer(), inner)
    assert list(violations(made.graph, made.tensors)) == []
    assert made.shape("output") == ("batch", "length", 3)
    x = normal(3, length, 3, seed=5)
    assert torch.equal(made.run(x), INNER(x.tanh()))  # type: ignore[arg-type]  # one tensor


def test_sizes_that_are_fixed_become_numbers(inner: Program) -> None:
    made = put(outer(is_free=False), inner)
    assert made.shape("output") == (2, 5, 3)
    x = normal(2, 5, 3, seed=5)
    assert torch.equal(made.run(x), INNER(x.tanh()))  # type: ignore[arg-type]  # one tensor


def test_the_twin_has_raised_tensors_and_whole_numbers_stay(inner: Program) -> None:
    twin = put(outer().raised_copy(), inner)
    x = normal(3, 6, 3, seed=5, dtype=torch.float64)
    found = twin.run_named({"x": x})["output"]
    assert (twin.tensors["here.scale"].dtype, twin.tensors["here.first"].dtype) == (torch.float64, torch.int64)
    exact = Written(lambda m, x: chunked(m, x), **PARTS | {"scale": PARTS["scale"].double()})
    # The sums of the module are in float32.
    torch.testing.assert_close(found, exact(x.tanh()), rtol=1e-6, atol=1e-6)
    assert found.dtype is torch.float64


def test_stored_tensors_are_stored_under_names_of_their_own(inner: Program) -> None:
    program = outer()
    program.tensors["here.scale"] = torch.zeros(1)
    made = put(program, inner)
    assert torch.equal(made.tensors["here.scale_1"], PARTS["scale"])


def test_an_input_that_is_not_given_is_an_error(inner: Program) -> None:
    program = outer()
    with pytest.raises(InternalError, match="nothing is given for the input 'x'"):
        inlined(Edit(program, program.node("relu"), "test-pass"), inner, {}, prefix="here")


def test_a_module_that_fixes_a_size_is_refused() -> None:
    fixed = Written(lambda m, x: x + m.table, table=normal(13, 3)).eval()
    with pytest.raises(CaptureError, match="for one size of axis 1 of 'x' only"):
        capture_freely(fixed, {"x": normal(2, 13, 3)}, FREE)
