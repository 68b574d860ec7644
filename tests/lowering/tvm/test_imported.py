"""What ``imported`` promises beside numbers: arguments, parameters, bounds, refusals."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flowopt.errors import UserError
from flowopt.program.capture import capture
from tests.lowering.tvm.compare import captured, compiled, require_equivalent

pytest.importorskip("tvm")


class Tied(nn.Module):
    """An embedding whose weight is also the last layer's, a bias, and a parameter that nothing reads."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.head = nn.Linear(6, 11)
        self.head.weight = self.embed.weight
        self.unused = nn.Parameter(torch.randn(3))

    def forward(self, x: Tensor, y: Tensor) -> Any:
        return {"logits": self.head(self.embed(x)), "same": y, "weight": self.head.bias}


class Counter(nn.Module):
    """A buffer that each call changes."""

    total: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("total", torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        self.total.add_(x)
        return self.total * 2


class Factored(nn.Module):
    """A factorisation, which TVM has no form for."""

    def forward(self, x: Tensor) -> Tensor:
        factor, _ = torch.linalg.qr(x)
        return factor


def _imported(program: Any) -> Any:
    from flowopt.lowering.tvm.imported import imported

    return imported(program)


@pytest.fixture(scope="module")
def tied() -> Any:
    ids, unread = torch.randint(0, 11, (2, 5)), torch.randn(2, 3)
    module = Tied()
    nn.init.normal_(module.head.bias)
    dims = {"batch": (1, 7), "sequence": (1, None)}
    return capture(
        module.eval(), (ids, unread), dynamic={"x": {0: "batch", 1: "sequence"}, "y": {0: "batch"}}, dims=dims
    )


def test_a_tied_parameter_is_one_argument_and_an_unread_one_is_none(tied: Any) -> None:
    found = _imported(tied)
    assert sorted(found.parameters) == ["embed.weight", "head.bias"]
    assert set(found.parameters) <= set(tied.tensors)


def test_main_takes_inputs_then_parameters_and_bounds_its_free_sizes_by_name(tied: Any) -> None:
    main = _imported(tied).module["main"]
    assert [p.name for p in main.params][:2] == ["x", "y"]
    assert len(main.params) == 4
    assert int(main.attrs["num_input"]) == 2
    assert dict(main.attrs["tir_var_lower_bound"]) == {"batch": 1, "sequence": 1}
    assert dict(main.attrs["tir_var_upper_bound"]) == {"batch": 7}
    assert [str(s) for s in main.params[0].ty.shape.values] == ["batch", "sequence"]


def test_outputs_that_are_an_input_or_a_parameter_are_returned(tied: Any) -> None:
    small, large = ((torch.randint(0, 11, (b, n)), torch.randn(b, 3)) for b, n in ((1, 1), (7, 9)))
    require_equivalent(tied, small, large)


def test_state_is_an_input_and_its_next_value_an_output() -> None:
    program = capture(Counter().eval(), (torch.randn(4),))
    assert _imported(program).parameters == ()
    require_equivalent(program, (torch.randn(4),))


def test_an_input_that_nothing_reads_stays_an_argument() -> None:
    program = captured(lambda x, y: x + 1, torch.randn(2), torch.randn(3))
    require_equivalent(program, (torch.randn(2), torch.randn(3)))


def test_a_single_output_comes_in_a_tuple() -> None:
    found = compiled(captured(lambda x: x * 2, torch.randn(3)))({"x": torch.ones(3)})
    assert [t.tolist() for t in found.values()] == [[2.0, 2.0, 2.0]]


def test_an_operator_without_a_form_is_refused_with_the_users_line() -> None:
    program = captured(Factored(), torch.randn(3, 3))
    with pytest.raises(UserError) as refusal:
        _imported(program)
    message = str(refusal.value)
    assert "aten.linalg_qr.default" in message
    assert "tvm/test_imported.py" in message
    assert "factor, _ = torch.linalg.qr(x)" in message
    assert "--target cpu" in message


def test_a_complex_input_is_refused() -> None:
    with pytest.raises(UserError, match="complex64"):
        _imported(captured(torch.view_as_real, torch.randn(4, dtype=torch.complex64)))


def test_a_size_that_depends_on_the_data_is_refused() -> None:
    with pytest.raises(UserError, match="depends on the data"):
        _imported(captured(lambda x: x[x > 0], torch.randn(4)))
