"""A candidate that is a program: what float64 and stressed weights say of it beside its rounding."""

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from flowopt.program.capture import capture
from flowopt.program.program import Program
from flowopt.report.verdict import Figures, Finding, Outcome
from flowopt.verification.evidence import Evidence, collect_evidence
from flowopt.verification.inputs.cases import quick_cases
from flowopt.verification.verify_program import check_program, stores_the_same
from flowopt.workflows.verify import verify


def randomised(module: nn.Module, seed: int) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            width = tensor[0].numel() if tensor.dim() > 1 else 4
            drawn = torch.randn(tensor.shape, generator=generator) / width**0.5
            tensor.copy_(drawn.abs() + 1e-3 if "var" in name else drawn)
    return module.eval()


class Network(nn.Module):
    """Two layers behind norms, and attention; every choice that a rewrite may make is an option."""

    def __init__(self, *, gelu: str = "none", attention: str = "fused", eps: float = 1e-5, limit: float = 1e9) -> None:
        super().__init__()
        self.first, self.second, self.last = (nn.Linear(8, 8) for _ in range(3))
        self.norm = nn.LayerNorm(8, eps=eps)
        self.gelu, self.attention, self.limit = gelu, attention, limit

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.gelu(self.first(self.norm(x)), approximate=self.gelu)
        y = torch.clamp(y, -self.limit, self.limit)
        result: Tensor = self.last(x + self._attended(self.second(y), y))
        return result

    def _attended(self, query: Tensor, key: Tensor) -> Tensor:
        if self.attention == "fused":
            return nn.functional.scaled_dot_product_attention(query, key, key)
        if self.attention == "scaled first":
            return torch.softmax((query / 8**0.5) @ key.transpose(-1, -2), -1) @ key
        return torch.softmax((query @ key.transpose(-1, -2)) * 8**-0.5, -1) @ key


class Folding(nn.Module):
    """A convolution and a batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3)
        self.norm: nn.Module = nn.BatchNorm2d(4)
        self.last = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.last(torch.relu(self.norm(self.conv(x))).mean((2, 3)))
        return result


@cache
def convolutions() -> tuple[Program, Program]:
    """With a norm and without."""
    module = Folding().eval()
    folded = copy.deepcopy(module)
    folded.norm = nn.Identity()
    return captured(module, 2, 2, 5, 5), captured(folded.eval(), 2, 2, 5, 5)


def with_weights(seed: int) -> tuple[Program, Program]:
    """Both with random weights, the norm folded in float32."""
    module = randomised(Folding(), seed)
    stored = {name: tensor.detach() for name, tensor in module.state_dict().items()}
    scale = stored["norm.weight"] * torch.rsqrt(stored["norm.running_var"] + 1e-5)
    bias = (stored["conv.bias"] - stored["norm.running_mean"]) * scale + stored["norm.bias"]
    folded = {**stored, "conv.weight": stored["conv.weight"] * scale[:, None, None, None], "conv.bias": bias}
    first, second = convolutions()
    return (
        replace(first.copy(), tensors={name: stored[name] for name in first.tensors}),
        replace(second.copy(), tensors={name: folded[name] for name in second.tensors}),
    )


def network(seed: int = 0, **options: object) -> Program:
    return captured(randomised(Network(**options), seed))  # type: ignore[arg-type]  # options of several types


def captured(module: nn.Module, *shape: int) -> Program:
    x = torch.randn(*(shape or (2, 3, 8)), generator=torch.Generator().manual_seed(1))
    return capture(module, (x,), dynamic={"x": {0: "batch"}})


def changed(change: Callable[[Network], None], seed: int = 0) -> Program:
    module = randomised(Network(), seed)
    assert isinstance(module, Network)
    with torch.no_grad():
        change(module)
    return captured(module)


@cache
def original() -> Program:
    return network()


@cache
def evidence(count: int = 3) -> Evidence:
    return collect_evidence(original(), cases=quick_cases(original(), 0)[:count])


def said(candidate: Program, *, with_stress: bool = False) -> list[Figures | Finding | str]:
    return list(check_program(original(), candidate, evidence(), with_stress=with_stress))


def gates(candidate: Program, *, with_stress: bool = False) -> set[str]:
    return {one.gate for one in said(candidate, with_stress=with_stress) if isinstance(one, Finding)}


class TestHiddenChanges:
    """Each lies below float32's rounding, or near it: the rounding gate is not asked here."""

    def test_another_gelu(self) -> None:
        assert gates(network(gelu="tanh")) == {"twin"}

    def test_another_epsilon(self) -> None:
        assert gates(network(eps=1.001e-5)) == {"twin"}

    @pytest.mark.parametrize("layer", ["first", "second", "last"])
    def test_one_weight_larger_by_a_millionth(self, layer: str) -> None:
        def scaled(module: Network) -> None:
            getattr(module, layer).weight.mul_(1 + 1e-6)

        candidate = changed(scaled)
        assert not stores_the_same(original(), candidate)
        assert gates(candidate) == {"twin"}

    def test_two_weights_exchanged(self) -> None:
        def exchanged(module: Network) -> None:
            module.first, module.second = module.second, module.first

        # Other names of the same tensors allow nothing.
        (first, *_) = (one.message for one in said(changed(exchanged)) if isinstance(one, Finding))
        assert "1.0e-09 is allowed" in first

    def test_a_nan_in_float64_alone(self) -> None:
        class Same(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return x

        class Hidden(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                # 1e-30 squared twice is zero in float32 alone: then nothing is divided.
                tiny = (x * 0 + 1e-30) ** 2
                return torch.where((tiny == 0).expand_as(x), x, x * torch.inf * 0)

        reference, hidden = captured(Same().eval()), captured(Hidden().eval())
        known = collect_evidence(reference, cases=quick_cases(reference, 0)[:1])
        messages = [
            o.message for o in check_program(reference, hidden, known, with_stress=False) if isinstance(o, Finding)
        ]
        assert messages and "finite on one side only" in messages[0]

    def test_a_decision_that_falls_otherwise_in_float64_alone(self) -> None:
        class Chosen(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return x.argmax(-1)

        class Hidden(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                tiny = (x[..., 0] * 0 + 1e-30) ** 2
                return torch.where(tiny == 0, x.argmax(-1), x.argmin(-1))

        reference, hidden = captured(Chosen().eval()), captured(Hidden().eval())
        known = collect_evidence(reference, cases=quick_cases(reference, 0)[:1])
        found = [o.gate for o in check_program(reference, hidden, known, with_stress=False) if isinstance(o, Finding)]
        assert found == ["discrete"]

    def test_verify_catches_them_at_level_quick(self) -> None:
        def scaled(module: Network) -> None:
            module.last.weight.mul_(1 + 1e-6)

        result = verify(original(), changed(scaled))
        assert result.outcome is Outcome.DIFFERENT and "twin" in {f.gate for f in result.findings}


class TestRightCandidates:
    @pytest.mark.parametrize("seed", range(20))
    def test_a_batch_norm_folded_in_float32(self, seed: int) -> None:
        reference, candidate = with_weights(seed)
        known = collect_evidence(reference, seed=seed, cases=quick_cases(reference, seed)[1:3])
        assert not stores_the_same(reference, candidate)
        assert list(check_program(reference, candidate, known, with_stress=False)) == []

    @pytest.mark.parametrize("attention", ["scaled first", "scaled last"])
    def test_attention_written_out(self, attention: str) -> None:
        assert said(network(attention=attention)) == []

    def test_a_number_that_was_rounded_to_float32(self) -> None:
        class Scaled(nn.Module):
            def __init__(self, *, stored: bool) -> None:
                super().__init__()
                self.scale = nn.Parameter(torch.tensor(0.1)) if stored else 0.1

            def forward(self, x: Tensor) -> Tensor:
                return torch.tanh(x * self.scale)

        reference, candidate = captured(Scaled(stored=False).eval()), captured(Scaled(stored=True).eval())
        for seed in range(8):
            known = collect_evidence(reference, seed=seed, cases=quick_cases(reference, seed)[:1])
            assert list(check_program(reference, candidate, known, with_stress=False)) == []

    def test_names_of_tensors_do_not_count(self) -> None:
        def renamed(module: Network) -> None:
            module.another = module.first

        assert said(changed(renamed)) == []


class TestStress:
    def test_a_clamp_that_only_stressed_weights_reach(self) -> None:
        candidate = network(limit=100.0)
        assert gates(candidate) == set()
        assert gates(candidate, with_stress=True) >= {"ratio", "twin"}

    def test_the_same_program_passes(self) -> None:
        found = said(network(), with_stress=True)
        assert not [one for one in found if isinstance(one, Finding)]
        figures = [one for one in found if isinstance(one, Figures)]
        assert figures and all(one.case.startswith("stressed x") for one in figures)
        assert {one.regime for one in figures} == {"stressed normal", "stressed negative", "stressed mixed-rows"}

    def test_other_tensors_are_not_stressed_and_that_is_said(self) -> None:
        def scaled(module: Network) -> None:
            module.first.weight.mul_(1 + 2**-22)

        assert said(changed(scaled), with_stress=True)[-1] == (
            "stressed weights: not run, the candidate stores other tensors than the original"
        )


def test_a_candidate_without_a_float64_form_is_noted() -> None:
    class Same(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 1.0

    class Bits(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x.view(torch.int32) + torch.zeros(8, dtype=torch.int32)).view(torch.float32)

    reference, candidate = captured(Same().eval()), captured(Bits().eval())
    known = collect_evidence(reference, cases=quick_cases(reference, 0)[:1])
    (note,) = check_program(reference, candidate, known, with_stress=False)
    assert isinstance(note, str) and "not compared in float64, the candidate does not run there" in note
