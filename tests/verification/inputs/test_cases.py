from functools import cache

import pytest
import torch
from torch import Tensor, nn

from flowopt.program.capture import capture
from flowopt.program.program import Program
from flowopt.verification.inputs.cases import Case, quick_cases
from tests.program.models import Counter

NAMES = ["traced", "smallest", "prime", "special"]


class Text(nn.Module):
    """Ids and a mask to features."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 4)
        self.kinds = nn.Embedding(3, 4)

    def forward(self, ids: Tensor, mask: Tensor, kinds: Tensor) -> Tensor:
        hidden = (1.0 - mask.to(torch.float32)).unsqueeze(-1) * -100.0
        return self.table(ids) + self.kinds(kinds) + hidden


@cache
def text() -> Program:
    ids, mask = torch.zeros(4, 6, dtype=torch.int64), torch.ones(4, 6, dtype=torch.int64)
    axes = {0: "batch", 1: "sequence"}
    return capture(
        Text().eval(),
        (ids, mask, ids),
        dynamic={"ids": axes, "mask": axes, "kinds": axes},
        dims={"batch": (1, 9), "sequence": (2, 16)},
    )


def by_name(program: Program, seed: int = 0) -> dict[str, Case]:
    return {case.name: case for case in quick_cases(program, seed)}


class TestSizes:
    def test_each_case_has_its_own(self) -> None:
        cases = by_name(text())
        assert {name: (c.sizes["batch"], c.sizes["sequence"]) for name, c in cases.items() if name in NAMES} == {
            "traced": (4, 6),
            "smallest": (1, 2),
            "prime": (3, 5),
            "special": (2, 7),
        }

    def test_inputs_have_them(self) -> None:
        for case in by_name(text()).values():
            for tensor in case.inputs.values():
                assert tuple(tensor.shape) == (case.sizes["batch"], case.sizes["sequence"])

    def test_they_stay_inside_the_range(self) -> None:
        class Plain(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return x * 2

        program = capture(Plain().eval(), (torch.zeros(8, 3),), dynamic={"x": {0: "batch"}}, dims={"batch": (6, 8)})
        assert {name: c.sizes["batch"] for name, c in by_name(program).items()} == {
            "traced": 8,
            "smallest": 6,
            "prime": 6,
            "special": 6,
        }

    def test_a_label_names_them(self) -> None:
        assert by_name(text())["prime"].label == "prime[batch=3,sequence=5]"

    def test_a_program_without_free_dimensions(self) -> None:
        program = capture(nn.Linear(3, 4).eval(), (torch.zeros(2, 3),))
        cases = by_name(program)
        assert list(cases) == NAMES
        assert cases["prime"].label == "prime"
        assert tuple(cases["prime"].inputs["input"].shape) == (2, 3)


class TestRoles:
    def test_ids_lie_inside_their_table(self) -> None:
        for case in by_name(text()).values():
            assert int(case.inputs["ids"].min()) >= 0 and int(case.inputs["ids"].max()) <= 10
            assert int(case.inputs["kinds"].min()) >= 0 and int(case.inputs["kinds"].max()) <= 2

    def test_the_smallest_case_takes_the_edges_of_the_table(self) -> None:
        assert by_name(text())["smallest"].inputs["ids"].flatten().tolist() == [0, 10]

    def test_values_do_not_keep_to_the_example(self) -> None:
        assert int(by_name(text())["traced"].inputs["ids"].max()) > 0  # the example holds zeros alone

    @pytest.mark.parametrize("seed", range(5))
    def test_a_mask_never_hides_a_whole_row(self, seed: int) -> None:
        for case in by_name(text(), seed).values():
            mask = case.inputs["mask"]
            assert set(mask.unique().tolist()) <= {0, 1}
            assert bool((mask.sum(-1) > 0).all())

    def test_masks_pad_right_left_and_keep_one(self) -> None:
        cases = by_name(text(), seed=1)
        assert bool((cases["smallest"].inputs["mask"] == 1).all())
        assert bool((cases["traced"].inputs["mask"].diff(dim=-1) <= 0).all())
        assert bool((cases["prime"].inputs["mask"].diff(dim=-1) >= 0).all())
        first, second = cases["special"].inputs["mask"]
        assert (int(first.sum()), int(second.sum())) == (7, 1)

    def test_a_mask_of_which_ones_hide_is_turned_round(self) -> None:
        class Padded(nn.Module):
            def forward(self, x: Tensor, hidden: Tensor) -> Tensor:
                return x.masked_fill(hidden.unsqueeze(-1), 0.0)

        hidden = torch.zeros(2, 5, dtype=torch.bool)
        hidden[0, 3:] = True
        program = capture(Padded().eval(), (torch.zeros(2, 5, 3), hidden))
        for case in by_name(program).values():
            assert case.inputs["hidden"].dtype is torch.bool
            assert not bool(case.inputs["hidden"].all(-1).any())
        assert bool(by_name(program, seed=1)["traced"].inputs["hidden"].any())

    def test_an_additive_mask_keeps_its_two_values(self) -> None:
        class Biased(nn.Module):
            def forward(self, x: Tensor, bias: Tensor) -> Tensor:
                return torch.softmax(x + bias, -1)

        bias = torch.tensor([[0.0, 0.0, -3e4], [0.0, 0.0, 0.0]])
        for case in by_name(capture(Biased().eval(), (torch.zeros(2, 3), bias))).values():
            assert set(case.inputs["bias"].unique().tolist()) <= {0.0, -3e4}
            assert bool((case.inputs["bias"] == 0).any(-1).all())

    def test_other_integers_keep_to_the_range_of_the_example(self) -> None:
        class Selecting(nn.Module):
            def forward(self, x: Tensor, columns: Tensor) -> Tensor:
                return x.index_select(1, columns)

        program = capture(Selecting().eval(), (torch.zeros(3, 9), torch.tensor([2, 5, 3])))
        for seed in range(5):
            for case in by_name(program, seed).values():
                assert int(case.inputs["columns"].min()) >= 2 and int(case.inputs["columns"].max()) <= 5

    def test_features_take_the_regime_of_the_case(self) -> None:
        program = capture(nn.Linear(40, 4).eval(), (torch.zeros(16, 40),))
        cases = {name: c.inputs["input"] for name, c in by_name(program).items()}
        assert bool((cases["smallest"] < 0).all())
        scales = cases["prime"].abs().amax(-1)
        assert float(scales.max()) > 1e3 and float(scales.min()) == 0.0
        assert bool((cases["prime"].std(-1)[scales > 0] == 0).any())  # a constant row
        assert bool(torch.isnan(cases["special"][0]).any()) and bool(torch.isinf(cases["special"][0]).any())
        assert bool(torch.isfinite(cases["special"][1:]).all())

    def test_cases_name_their_regime_and_the_first_alone_is_natural(self) -> None:
        cases = by_name(text())
        assert {name: case.regime for name, case in cases.items()} == {
            "traced": "normal",
            "smallest": "negative",
            "prime": "mixed-rows",
            "special": "spikes",
            "injected": "spikes",
        }
        assert [name for name, case in cases.items() if case.is_natural] == ["traced"]
        assert not any(case.samples for case in cases.values())


class TestInjected:
    def test_integer_models_get_float_regimes_at_their_first_embedding(self) -> None:
        program = text()
        case = by_name(program)["injected"]
        ((name, tensor),) = case.overrides.items()
        assert program.node(name).target is torch.ops.aten.embedding.default
        assert tuple(tensor.shape) == (2, 7, 4)
        assert not bool(torch.isfinite(tensor).all())
        assert case.sizes == by_name(program)["special"].sizes

    def test_models_with_features_do_not_need_it(self) -> None:
        assert list(by_name(capture(nn.Linear(3, 4).eval(), (torch.zeros(2, 3),)))) == NAMES


@cache
def counting() -> Program:
    return capture(Counter().eval(), (torch.ones(1, 3),))


class TestState:
    def test_the_traced_case_has_the_stored_values(self) -> None:
        program = counting()
        assert torch.equal(by_name(program)["traced"].inputs["state_cache"], torch.full((4, 3), 0.5))

    def test_other_cases_have_values_as_after_some_calls(self) -> None:
        program = counting()
        cache = by_name(program)["prime"].inputs["state_cache"]
        assert len(cache.unique()) > 6
        assert float(cache.min()) >= 0.25 and float(cache.max()) <= 0.75

    def test_empty_state_is_filled(self) -> None:
        module = Counter().eval()
        module.cache.zero_()
        program = capture(module, (torch.ones(1, 3),))
        assert bool(by_name(program)["prime"].inputs["state_cache"].any())

    def test_counters_stay(self) -> None:
        program = counting()
        assert int(by_name(program)["prime"].inputs["state_calls"]) == 0


def test_the_seed_decides() -> None:
    program = text()
    for first, second in zip(quick_cases(program, 3), quick_cases(program, 3), strict=True):
        assert all(torch.equal(t, second.inputs[name]) for name, t in first.inputs.items())
    assert not torch.equal(by_name(program, 3)["traced"].inputs["ids"], by_name(program, 4)["traced"].inputs["ids"])
