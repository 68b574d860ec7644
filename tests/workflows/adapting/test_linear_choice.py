from typing import Any

import pytest

from flowopt.errors import UserError
from flowopt.ops.attention import AttentionShape
from flowopt.ops.attention.linearizations import STEPPED
from flowopt.workflows.adapting.linear_choice import LinearChoice

SHAPE = AttentionShape(heads=2, head_dim=8, value_dim=8, is_causal=False, scale=0.5)


def test_options_reach_the_stand_in() -> None:
    choice = LinearChoice("elu", options={"chunk": 16})
    choice.require_known()
    made = choice.made(SHAPE, seed=0)
    assert (made.chunk, made.shape) == (16, SHAPE)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"to": "eluu"}, "'eluu' is no linear attention"),
        ({"keep_softmax": 1.0}, "keep_softmax=1.0 is no share"),
        ({"keep_softmax": -0.1}, "keep_softmax=-0.1 is no share"),
        ({"keep_by": "entropie"}, "keep_by='entropie' is not known"),
        ({"length": 1}, "length=1 is no length"),
        ({"options": {"windw": 3}}, "windw is an option of no linear attention"),
        ({"options": {"window": 3}}, "--window is of hybrid"),
        ({"options": {"directions": 3}}, "directions is of favor"),
        ({"options": {"chunk": 0}}, "chunk=0 is no number of tokens"),
        ({"to": "hybrid", "form": "recurrent"}, "hybrid cannot be lowered as a step; mean, elu, relu, favor, "),
        ({"to": "chunk-hybrid", "form": "recurrent"}, "chunk-hybrid cannot be lowered as a step; "),
        ({"to": "combiner", "form": "recurrent"}, "combiner cannot be lowered as a step; "),
    ],
)
def test_what_no_model_could_fulfil_is_told(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as caught:
        LinearChoice(**({"to": "elu"} | changed)).require_known()
    assert caught.value.message.startswith(said)
    assert caught.value.hint or caught.value.why


@pytest.mark.parametrize(
    ("to", "takes"),
    [
        ("elu", "elu takes --chunk"),
        ("hybrid", "hybrid takes --chunk, --window"),
        ("flow", "flow takes --chunk, eps, clamp"),
    ],
)
def test_a_wrong_option_is_told_which_ones_there_are(to: str, takes: str) -> None:
    with pytest.raises(UserError) as caught:
        LinearChoice(to, options={"windw": 3}).require_known()
    assert caught.value.hint == takes


@pytest.mark.parametrize("to", STEPPED)
def test_what_a_step_carries_may_be_lowered_as_one(to: str) -> None:
    LinearChoice(to, form="recurrent").require_known()
