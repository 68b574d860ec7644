"""The battery of level full: what it promises of numbers, ids and masks."""

from collections.abc import Iterable

import pytest
import torch
from torch import Tensor, nn

from flowopt.analysis.graph_numbers import GraphNumbers
from flowopt.program.capture import capture
from flowopt.verification.inputs.battery import REGIMES, full_cases
from flowopt.verification.inputs.case import Case
from flowopt.verification.inputs.cases import quick_cases
from tests.verification.battery_programs import (
    SPECIAL,
    Applied,
    Pair,
    battery,
    by_name,
    equal,
    text,
)


class TestNumbers:
    @pytest.mark.parametrize("regime", REGIMES)
    def test_every_regime_enters_at_features(self, regime: str) -> None:
        cases = [case for case in battery().values() if case.regime == regime]
        assert cases and not any(case.overrides for case in cases)

    @pytest.mark.parametrize("regime", REGIMES[1:])
    def test_every_regime_replaces_the_embedding_of_a_model_of_integers(self, regime: str) -> None:
        (case,) = (case for case in full_cases(text(), 0) if case.regime == regime and case.overrides)
        ((name, tensor),) = case.overrides.items()
        assert text().node(name).target is torch.ops.aten.embedding.default
        assert tuple(tensor.shape) == (case.sizes["batch"], case.sizes["sequence"], 4)

    def test_ordinary_numbers_are_natural(self) -> None:
        natural = {name for name, case in battery().items() if case.is_natural}
        assert {"traced", "minimum-batch", "two", "below", "longest-batch", "joint-maximum"} <= natural
        assert not natural & {*SPECIAL, "special", "large", "huge", "zeros", "outliers", "prime", "odd"}
        assert all(case.regime in ("normal", "uniform") for case in battery().values() if case.is_natural)

    def test_replaced_embeddings_edge_ids_and_odd_masks_are_not_natural(self) -> None:
        cases = by_name(text())
        assert cases["below"].is_natural and cases["longest-sequence"].is_natural
        for case in cases.values():
            assert not (case.overrides and case.is_natural)
        for name in ("ids-zero", "ids-last", "ids-edges", "ids-padded", "masked-row"):
            assert not cases[name].is_natural

    def test_two_inputs_get_different_numbers_in_different_places(self) -> None:
        dynamic = {"x": {0: "batch"}, "y": {0: "batch"}}
        program = capture(Pair().eval(), (torch.zeros(4, 5), torch.ones(4, 5)), dynamic=dynamic)
        cases = by_name(program)
        for name, case in cases.items():
            if "zeros" not in name:
                assert not equal(case.inputs["x"], case.inputs["y"]), name
        for name in ("nan", "infinity", "negative-infinity"):
            special = [(~cases[name].inputs[key].isfinite()).any(1) for key in "xy"]
            assert not bool((special[0] & special[1]).any())

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_finite_numbers_stay_finite_in_16_bits(self, dtype: torch.dtype) -> None:
        program = capture(Applied(torch.tanh).eval(), (torch.zeros(4, 5, dtype=dtype),), dynamic={"x": {0: "batch"}})
        quick = len(quick_cases(program, 0))
        for case in full_cases(program, 0)[quick:]:
            if case.regime not in SPECIAL and case.samples is None:
                assert bool(case.inputs["x"].isfinite().all()), case.name


class TestIdsAndMasks:
    def test_ids_at_the_edges_of_their_table(self) -> None:
        cases = by_name(text())
        assert cases["ids-zero"].inputs["ids"].unique().tolist() == [0]
        assert cases["ids-last"].inputs["ids"].unique().tolist() == [10]
        assert cases["ids-edges"].inputs["ids"].unique().tolist() == [0, 10]
        assert cases["ids-edges"].inputs["ids"].numel() > 4

    def test_ids_end_with_the_padding_that_the_embedding_declares(self) -> None:
        ids = by_name(text())["ids-padded"].inputs["ids"]
        assert ids[0].unique().tolist() == [7] and bool((ids[:, -1] == 7).all()) and len(ids.unique()) > 2

    def test_other_integers_take_the_edges_of_their_range(self) -> None:
        class Selecting(nn.Module):
            def forward(self, x: Tensor, columns: Tensor) -> Tensor:
                return x.index_select(1, columns)

        program = capture(Selecting().eval(), (torch.zeros(3, 9), torch.tensor([2, 5, 3])))
        cases = by_name(program)
        assert cases["integers-edges"].inputs["columns"].tolist() == [2, 5, 2]
        assert all(case.inputs["columns"].min() >= 2 and case.inputs["columns"].max() <= 5 for case in cases.values())

    def test_integers_that_index_nothing_leave_the_range_of_the_example(self) -> None:
        class Hashed(nn.Module):
            def forward(self, x: Tensor, keys: Tensor, others: Tensor) -> Tensor:
                return x + keys % 7 + others % 3

        program = capture(Hashed().eval(), (torch.zeros(60), torch.arange(60), torch.arange(60) + 100))
        inputs = by_name(program)["integers-wide"].inputs
        keys, others = inputs["keys"], inputs["others"]
        assert keys.min() < -(2**24) and keys.max() > 2**31 and keys.abs().max() <= 2**40 + 2**33
        assert bool((keys.abs() < 100).any())
        # Inside one input and from one to the other: equal, equal as float32 alone, equal as int32 alone.
        for left, right in ((keys[::2], keys[1::2]), (keys, others)):
            assert bool((left == right).any())
            assert bool(((left != right) & (left.float() == right.float())).any())
            assert bool(((left != right) & (left.int() == right.int())).any())

    def test_narrow_integers_stay_in_their_dtype(self) -> None:
        class Hashed(nn.Module):
            def forward(self, x: Tensor, keys: Tensor) -> Tensor:
                return x + keys % 7

        for dtype, lowest, highest in ((torch.int8, -128, 127), (torch.uint8, 0, 255), (torch.int32, -(2**31), 2**31)):
            program = capture(Hashed().eval(), (torch.zeros(60), torch.arange(2, 62).to(dtype)))
            keys = by_name(program)["integers-wide"].inputs["keys"].long()
            assert lowest <= int(keys.min()) and int(keys.max()) <= highest and int(keys.max()) > highest // 4

    def test_numbers_that_the_graph_names(self) -> None:
        class Naming(nn.Module):
            edges: Tensor

            def __init__(self) -> None:
                super().__init__()
                self.register_buffer("edges", torch.tensor([-1.3125, 0.1875]))

            def forward(self, x: Tensor, ids: Tensor) -> Tensor:
                return torch.bucketize(x, self.edges) + torch.round(x * 16) / 16 + (ids != 1437)

        # The example's ids are all larger than the one that the graph names.
        program = capture(Naming().eval(), (torch.zeros(100), torch.randint(2000, 3000, (100,))))
        for seed in range(3):
            cases = {case.name: case for case in full_cases(program, seed)}
            x, ids = (cases["named"].inputs[name] for name in ("x", "ids"))
            assert all(bool((x == number).any()) for number in (0.1875, -1.3125, 16.0, 16 - 2**-6, 16 + 2**-6))
            assert all(bool((ids == one).any()) for one in (1436, 1437, 1438))
            assert len(ids.unique()) > 40 and len(x.unique()) > 40
            halves = cases["named-halves"].inputs["x"]
            assert all(bool((halves == number).any()) for number in (0.5 / 16, 1.5 / 16, -0.5 / 16, 8.0))
            assert not cases["named"].is_natural and not cases["named-halves"].is_natural

    def test_ids_of_a_table_that_the_graph_names_stay_inside_it(self) -> None:
        class Padded(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.table = nn.Embedding(50, 4)

            def forward(self, ids: Tensor) -> Tensor:
                return self.table(ids) * (ids != 31).unsqueeze(-1) * (ids != 4000).unsqueeze(-1)

        ids = by_name(capture(Padded().eval(), (torch.randint(0, 9, (20,)),)))["named"].inputs["ids"]
        assert bool((ids == 31).any()) and int(ids.max()) < 50

    def test_what_a_candidate_names_counts_too(self) -> None:
        program = capture(Applied(torch.tanh).eval(), (torch.zeros(20, 5),))
        assert "named" not in by_name(program)
        cases = {case.name: case for case in full_cases(program, 0, GraphNumbers(floats=(37.25,)))}
        assert bool((cases["named"].inputs["x"] == 37.25).any())

    def test_rows_that_the_model_stores(self) -> None:
        class Prototypes(nn.Module):
            rows: Tensor

            def __init__(self) -> None:
                super().__init__()
                self.register_buffer("rows", 300 + torch.randn(6, 8))

            def forward(self, x: Tensor) -> Tensor:
                return (x.unsqueeze(-2) - self.rows).square().sum(-1)

        module = Prototypes()
        x = by_name(capture(module.eval(), (torch.zeros(9, 8),)))["stored-rows"].inputs["x"]
        distances = (x.unsqueeze(1) - module.rows).square().sum(-1).sqrt()
        assert float(distances.min(1).values.max()) < 0.1 < float(distances.max(1).values.min())
        assert len(distances.argmin(1).unique()) > 2

    def test_one_row_at_every_place_of_a_long_dimension(self) -> None:
        x = battery()["alike-sequence"].inputs["x"]
        assert x.shape[1] == 64 and torch.equal(x, x[:1, :1].expand(x.shape)) and len(x.unique()) > 1
        ids = by_name(text())["alike-sequence"].inputs["ids"]
        assert len(ids.unique()) == 1

    def test_every_pattern_of_masks_meets_plain_numbers(self) -> None:
        assert_every_pattern(c.inputs["mask"] for c in full_cases(text(), 0) if not c.overrides)

    def test_without_dimensions_too(self) -> None:
        class Hiding(nn.Module):
            def forward(self, x: Tensor, mask: Tensor) -> Tensor:
                return x.masked_fill(mask == 0, -9.0)

        mask = torch.ones(4, 6, dtype=torch.int64)
        cases = by_name(capture(Hiding().eval(), (torch.zeros(4, 6), mask)))
        assert "mask-keep-one" in cases  # the others meet plain numbers in other cases
        plain = ("normal", "uniform", "negative", "outliers", "wide-rows", "mixed-rows")
        assert_every_pattern(case.inputs["mask"] for case in cases.values() if case.regime in plain)

    def test_only_the_masked_row_hides_a_whole_row(self) -> None:
        for seed in range(3):
            for name, case in by_name(text(), seed).items():
                hides = bool((case.inputs["mask"] == 0).all(-1).any())
                assert hides == (name == "masked-row"), name

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
    def test_additive_masks_hide_with_other_scores_too(self, dtype: torch.dtype) -> None:
        hidden = {name: case.inputs["bias"] for name, case in additive(-3e4, dtype).items()}
        assert {float(b.min()) for n, b in hidden.items() if not n.startswith("hidden-")} == {0.0, -3e4}
        assert float(hidden["hidden-minus-10000"].min()) == -1e4
        assert float(hidden["hidden-lowest"].min()) == torch.finfo(dtype).min
        assert float(hidden["hidden-minus-infinity"].min()) == -torch.inf
        assert all(bias.dtype is dtype for bias in hidden.values())
        assert bool((hidden["masked-row"][0] == -3e4).all())

    @pytest.mark.parametrize(
        ("score", "left_out"),
        [
            (-1e4, "hidden-minus-10000"),
            (torch.finfo(torch.float32).min, "hidden-lowest"),
            (-torch.inf, "hidden-minus-infinity"),
        ],
    )
    def test_the_examples_own_score_needs_no_other_case(self, score: float, left_out: str) -> None:
        names = {name for name in additive(score, torch.float32) if name.startswith("hidden-")}
        assert names == {"hidden-minus-10000", "hidden-lowest", "hidden-minus-infinity"} - {left_out}


def assert_every_pattern(found: Iterable[Tensor]) -> None:
    masks = [mask for mask in found if mask.shape[-1] > 2]
    assert any(bool((m == 1).all()) for m in masks)
    assert any(bool((m.diff(dim=-1) < 0).any() and (m.diff(dim=-1) <= 0).all()) for m in masks)
    assert any(bool((m.diff(dim=-1) > 0).any() and (m.diff(dim=-1) >= 0).all()) for m in masks)
    assert any(bool((m.sum(-1) == 1).any()) for m in masks)
    assert any(bool((m.diff(dim=-1) > 0).any() and (m.diff(dim=-1) < 0).any()) for m in masks)


def additive(score: float, dtype: torch.dtype) -> dict[str, Case]:
    class Biased(nn.Module):
        def forward(self, x: Tensor, bias: Tensor) -> Tensor:
            return torch.softmax(x + bias, -1)

    bias = torch.zeros(3, 5, dtype=dtype)
    bias[0, 3:] = score
    return by_name(capture(Biased().eval(), (torch.zeros(3, 5, dtype=dtype), bias)))


def test_a_model_without_float_tensors_has_no_regimes() -> None:
    program = capture(Applied(lambda x: x * 2).eval(), (torch.tensor([[3, 1], [0, 2]]),), dynamic={"x": {0: "batch"}})
    cases = full_cases(program, 0)
    assert {case.name for case in cases} & set(REGIMES) == set()
    assert not any(case.overrides for case in cases)
    assert "integers-edges" in {case.name for case in cases}
