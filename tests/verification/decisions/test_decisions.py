"""Every deciding operator near its boundary, on it, and far from it."""

import math
import operator
from typing import Any

import pytest
import torch
from torch import Tensor, fx

from flowopt.program.program import Program, Provenance
from flowopt.verification.decisions.decisions import Decision, decisions, flipped
from flowopt.verification.decisions.flips import Seen

aten = torch.ops.aten
CLOSE = 1e-6  # how far values lie from a boundary when they are close
TOLERANCE = 1e-5


def node_of(target: Any, *args: Any, **kwargs: Any) -> tuple[fx.Node, dict[str, Tensor]]:
    """A node that calls an operator, and its tensors by the names of the placeholders in their places."""
    graph = fx.Graph()
    values: dict[str, Tensor] = {}

    def placed(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        node = graph.placeholder(f"x{len(values)}")
        node.meta["val"] = value
        values[node.name] = value
        return node

    node = graph.call_function(target, tuple(map(placed, args)), {k: placed(v) for k, v in kwargs.items()})
    return node, values


def turned(target: Any, *args: Any, tolerance: float | Tensor = TOLERANCE, **kwargs: Any) -> tuple[Any, Any, int]:
    """What an operator gives, what it gives with undecided elements turned, and how many those are."""
    node, values = node_of(target, *args, **kwargs)
    result = target(*args, **kwargs)
    seen = {
        name: Seen(
            v.double(),
            torch.as_tensor(tolerance if v.is_floating_point() else 0.0, dtype=torch.float64).expand(v.shape),
        )
        for name, v in values.items()
    }
    other, count = flipped(Decision(node, tuple(node.all_input_nodes)), seen, result)
    return result, other, count


def numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# Operator, further arguments, a boundary: on both sides of it the operator gives something else.
BOUNDARIES: list[tuple[Any, tuple[Any, ...], dict[str, Any], float]] = [
    *[(getattr(aten, name).default, (), {}, at) for name in ("floor", "ceil") for at in (3.0, 0.0, -2.0)],
    *[(getattr(aten, name).default, (), {}, at) for name in ("trunc", "fix", "frac") for at in (3.0, -2.0, 1.0, -1.0)],
    *[(aten.round.default, (), {}, at) for at in (2.5, 3.5, 0.5, -0.5, -2.5)],
    (aten.round.decimals, (), {"decimals": 1}, 0.25),
    (aten.round.decimals, (), {"decimals": 1}, -1.35),
    *[(aten.div.Tensor_mode, (2.0,), {"rounding_mode": how}, at) for how in ("floor", "trunc") for at in (6.0, -4.0)],
    (aten.div.Scalar_mode, (2.0,), {"rounding_mode": "floor"}, 4.0),
    (aten.div.Tensor_mode, (numbers(-2.0),), {"rounding_mode": "floor"}, 6.0),
    (aten.floor_divide.default, (0.5,), {}, 1.5),
    (aten.floor_divide.Scalar, (0.5,), {}, 1.5),
    *[(aten.remainder.Scalar, (3.0,), {}, at) for at in (6.0, 0.0, -3.0)],
    (aten.remainder.Tensor, (numbers(-3.0),), {}, 6.0),
    *[(aten.fmod.Scalar, (3.0,), {}, at) for at in (6.0, -3.0)],
    (aten.fmod.Tensor, (numbers(3.0),), {}, 6.0),
    *[(aten._to_copy.default, (), {"dtype": t}, at) for t in (torch.int64, torch.int32) for at in (2.0, -2.0)],
    (aten._to_copy.default, (), {"dtype": torch.uint8}, 255.0),
    *[(getattr(aten, name).Scalar, (0.3,), {}, 0.3) for name in ("lt", "le", "gt", "ge")],
    *[(getattr(aten, name).Tensor, (numbers(-0.3),), {}, -0.3) for name in ("lt", "le", "gt", "ge")],
    (aten.sign.default, (), {}, 0.0),
    (aten.sgn.default, (), {}, 0.0),
    (aten.signbit.default, (), {}, 0.0),
    (aten.heaviside.default, (numbers(0.5),), {}, 0.0),
    (aten.threshold.default, (0.1, 20.0), {}, 0.1),
    *[(aten.bucketize.Tensor, (numbers(0.0, 1.0, 5.0),), {"right": r}, at) for r in (False, True) for at in (0.0, 5.0)],
]


@pytest.mark.parametrize(("target", "arguments", "options", "boundary"), BOUNDARIES)
class TestBoundaries:
    def test_near_one_the_other_side_is_found(
        self, target: Any, arguments: tuple[Any, ...], options: dict[str, Any], boundary: float
    ) -> None:
        for side in (-CLOSE, CLOSE):
            result, other, count = turned(target, numbers(boundary + side), *arguments, **options)
            behind = target(numbers(boundary - side), *arguments, **options)
            assert count == 1
            assert float((result.double() - behind.double()).abs()) > 0.01  # it is a boundary
            # Remainders and thresholds keep a part that moves with the number itself.
            assert float((other.double() - behind.double()).abs()) <= 3 * CLOSE

    def test_far_from_one_it_is_decided(
        self, target: Any, arguments: tuple[Any, ...], options: dict[str, Any], boundary: float
    ) -> None:
        for side in (-0.01, 0.01):
            result, other, count = turned(target, numbers(boundary + side), *arguments, **options)
            assert count == 0 and torch.equal(result, other)

    def test_specials_are_decided(
        self, target: Any, arguments: tuple[Any, ...], options: dict[str, Any], boundary: float
    ) -> None:
        result, other, count = turned(target, numbers(math.nan, math.inf, -math.inf), *arguments, **options)
        assert count == 0 and torch.equal(result.nan_to_num(7.0), other.nan_to_num(7.0))

    def test_numbers_without_axes_and_no_numbers(
        self, target: Any, arguments: tuple[Any, ...], options: dict[str, Any], boundary: float
    ) -> None:
        arguments = tuple(a.squeeze() if isinstance(a, Tensor) and a.numel() == 1 else a for a in arguments)
        for shape in ((), (0,), (2, 0)):
            values = torch.full(shape, boundary + CLOSE, dtype=torch.float64)
            result, other, count = turned(target, values, *arguments, **options)
            assert count == math.prod(shape) and other.shape == result.shape and other.dtype == result.dtype


@pytest.mark.parametrize(
    ("target", "arguments", "options", "boundary"), [b for b in BOUNDARIES if b[0] is not aten.round.decimals]
)
def test_an_exact_number_on_a_boundary_is_decided(
    target: Any, arguments: tuple[Any, ...], options: dict[str, Any], boundary: float
) -> None:
    result, other, count = turned(target, numbers(boundary), *arguments, tolerance=0.0, **options)
    assert count == 0 and torch.equal(result, other)


class TestNumbers:
    def test_decimals_are_never_exact(self) -> None:
        assert turned(aten.round.decimals, numbers(-1.35), tolerance=0.0, decimals=1)[2] == 1
        assert turned(aten.round.decimals, numbers(-1.3), tolerance=0.0, decimals=1)[2] == 0

    @pytest.mark.parametrize("name", ["eq", "ne"])
    def test_equality_is_undecided_beside_the_other_number(self, name: str) -> None:
        values, others = numbers(1.0, 1.0 + CLOSE, 2.0), numbers(1.0)
        result, other, count = turned(getattr(aten, name).Tensor, values, others)
        assert count == 2 and (result != other).tolist() == [True, True, False]

    def test_tolerances_of_both_sides_count_and_broadcast(self) -> None:
        rows, column = numbers(0.0, 1.0, 2.0).expand(2, 3), numbers(1.0, 2.0).unsqueeze(-1)
        node, values = node_of(aten.lt.Tensor, rows, column)
        seen = {
            "x0": Seen(values["x0"], torch.tensor([[0.6], [0.0]]).double().expand(2, 3)),
            "x1": Seen(values["x1"], torch.tensor([[0.6], [0.0]]).double()),
        }
        other, count = flipped(Decision(node, tuple(node.all_input_nodes)), seen, rows < column)
        assert count == 3  # 0.6 + 0.6 spans the distance of 1 in the first row; the second is exact, ties included
        assert ((rows < column) != other).tolist() == [[True, True, True], [False, False, False]]

    def test_a_cast_to_booleans_asks_for_zero(self) -> None:
        values = numbers(CLOSE, -CLOSE, 1.0)
        for given in (
            turned(aten._to_copy.default, values, dtype=torch.bool),
            turned(aten.logical_not.default, values),
        ):
            result, other, count = given
            assert count == 2 and (result != other).tolist() == [True, True, False]

    def test_a_copied_sign_is_that_of_the_other_number(self) -> None:
        result, other, count = turned(aten.copysign.Tensor, numbers(2.0, 3.0), numbers(CLOSE, -1.0))
        assert count == 1 and result.tolist() == [2.0, -3.0] and other.tolist() == [-2.0, -3.0]

    def test_trunc_far_from_zero_by_less_than_its_tolerance(self) -> None:
        # The nearest whole number is 0, which is no boundary; 1 is, and 0.7 away.
        assert turned(aten.trunc.default, numbers(0.3), tolerance=0.6)[2] == 0
        _, other, count = turned(aten.trunc.default, numbers(0.3, -0.3), tolerance=0.8)
        assert count == 2 and other.tolist() == [1.0, -1.0]

    def test_a_quotient_rounds_even_of_exact_numbers(self) -> None:
        third = torch.tensor([0.6], dtype=torch.float32).double(), torch.tensor([0.2], dtype=torch.float32).double()
        assert float(third[0] / third[1]) != 3.0  # by a rounding of float32
        assert turned(aten.div.Tensor_mode, *third, tolerance=0.0, rounding_mode="floor")[2] == 1
        assert turned(aten.div.Tensor_mode, numbers(6.0), numbers(2.0), tolerance=0.0, rounding_mode="floor")[2] == 0

    def test_a_quotient_that_is_not_rounded_decides_nothing(self) -> None:
        assert turned(aten.div.Tensor_mode, numbers(3.0), 1.0, rounding_mode=None)[2] == 0

    def test_a_divisor_moves_the_quotient_too(self) -> None:
        above = Seen(numbers(6.0), numbers(0.0))
        node, _ = node_of(aten.div.Tensor_mode, numbers(6.0), numbers(2.0), rounding_mode="floor")
        for tolerance, wanted in ((1e-3, 1), (0.0, 0)):
            seen = {"x0": above, "x1": Seen(numbers(2.0), numbers(tolerance))}
            assert flipped(Decision(node, tuple(node.all_input_nodes)), seen, numbers(3.0))[1] == wanted

    def test_a_division_by_zero_is_decided(self) -> None:
        assert turned(aten.div.Tensor_mode, numbers(1.0, 0.0), 0.0, rounding_mode="floor")[2] == 0


class TestBest:
    @pytest.mark.parametrize("target", [aten.argmax.default, aten.argmin.default])
    @pytest.mark.parametrize("keeps", [False, True])
    @pytest.mark.parametrize("axis", [0, 1, -1, None])
    def test_the_runner_up_where_it_is_close(self, target: Any, keeps: bool, axis: int | None) -> None:
        values = numbers(5.0, 5.0 - CLOSE, 1.0, 2.0, 9.0, 9.0 + CLOSE).view(2, 3)
        values = -values if target is aten.argmin.default else values
        result, other, count = turned(target, values, axis, keeps)
        assert result.shape == other.shape
        if axis is None:
            assert count == 1 and {int(result), int(other)} == {4, 5}
        elif axis == 0:
            assert count == 0 and torch.equal(result, other)
        else:
            assert count == 2 and result.flatten().tolist() == [0, 2] and other.flatten().tolist() == [1, 1]

    @pytest.mark.parametrize("target", [aten.max.dim, aten.min.dim])
    def test_of_a_pair_the_indices_change(self, target: Any) -> None:
        sign = 1.0 if target is aten.max.dim else -1.0
        result, other, count = turned(target, sign * numbers(1.0, 5.0, 5.0 + CLOSE), 0, True)
        assert count == 1 and other[0] is result[0] and int(result[1]) == 2 and int(other[1]) == 1

    def test_a_tie_has_two_answers_whichever_is_given(self) -> None:
        values = numbers(3.0, 7.0, 7.0)
        result, other, count = turned(aten.argmax.default, values)
        assert count == 1 and {int(result), int(other)} == {1, 2}

    def test_exact_ties_are_decided(self) -> None:
        assert turned(aten.argmax.default, torch.zeros(4, 5).double(), -1, tolerance=0.0)[2] == 0

    def test_masked_scores_do_not_decide(self) -> None:
        lowest = float(torch.finfo(torch.float32).min)
        tolerance = torch.tensor([[0.0, 0.0, TOLERANCE, TOLERANCE]]).double()
        assert turned(aten.argmax.default, numbers(lowest, -math.inf, 1.0, 2.0)[None], -1, tolerance=tolerance)[2] == 0

    @pytest.mark.parametrize("special", [math.nan, math.inf])
    def test_specials_are_decided(self, special: float) -> None:
        assert turned(aten.argmax.default, numbers(1.0, special, 1.0, special))[2] == 0

    @pytest.mark.parametrize("values", [torch.tensor(3.0), torch.ones(3, 1), torch.ones(0, 4)])
    def test_one_choice_or_none(self, values: Tensor) -> None:
        result, other, count = turned(aten.argmax.default, values.double(), -1)
        assert count == 0 and torch.equal(result, other)


class TestOrder:
    def test_behind_the_last_kept_one_stands_the_next(self) -> None:
        result, other, count = turned(aten.topk.default, numbers(9.0, 1.0, 5.0, 5.0 - CLOSE, 2.0), 2)
        assert count == 1 and result[1].tolist() == [0, 2] and other[1].tolist() == [0, 3]
        assert other[0].tolist() == [9.0, 5.0 - CLOSE]

    def test_places_inside_are_exchanged(self) -> None:
        result, other, count = turned(aten.topk.default, numbers(1.0, 5.0, 5.0 - CLOSE, 3.0), 3)
        assert count == 1 and result[1].tolist() == [1, 2, 3] and other[1].tolist() == [2, 1, 3]

    def test_the_smallest_along_another_axis(self) -> None:
        values = numbers(1.0, 4.0, 1.0 + CLOSE, 8.0, 7.0, 6.0).view(3, 2)
        result, other, count = turned(aten.topk.default, values, 1, 0, False)
        assert count == 1 and result[1].tolist() == [[0, 0]] and other[1].tolist() == [[1, 0]]

    def test_all_that_there_are(self) -> None:
        assert turned(aten.topk.default, numbers(3.0, 2.0, 1.0), 3)[2] == 0
        assert turned(aten.topk.default, numbers(3.0, 2.0, 1.0), 0)[2] == 0

    def test_a_run_of_close_ones_all_change(self) -> None:
        result, other, count = turned(aten.sort.default, numbers(3.0, 3.0 + CLOSE, 3.0 + 2 * CLOSE, 9.0), 0)
        assert count == 2 and result[1].tolist() == [0, 1, 2, 3] and other[1].tolist() == [1, 2, 0, 3]

    @pytest.mark.parametrize("descending", [False, True])
    @pytest.mark.parametrize("form", ["sort", "stable", "argsort", "stable-argsort"])
    def test_every_spelling_of_a_sort(self, form: str, descending: bool) -> None:
        values = numbers(1.0, 4.0, 7.0, 4.0 + CLOSE, 2.0, 7.0 + 1.0).view(3, 2)
        options = {"dim": 0, "descending": descending}
        result, other, count = {
            "sort": lambda: turned(aten.sort.default, values, 0, descending),
            "stable": lambda: turned(aten.sort.stable, values, stable=True, **options),
            "argsort": lambda: turned(aten.argsort.default, values, 0, descending),
            "stable-argsort": lambda: turned(aten.argsort.stable, values, stable=True, **options),
        }[form]()
        result, other = (v[1] if isinstance(v, tuple) else v for v in (result, other))
        assert count == 1 and torch.equal(result[:, 0], other[:, 0])
        assert result[:, 1].tolist() == ([2, 1, 0] if descending else [0, 1, 2])
        assert other[:, 1].tolist() == ([2, 0, 1] if descending else [1, 0, 2])

    def test_a_stable_sort_decides_exact_ties_and_no_other_does(self) -> None:
        ties = torch.zeros(5).double()
        assert turned(aten.sort.stable, ties, tolerance=0.0, stable=True)[2] == 0
        assert turned(aten.argsort.stable, ties, tolerance=0.0, stable=True)[2] == 0
        assert turned(aten.sort.default, ties, tolerance=0.0)[2] == 4
        result, other, count = turned(aten.topk.default, ties, 2, tolerance=0.0)
        assert count == 2 and bool((result[1] != other[1]).all()) and len(set(other[1].tolist())) == 2

    def test_hidden_scores_behind_the_visible_ones_are_ties(self) -> None:
        values = numbers(-math.inf, 2.0, -math.inf, -math.inf, 1.0)
        result, other, count = turned(aten.topk.default, values, 3, tolerance=0.0)
        assert result[1].tolist()[:2] == other[1].tolist()[:2] == [1, 4]
        assert count == 1 and int(other[1][2]) in {0, 2, 3} - {int(result[1][2])}

    def test_specials_that_differ_are_decided(self) -> None:
        assert turned(aten.sort.default, numbers(math.nan, math.inf, 0.0, -math.inf))[2] == 0

    @pytest.mark.parametrize("values", [torch.tensor(3.0), torch.ones(2, 1), torch.ones(2, 0)])
    def test_one_element_or_none(self, values: Tensor) -> None:
        assert turned(aten.sort.default, values.double())[2] == 0

    def test_a_long_row_costs_no_loop(self) -> None:
        # 400,000 neighbours that are all close: a step of Python for each would take seconds.
        values = torch.linspace(0, 1, 400_000, dtype=torch.float64)
        assert turned(aten.sort.default, values)[2] == 399_999

    def test_a_bucket_of_a_row_of_its_own(self) -> None:
        bounds = numbers(0.0, 1.0, 2.0, 10.0, 11.0, 12.0).view(2, 3)
        values = numbers(1.0 + CLOSE, 0.5, 10.5, 12.0 - CLOSE).view(2, 2)
        result, other, count = turned(aten.searchsorted.Tensor, bounds, values)
        assert count == 2 and result.tolist() == [[2, 1], [1, 2]] and other.tolist() == [[1, 1], [1, 3]]

    @pytest.mark.parametrize("rank", [1, 2])
    def test_the_place_of_the_largest_in_a_window(self, rank: int) -> None:
        values = numbers(1.0, 5.0, 5.0 - CLOSE, 2.0, 9.0, 3.0, 4.0, 6.0).view(1, 1, *((8,) if rank == 1 else (2, 4)))
        target = aten.max_pool1d_with_indices.default if rank == 1 else aten.max_pool2d_with_indices.default
        result, other, count = turned(target, values, [3] if rank == 1 else [2, 3])
        if rank == 1:
            assert result[1].flatten().tolist() == [1, 4] and other[1].flatten().tolist() == [2, 4]
            assert count == 1
        else:
            assert count == 0 and torch.equal(result[1], other[1])


class TestDecidingNodes:
    def found(self, target: Any, *args: Any, **kwargs: Any) -> int:
        node, _ = node_of(target, *args, **kwargs)
        node.meta["val"] = target(*args, **kwargs)
        node.graph.output((node,))
        return len(decisions(Program(node.graph, {}, (), (), (), {}, Provenance("a test", torch.__version__))))

    def test_integers_decide_exactly(self) -> None:
        ids = torch.tensor([1, 2])
        assert self.found(aten.eq.Scalar, ids, 1) == 0
        assert self.found(aten.argmax.default, ids) == 0
        assert self.found(aten.div.Tensor_mode, ids, 2, rounding_mode="floor") == 0

    def test_a_cast_between_floats_decides_nothing(self) -> None:
        assert self.found(aten._to_copy.default, torch.ones(2), dtype=torch.float16) == 0
        assert self.found(aten._to_copy.default, torch.ones(2), dtype=torch.int32) == 1

    def test_a_sort_of_which_only_values_are_read_decides_nothing(self) -> None:
        def pair(at: int) -> int:
            node, _ = node_of(aten.sort.default, torch.ones(3))
            node.graph.output((node.graph.call_function(operator.getitem, (node, at)),))
            return len(decisions(Program(node.graph, {}, (), (), (), {}, Provenance("a test", torch.__version__))))

        assert pair(0) == 0 and pair(1) == 1
