"""The battery of level full: what it promises of sizes, and that it sees planted mistakes."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from flowopt.program.capture import capture
from flowopt.program.program import Program
from flowopt.verification.inputs.battery import REGIMES, full_cases, planned_cases
from flowopt.verification.inputs.cases import quick_cases
from tests.verification.battery_programs import (
    DIMS,
    SPECIAL,
    Applied,
    Dims,
    battery,
    by_name,
    equal,
    features,
    fixed,
    text,
)
from tests.zoo.models import ZOO


class TestWhole:
    @pytest.mark.parametrize("make", [text, features, fixed])
    def test_it_begins_with_the_quick_cases(self, make: Callable[[], Program]) -> None:
        program = make()
        for first, second in zip(quick_cases(program, 3), full_cases(program, 3), strict=False):
            assert (first.label, first.regime, first.is_natural) == (second.label, second.regime, second.is_natural)
            assert all(equal(t, second.inputs[name]) for name, t in first.inputs.items())
            assert all(equal(t, second.overrides[name]) for name, t in first.overrides.items())

    def test_it_ends_with_the_joint_maximum(self) -> None:
        *others, last = battery().values()
        assert last.label == "joint-maximum[batch=9,sequence=64]"
        assert not [c for c in others if c.sizes == last.sizes]

    @pytest.mark.parametrize("make", [text, features])
    def test_two_free_dimensions_take_25_to_40_cases(self, make: Callable[[], Program]) -> None:
        assert 25 <= len(planned_cases(make(), 0)) <= 40

    @pytest.mark.parametrize("make", [text, features, fixed])
    def test_no_name_stands_twice(self, make: Callable[[], Program]) -> None:
        names = [plan.name for plan in planned_cases(make(), 0)]
        assert len(names) == len(set(names))

    def test_the_seed_decides(self) -> None:
        first, again, other = by_name(text(), 3), by_name(text(), 3), by_name(text(), 4)
        for name, case in first.items():
            assert all(torch.equal(t, again[name].inputs[key]) for key, t in case.inputs.items())
        assert not torch.equal(first["below"].inputs["ids"], other["below"].inputs["ids"])

    def test_plans_tell_labels_and_sizes(self) -> None:
        for plan in planned_cases(text(), 0):
            case = plan.make()
            assert (plan.name, plan.sizes, plan.label) == (case.name, case.sizes, case.label)
            for tensor in case.inputs.values():
                assert tuple(tensor.shape) == (plan.sizes["batch"], plan.sizes["sequence"])

    def test_without_dimensions_ids_and_masks_only_numbers_vary(self) -> None:
        cases = by_name(fixed())
        names = {"traced", "smallest", "prime", "special", *REGIMES[1:], "stored-rows"} - {
            "negative"
        }  # smallest is negative
        assert set(cases) == names
        assert {case.label for case in cases.values()} == names

    @pytest.mark.slow
    @pytest.mark.parametrize("name", ZOO)
    def test_zoo_models_take_20_to_44_cases(self, name: str) -> None:
        model = ZOO[name]()
        program = capture(model.module, (), model.kwargs, dynamic=model.dynamic, dims=model.dims)
        assert 20 <= len(planned_cases(program, 0)) <= 44


def is_prime(size: int) -> bool:
    return size > 1 and all(size % divisor for divisor in range(2, size))


RANGES: tuple[Dims, ...] = (
    DIMS,
    (("batch", (1, None)), ("sequence", (1, None))),
    (("batch", (4, 6)), ("sequence", (5, 8))),
    (("batch", (4, 100)), ("sequence", (6, 90))),
    (("batch", (1, 4)), ("sequence", (0, 6))),
)


class TestSizes:
    @pytest.mark.parametrize("dims", RANGES)
    def test_every_dimension_takes_every_promised_size(self, dims: Dims) -> None:
        program = features(dims)
        for dim in program.dims:
            taken = {plan.sizes[dim.name] for plan in planned_cases(program, 0)}
            inside = set(range(dim.minimum, (dim.maximum or 1000) + 1))
            assert taken <= inside
            promised = {1, 2, dim.minimum, dim.traced - 1, dim.traced, dim.traced + 1, dim.maximum} & inside
            assert promised <= taken
            assert any(size % 2 for size in taken)
            assert any(map(is_prime, taken)) or not any(map(is_prime, inside))

    @pytest.mark.parametrize("dims", RANGES)
    def test_two_traced_and_its_neighbours_come_with_finite_numbers(self, dims: Dims) -> None:
        program = features(dims)
        plain = [case for case in full_cases(program, 0) if case.regime not in SPECIAL]
        for dim in program.dims:
            inside = set(range(dim.minimum, (dim.maximum or 1000) + 1))
            promised = {2, dim.traced - 1, dim.traced, dim.traced + 1} & inside
            assert promised <= {case.sizes[dim.name] for case in plain}

    def test_each_maximum_comes_with_the_others_small(self) -> None:
        cases = battery()
        assert cases["longest-batch"].sizes == {"batch": 9, "sequence": 2}
        assert cases["longest-sequence"].sizes == {"batch": 2, "sequence": 64}

    def test_each_minimum_comes_with_the_others_larger(self) -> None:
        cases = battery()
        assert cases["minimum-batch"].sizes["batch"] == 1 < cases["minimum-batch"].sizes["sequence"]
        assert cases["minimum-sequence"].sizes["sequence"] == 2 < cases["minimum-sequence"].sizes["batch"]

    @pytest.mark.parametrize(("traced", "longest"), [(4, 17), (20, 41), (100, 128), (200, 201)])
    def test_an_unbounded_dimension_takes_a_large_size(self, traced: int, longest: int) -> None:
        program = features((("batch", (1, None)),), traced)
        assert by_name(program)["longest-batch"].sizes["batch"] == longest

    def test_numbers_are_varied_at_small_sizes_of_several_samples(self) -> None:
        for name, case in battery().items():
            if name in REGIMES:
                assert all(2 <= size <= 9 for size in case.sizes.values())

    def test_three_dimensions_take_every_size_too(self) -> None:
        module = Applied(torch.tanh).eval()
        dims = {"a": (1, 32), "b": (1, 32), "c": (1, 32)}
        dynamic = {"x": {0: "a", 1: "b", 2: "c"}}
        program = capture(module, (torch.zeros(4, 6, 8),), dynamic=dynamic, dims=dims)
        plans = planned_cases(program, 0)
        for dim in program.dims:
            taken = {plan.sizes[dim.name] for plan in plans}
            assert {1, 2, dim.traced - 1, dim.traced, dim.traced + 1, 32} <= taken
        assert len(plans) < 40


PLANTED: dict[str, Callable[[Tensor, Program], bool]] = {
    f"{dim} is {name}": lambda x, p, i=i, size=size: x.shape[i] == size(p.dims[i])  # type: ignore[misc]
    for i, dim in enumerate(("batch", "sequence"))
    for name, size in {
        "one": lambda d: d.minimum,
        "two": lambda d: 2,
        "traced": lambda d: d.traced,
        "one less": lambda d: d.traced - 1,
        "one more": lambda d: d.traced + 1,
        "the most": lambda d: d.maximum,
    }.items()
}
PLANTED |= {
    "a long row": lambda x, p: x.shape[1] > 48,
    "an odd number of rows": lambda x, p: x.shape[1] % 2 == 1,
    "both even": lambda x, p: x.shape[0] % 2 == 0 and x.shape[1] % 2 == 0,
    "both at their most": lambda x, p: x.shape[:2] == (9, 64),
    "more rows than samples": lambda x, p: x.shape[1] > x.shape[0],
    "more samples than rows": lambda x, p: x.shape[0] > x.shape[1],
    "a number above 1e4": lambda x, p: bool((x.isfinite() & (x > 1e4)).any()),
    "a number below -1e4": lambda x, p: bool((x.isfinite() & (x < -1e4)).any()),
    "all negative": lambda x, p: bool((x < 0).all()),
    "all positive": lambda x, p: bool((x > 0).all()),
    "a row without variance": lambda x, p: bool((x.std(-1) == 0).any()),
    "a sample without variance": lambda x, p: bool((x.flatten(1).std(-1) == 0).any()),
    "a NaN in the first sample alone": lambda x, p: bool(x[0].isnan().any() and not x[1:].isnan().any()),
    "an infinity": lambda x, p: bool((x == torch.inf).any() and not (x == -torch.inf).any()),
    "a negative infinity": lambda x, p: bool((x == -torch.inf).any() and not (x == torch.inf).any()),
    "zero": lambda x, p: bool((x == 0).all()) and not bool(x.signbit().any()),
    "negative zero": lambda x, p: bool((x == 0).all()) and bool(x.signbit().all()),
    "a tie": lambda x, p: bool((x == 0.5).any()),
    "a subnormal": lambda x, p: bool(((x != 0) & (x.abs() < 1.1e-38)).any()),
}


@pytest.mark.parametrize("where", PLANTED)
def test_a_function_that_is_wrong_in_one_place_is_seen(where: str) -> None:
    assert 0 < len(differing(PLANTED[where])) < len(battery())


def differing(is_wrong: Callable[[Tensor, Program], bool]) -> list[str]:
    """Cases on which tanh, and tanh that is off by 1 in one place, differ."""
    program = features()
    found = []
    for case in battery().values():
        (right,) = program.run_named(case.inputs).values()
        if not equal(right, right + 1.0 if is_wrong(case.inputs["x"], program) else right):
            found.append(case.label)
    return found


def test_every_case_runs() -> None:
    class Attending(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return functional.scaled_dot_product_attention(x, x, x)

    program = capture(
        Attending().eval(), (torch.zeros(2, 6, 4),), dynamic={"x": {0: "batch", 1: "sequence"}}, dims=dict(DIMS)
    )
    for case in full_cases(program, 0):
        (found,) = program.run_named(case.inputs).values()
        assert found.shape == case.inputs["x"].shape


def test_what_sizes_are_divided_by_is_a_size_of_its_own() -> None:
    class Tiles(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sum(1) / ((x.shape[1] + 11) // 12)

    program = capture(
        Tiles().eval(), (torch.zeros(2, 8, 6),), dynamic={"x": {0: "batch", 1: "sequence"}}, dims=dict(DIMS)
    )
    sizes = {case.sizes["sequence"] for case in full_cases(program, 0)}
    assert {11, 12, 13} <= sizes
    assert all(1 <= size <= 64 for size in sizes)
