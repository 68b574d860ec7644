"""Several sets of inputs walk together: each is what it is alone, and stored tensors are read once for all."""

from collections import Counter
from functools import cache, partial

import pytest
import torch
from torch import Tensor, fx, nn

from flowopt.errors import InternalError
from flowopt.ir.evaluate import Feed, Value, evaluate, evaluate_together
from flowopt.program.capture import capture
from flowopt.program.program import Program


class Model(nn.Module):
    """A lookup that fails for large indices, between two readers of one weight."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(3, 3, generator=generator))
        self.table = nn.Parameter(torch.randn(4, 3, generator=generator))

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        found = nn.functional.embedding(ids, self.table)
        return nn.functional.linear(nn.functional.linear(x, self.weight) + found, self.weight)


@cache
def program() -> Program:
    return capture(Model().eval(), (torch.ones(2, 3), torch.tensor([0, 1])))


def inputs(seed: int, *ids: int) -> dict[str, Tensor]:
    return {"x": torch.randn(2, 3, generator=torch.Generator().manual_seed(seed)), "ids": torch.tensor(ids)}


def alone(given: dict[str, Tensor]) -> Tensor:
    (found,) = evaluate(program().graph, program().read, given)
    assert isinstance(found, Tensor)
    return found


def together(*feeds: Feed, raised: bool = False) -> list[tuple[Value, ...] | Exception]:
    return evaluate_together(program().graph, program().tensors.__getitem__, feeds, raised=raised)


def value_of(found: tuple[Value, ...] | Exception) -> Tensor:
    assert not isinstance(found, Exception)
    (value,) = found
    assert isinstance(value, Tensor)
    return value


def test_each_gets_what_it_gets_alone() -> None:
    given = [inputs(seed, seed % 4, 1) for seed in range(3)]
    found = together(*map(Feed, given))
    assert all(torch.equal(value_of(f), alone(g)) for f, g in zip(found, given, strict=True))


def test_one_that_fails_leaves_the_others_alone() -> None:
    observed: list[str] = []
    bad = Feed(inputs(1, 0, 9), observe=lambda node, value: observed.append(node.name))
    first, failed, last = together(Feed(inputs(0, 1, 2)), bad, Feed(inputs(2, 3, 3)))
    assert isinstance(failed, IndexError)
    assert any("while evaluating" in note and "embedding" in note for note in failed.__notes__)
    assert torch.equal(value_of(first), alone(inputs(0, 1, 2)))
    assert torch.equal(value_of(last), alone(inputs(2, 3, 3)))
    assert "embedding" not in observed and not any("linear_1" in name for name in observed)


def test_all_may_fail() -> None:
    found = together(Feed(inputs(0, 9, 9)), Feed(inputs(1, 8, 8)))
    assert all(isinstance(one, IndexError) for one in found)


def test_no_feeds_give_no_results() -> None:
    assert together() == []


@pytest.mark.parametrize("raised", [False, True])
def test_a_stored_tensor_is_read_once_per_node_for_all(raised: bool) -> None:
    reads: Counter[str] = Counter()

    def read(name: str) -> Tensor:
        reads[name] += 1
        return program().tensors[name]

    given = [inputs(seed, 0, 1) for seed in range(5)]
    feeds = [Feed({"x": g["x"].double() if raised else g["x"], "ids": g["ids"]}) for g in given]
    found = evaluate_together(program().graph, read, feeds, raised=raised)
    assert not any(isinstance(one, Exception) for one in found)
    assert reads == {"weight": 2, "table": 1}


def test_raised_feeds_are_computed_in_float64() -> None:
    given = inputs(0, 1, 2)
    (found,) = together(Feed({"x": given["x"].double(), "ids": given["ids"]}), raised=True)
    weight, table = (program().tensors[n].double() for n in ("weight", "table"))
    wanted = (given["x"].double() @ weight.t() + table[given["ids"]]) @ weight.t()
    assert float((value_of(found) - wanted).abs().max()) < 1e-14


def test_overrides_are_each_feeds_own() -> None:
    given = inputs(0, 1, 2)
    zeros = torch.zeros(2, 3)
    plain, changed = together(Feed(given), Feed(given, override={"embedding": zeros}))
    assert torch.equal(value_of(plain), alone(given))
    weight = program().tensors["weight"]
    assert torch.equal(value_of(changed), nn.functional.linear(nn.functional.linear(given["x"], weight), weight))


def test_a_stored_tensor_may_be_overridden_for_one_of_them() -> None:
    given = inputs(0, 1, 2)
    (name,) = (n.name for n in program().graph.nodes if n.op == "get_attr" and n.target == "table")
    plain, changed = together(Feed(given), Feed(given, override={name: torch.zeros(4, 3)}))
    assert torch.equal(value_of(plain), alone(given))
    assert not torch.equal(value_of(changed), alone(given))


def test_an_override_may_be_made_of_the_nodes_own_value() -> None:
    given = inputs(0, 1, 2)
    (doubled,) = together(Feed(given, override={"linear_1": lambda value: value * 2}))
    assert torch.equal(value_of(doubled), alone(given) * 2)


def test_observers_see_their_own_values_and_no_stored_tensors() -> None:
    seen: list[dict[str, Value]] = [{}, {}]

    def keep(at: int, node: fx.Node, value: Value) -> None:
        seen[at][node.name] = value

    given = [inputs(0, 1, 2), inputs(1, 2, 3)]
    found = together(*(Feed(g, observe=partial(keep, at)) for at, g in enumerate(given)))
    for at in (0, 1):
        assert list(seen[at]) == ["x", "ids", "embedding", "linear", "add", "linear_1"]
        assert torch.equal(seen[at]["x"], given[at]["x"]) and torch.equal(seen[at]["linear_1"], value_of(found[at]))


def test_observers_see_what_an_override_gave() -> None:
    seen: dict[str, Value] = {}
    feed = Feed(
        inputs(0, 1, 2), override={"embedding": torch.ones(2, 3)}, observe=lambda n, v: seen.update({n.name: v})
    )
    together(feed)
    assert torch.equal(seen["embedding"], torch.ones(2, 3))


def test_a_missing_input_is_no_finding_about_the_feed() -> None:
    with pytest.raises(InternalError, match="no value for input 'ids'"):
        together(Feed(inputs(0, 1, 2)), Feed({"x": torch.ones(2, 3)}))


def test_a_defect_of_an_observer_is_not_taken_for_the_models() -> None:
    def broken(node: fx.Node, value: Value) -> None:
        raise RuntimeError("an observer's own mistake")

    with pytest.raises(RuntimeError, match="an observer's own mistake"):
        together(Feed(inputs(0, 1, 2), observe=broken))
