"""assert_refuses must fail unless every site is refused with the code, with a message and without a change."""

from typing import Any

import pytest

from flowopt.errors import InternalError
from flowopt.program.program import Program
from flowopt.rewrite import RewritePass
from flowopt.testing import assert_refuses
from tests.testing import lying_passes as lying
from tests.testing import wrong_passes as wrong
from tests.testing.negations import RemoveNegations, X, negations


def test_passes_for_a_refusal(program: Program) -> None:
    run = assert_refuses(wrong.RefusesEverything(), program, code="post-norm")
    assert run.records[0].refusal_counts == {"post-norm": 2}


def test_takes_a_module_with_inputs_and_free_dimensions() -> None:
    free: dict[str, Any] = {"dynamic": {"x": {0: "batch"}}, "dims": {"batch": (1, 8)}}
    run = assert_refuses(wrong.RefusesEverything(), negations(), {"x": X}, code="post-norm", **free)
    assert run.program.dims[0].maximum == 8


@pytest.mark.parametrize(
    ("pass_class", "message"),
    [
        (RemoveNegations, "remove-negations fired at neg_1: removed"),
        (wrong.FindsNoSite, "finds-no-site found no site"),
        (wrong.RefusesWithoutMessage, "refuses-without-message refuses neg without a message"),
        (wrong.RefusesTwoWays, r"\['not-constant', 'post-norm'\], not 'post-norm': not today \(site neg_1\)"),
    ],
)
def test_fails_unless_every_site_is_refused_with_the_code(
    pass_class: type[RewritePass[Any]], message: str, program: Program
) -> None:
    with pytest.raises(AssertionError, match=message):
        assert_refuses(pass_class(), program, code="post-norm")


def test_fails_for_another_code(program: Program) -> None:
    with pytest.raises(AssertionError, match=r"refused with \['post-norm'\], not 'not-constant': not today"):
        assert_refuses(wrong.RefusesEverything(), program, code="not-constant")


@pytest.mark.parametrize(
    ("pass_class", "message"),
    [
        (lying.ChangesWhileRefusing, "refused every site but changed the program"),
        (lying.RefusesWithAnUnknownCode, "'no-such-code' is in no vocabulary"),
    ],
)
def test_fails_for_a_pass_that_breaks_a_promise(
    pass_class: type[RewritePass[Any]], message: str, program: Program
) -> None:
    with pytest.raises(AssertionError, match=message) as raised:
        assert_refuses(pass_class(), program, code="not-constant")
    assert isinstance(raised.value.__cause__, InternalError)


def test_fails_for_a_pass_that_writes_while_it_refuses() -> None:
    model = negations()
    model.get_parameter("fc.bias").data[0] = 0.0
    with pytest.raises(AssertionError, match="writes-while-refusing changed the caller's model: fc.bias"):
        assert_refuses(lying.WritesWhileRefusing(), model, (X,), code="post-norm")


def test_an_exception_keeps_its_type_and_names_the_place(program: Program) -> None:
    with pytest.raises(ZeroDivisionError) as raised:
        assert_refuses(wrong.CrashesInCheck(), program, code="post-norm")
    assert "while crashes-in-check checked %neg" in raised.value.__notes__[0]
