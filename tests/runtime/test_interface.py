"""What an artifact takes: recorded, and checked."""

import json
from typing import Any

import numpy as np
import pytest
import torch

from flowopt.errors import MalformedModel, UserError
from flowopt.program.interface import Interface
from flowopt.runtime.interface import interface_of, parsed_interface, parsed_interface_text
from tests.lowering import models
from tests.lowering.build import built


def interface() -> Interface:
    return parsed_interface(
        {
            "inputs": [
                {"name": "ids", "dtype": "int64", "shape": ["batch", "length"], "state": None},
                {"name": "mask", "dtype": "bool", "shape": ["batch", "length"], "state": None},
                {"name": "cache", "dtype": "float32", "shape": [4], "state": "layer.cache"},
            ],
            "outputs": [{"name": "y.0", "dtype": "float32", "shape": ["batch", "2*length"], "state": None}],
            "dims": {"batch": {"minimum": 1, "maximum": 8}, "length": {"minimum": 2, "maximum": None}},
            "single": False,
        }
    )


IDS, MASK = torch.zeros(2, 3, dtype=torch.int64), torch.ones(2, 3, dtype=torch.bool)


def test_a_programs_interface_survives_json() -> None:
    program = built(models.counter).program
    parsed = parsed_interface(json.loads(json.dumps(interface_of(program))))
    assert [(i.name, i.dtype, i.state) for i in parsed.inputs] == [(i.name, i.dtype, i.state) for i in program.inputs]
    assert {o.name: o.shape for o in parsed.outputs}["output"] == ("batch", 300)
    assert parsed.dims == {"batch": (1, 64)} and not parsed.single
    assert parsed_interface(interface_of(built(models.attention).program)).single


def test_inputs_bind_by_position_and_name_and_state_is_optional() -> None:
    assert list(interface().bind((IDS, MASK), {})) == ["ids", "mask"]
    bound = interface().bind((IDS,), {"mask": MASK, "cache": torch.ones(4)})
    assert list(bound) == ["ids", "mask", "cache"]
    assert interface().bind((np.zeros((2, 3), np.int64), MASK.tolist()), {})["ids"].shape == (2, 3)


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((IDS,), {}, "missing inputs: mask"),
        ((IDS, MASK, torch.ones(4)), {}, "3 positional inputs, but the model takes 2"),
        ((IDS, MASK), {"ids": IDS}, "given twice: ids"),
        ((IDS, MASK), {"token_ids": IDS}, "unknown: token_ids"),
        ((IDS.int(), MASK), {}, r"'ids' is int32\[2, 3\], but the model takes ids: int64\[batch, length\]"),
        ((IDS[0], MASK), {}, r"'ids' is int64\[3\]"),
        ((IDS, MASK), {"cache": torch.ones(5)}, r"'cache' is float32\[5\].*float32\[4\] \(state, optional\)"),
        ((IDS, MASK[:1]), {}, "dimension 'batch' is 2 in 'ids' and 1 in 'mask'"),
        ((IDS.repeat(5, 1), MASK.repeat(5, 1)), {}, "'batch' is 10 in 'ids', but the model takes 1 to 8"),
        ((IDS[:, :1], MASK[:, :1]), {}, "'length' is 1 in 'ids', but the model takes 2 or more"),
        ((object(), MASK), {}, "'ids' is object, not a tensor"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_does(args: Any, kwargs: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        interface().bind(args, kwargs)
    assert "mask: bool[batch, length]" in caught.value.hint


@pytest.mark.parametrize(
    "change",
    [
        {"inputs": None},
        {"outputs": []},
        {"outputs": [{"name": 3, "dtype": "float32", "shape": [], "state": None}]},
        {"outputs": [{"name": "y", "dtype": "os.system", "shape": [], "state": None}]},
        {"dims": {"batch": 3}},
        {"dims": {"batch": {"minimum": "1", "maximum": None}}},
        {"dims": {"batch": {"minimum": True, "maximum": None}}},
        {"inputs": [{"name": "x", "dtype": "float32", "shape": [None], "state": None}]},
        {"inputs": [{"name": "x", "dtype": "float32", "shape": [-1], "state": None}]},
        {"inputs": [{"name": "x", "dtype": "float32", "shape": [1], "state": None}] * 2},
    ],
)
def test_a_malformed_interface_is_refused(change: dict[str, object]) -> None:
    section = interface_of(built(models.nested).program) | change
    with pytest.raises(MalformedModel, match="interface"):
        parsed_interface(section)
    with pytest.raises(MalformedModel, match="interface"):
        parsed_interface("text")


def test_an_interface_that_is_no_json_is_refused() -> None:
    for text in ("", "{", "[" * 100_000, "9" * 100_000):
        with pytest.raises(MalformedModel, match="no JSON") as caught:
            parsed_interface_text(text)
        assert caught.value.hint
