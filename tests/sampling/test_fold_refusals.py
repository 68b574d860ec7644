"""What cannot be folded is refused in one sentence, with what to write."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flowopt.errors import UserError
from flowopt.program.capture import capture
from flowopt.program.program import Program
from flowopt.sampling import ClassifierFree, SamplerSpec, fold
from tests.sampling.networks import CHANNELS, SIZE, Averaged, Labelled, Timed, WithVariance, captured
from tests.sampling.samplers import averaged, euler, heun

BATCH = {0: "batch"}


class Written(nn.Module):
    """A function of its inputs, and one weight."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, **inputs: Tensor) -> Any:
        return self.function(self.weight, **inputs)


def program(function: Any, **inputs: Tensor) -> Program:
    return capture(Written(function).eval(), (), inputs)


def refusal(program: Program, spec: SamplerSpec, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        fold(program, spec, **options)
    return str(caught.value)


X, T = torch.randn(2, CHANNELS, SIZE, SIZE), torch.rand(2)


def test_one_time_for_a_network_of_two() -> None:
    assert "1 time(s)" in refusal(captured(Averaged()), euler(2), times=("t", "h"))


def test_two_times_for_a_network_of_one() -> None:
    message = refusal(captured(Timed()), averaged(2))
    assert "gives the network 2 time(s), and it takes t" in message
    assert "x: float32[batch, 4, 6, 6]" in message


def test_a_label_is_no_second_time() -> None:
    assert "gives the network 2 time(s), and it takes t" in refusal(captured(Labelled()), averaged(2))
    assert "their dtypes differ" in refusal(captured(Labelled()), averaged(2), times=("t", "label"))


@pytest.mark.parametrize(("role", "value"), [("sample", "y"), ("times", ("s",))])
def test_a_role_that_no_input_has(role: str, value: Any) -> None:
    assert "no input" in refusal(captured(Timed()), euler(2), **{role: value})


def test_a_prediction_that_no_output_is() -> None:
    assert "no output 'noise'" in refusal(captured(Timed()), euler(2), prediction="noise")


def test_several_outputs() -> None:
    two = program(lambda w, x, t: {"a": x * w * t.mean(), "b": x}, x=X, t=T)
    assert "say which" in refusal(two, euler(2))
    assert fold(two, euler(2), prediction="a").loop.steps == 2


def test_a_sample_that_cannot_be_told() -> None:
    two = program(lambda w, p, q, t: p * w * t.mean() + q, p=X, q=X, t=T)
    assert "which input the sample is" in refusal(two, euler(2))
    assert fold(two, euler(2), sample="q").prologue.inputs[1].name == "p"


def test_a_time_with_axes_of_its_own() -> None:
    wide = program(lambda w, x, t: x * w * t.mean(), x=X, t=torch.rand(2, 3))
    assert "no axis or one" in refusal(wide, euler(2), times=("t",))


def test_whole_numbers_as_the_sample() -> None:
    whole = program(lambda w, x, t: x * w * t.mean(), x=torch.ones(2, 3, dtype=torch.int64), t=T)
    assert "not floating" in refusal(whole, euler(2), sample="x", times=("t",))


def test_a_prediction_of_another_shape() -> None:
    pooled = program(lambda w, x, t: x.mean(dim=(2, 3)) * w * t.mean(), x=X, t=T)
    assert "a sampler adds the one to the other" in refusal(pooled, euler(2))


def test_a_network_that_changes_what_it_stores() -> None:
    class Counting(nn.Module):
        calls: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            self.calls.add_(1)
            return x * self.calls * t.mean()

    assert "changes what it stores (calls)" in refusal(capture(Counting().eval(), (X, T)), euler(2))


def test_a_time_between_whole_numbers_for_a_network_that_looks_it_up() -> None:
    assert "0.5 is no whole number" in refusal(captured(WithVariance()), euler(2))


def test_an_unknown_form() -> None:
    assert "scan" in refusal(captured(Timed()), euler(2), form="unrolled")


def test_guidance_of_a_network_without_conditions() -> None:
    assert "needs a condition" in refusal(captured(Timed()), euler(2), guidance=ClassifierFree(2.0))


def test_guidance_by_a_condition_that_the_network_has_not() -> None:
    message = refusal(captured(Labelled()), euler(2), guidance=ClassifierFree(2.0, {"class": 9}))
    assert "without class, but the network's conditions are ['label']" in message


def test_guidance_by_a_condition_that_nothing_reads() -> None:
    inputs = {"x": X, "t": T, "label": torch.zeros(2, dtype=torch.int64)}

    class Spared(nn.Module):
        def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
            return x * t[:, None, None, None]

    unread = capture(Spared().eval(), (), inputs, dynamic=dict.fromkeys(inputs, BATCH))
    message = refusal(unread, euler(2), guidance=ClassifierFree(2.0, {"label": 9}))
    assert "needs a condition that the prediction" in message
    assert "depends on ['t', 'x']" in message


def test_guidance_of_a_batch_that_is_fixed() -> None:
    module = Labelled().eval()
    fixed = capture(module, (X, T, torch.zeros(2, dtype=torch.int64)))
    assert "capture it with a free batch" in refusal(fixed, euler(2), guidance=ClassifierFree(2.0, {"label": 9}))


def test_scales_for_another_number_of_evaluations() -> None:
    message = refusal(captured(Labelled()), heun(2), guidance=ClassifierFree((1.0, 2.0), {"label": 9}))
    assert "2 guidance scales for 4 evaluations" in message


@pytest.mark.parametrize(
    "options", [{"scale": float("nan")}, {"scale": (1.0, float("inf"))}, {"scale": 2.0, "channels": 0}]
)
def test_guidance_that_is_no_guidance(options: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        ClassifierFree(**options)


def test_a_condition_with_a_name_of_the_samplers_own() -> None:
    named = program(lambda w, x, t, noise: x * w * t.mean() + noise.mean(), x=X, t=T, noise=torch.randn(2, 3))
    assert "inputs and values of its own called noise" in refusal(named, euler(2))


def test_twice_the_tokens_are_no_learned_variance() -> None:
    tokens = program(lambda w, x, t: torch.cat([x, x], 1) * w * t.mean(), x=torch.randn(2, 5, 3), t=T)
    assert "a sampler adds the one to the other" in refusal(tokens, euler(2))


def test_a_batch_that_is_not_the_first_axis() -> None:
    class Turned(nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return x * t[None, :, None]

    dynamic = {"x": {1: "batch"}, "t": {0: "batch"}}
    turned = capture(Turned().eval(), (torch.randn(5, 2, 3), T), dynamic=dynamic)
    assert "'batch', of the times 't', is axis 1 of the sample 'x'" in refusal(turned, euler(2))
