import weakref
from collections import Counter

import pytest
import torch
from torch import Tensor, fx

from flowopt.errors import InternalError
from flowopt.ir import streamed
from flowopt.ir.constants import node_values, node_values_together

aten = torch.ops.aten


def graph() -> tuple[fx.Graph, fx.Node, fx.Node]:
    """x -> x @ t(w) -> reshape to one row of six; w is stored."""
    made = fx.Graph()
    x, w = made.placeholder("x"), made.get_attr("w")
    product = made.call_function(aten.mm.default, (x, made.call_function(aten.t.default, (w,))))
    row = made.call_function(aten.reshape.default, (product, [1, 6]))
    made.output((row,))
    return made, x, row


def test_stored_tensors_are_read_once_for_all() -> None:
    _, x, row = graph()
    reads: Counter[str] = Counter()
    weight = torch.randn(3, 4)

    def read(name: str) -> Tensor:
        reads[name] += 1
        return weight

    inputs = [torch.randn(2, 4) for _ in range(3)]
    found = node_values_together([row], read, [{x: one} for one in inputs], raised=False)
    assert reads == {"w": 1}
    for one, values in zip(inputs, found, strict=True):
        assert isinstance(values, dict)
        assert torch.equal(values[row], (one @ weight.T).reshape(1, 6))


def test_one_that_fails_does_not_stop_the_others() -> None:
    _, x, row = graph()
    givens = [{x: torch.ones(rows, 4)} for rows in (2, 5, 2)]
    first, second, third = node_values_together([row], lambda _: torch.ones(3, 4), givens, raised=False)
    assert isinstance(second, RuntimeError)
    assert isinstance(first, dict) and isinstance(third, dict) and torch.equal(first[row], third[row])


def test_a_failing_stored_expression_fails_for_all() -> None:
    _, x, row = graph()
    givens = [{x: torch.ones(2, 4)}] * 2
    found = node_values_together([row], lambda _: torch.ones(1, 1, 1), givens, raised=False)
    assert all(isinstance(one, RuntimeError) for one in found)
    with pytest.raises(RuntimeError):
        node_values([row], lambda _: torch.ones(1, 1, 1), givens[0], raised=False)


def test_an_input_without_a_value_is_named() -> None:
    _, _, row = graph()
    with pytest.raises(InternalError, match="x"):
        node_values([row], lambda _: torch.ones(3, 4), {}, raised=False)


def test_values_go_after_their_last_reader() -> None:
    made = fx.Graph()
    alive: list[weakref.ref[Tensor]] = []

    def step(value: Tensor) -> Tensor:
        assert sum(one() is not None for one in alive) <= 2  # the wanted one, and what is read here
        result = value + 1
        alive.append(weakref.ref(result))
        return result

    x = made.placeholder("x")
    chain = [x]
    for _ in range(6):
        chain.append(made.call_function(step, (chain[-1],)))
    wanted = [chain[2], chain[-1]]
    found = node_values(wanted, lambda _: torch.ones(1), {x: torch.zeros(3)}, raised=False)
    assert {node: value.tolist() for node, value in found.items()} == {chain[2]: [2.0] * 3, chain[-1]: [6.0] * 3}


def test_a_large_weight_that_is_wanted_transposed_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streamed, "PART_BYTES", 8)
    made, x, row = graph()
    transposed = next(node for node in made.nodes if node.target is aten.t.default)
    weight, given = torch.randn(3, 4), torch.randn(2, 4).double()
    found = node_values([transposed, row], lambda _: weight, {x: given}, raised=True)
    assert found[transposed].dtype is torch.float64
    assert torch.equal(found[row], (given @ weight.double().T).reshape(1, 6))
