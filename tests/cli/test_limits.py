"""``--limit``, ``--shape`` and ``--factory``: what they may look like, and that they reach the loading."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from flowopt.cli.loading import LoadOptions, load_options
from flowopt.cli.parsing import parse_limits, parse_shapes
from flowopt.errors import UserError
from flowopt.formats.limits import Limits
from tests.cli.command import flowopt, model


class TwoInputs(nn.Module):
    """Two inputs that share their first dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, 4)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        result: Tensor = self.embedding(ids) * mask[..., None]
        return result


@pytest.mark.parametrize(
    ("texts", "limits"),
    [
        ([], Limits()),
        (["nodes=5"], Limits(nodes=5)),
        (["memory=16GB"], Limits(memory=16_000_000_000)),
        (["memory=1.5GiB", "json=3kb", "depth=9"], Limits(memory=3 << 29, json=3000, depth=9)),
        (["memory=0"], Limits(memory=0)),
        (["seconds=10", "seconds=20"], Limits(seconds=20)),
    ],
)
def test_limits_are_names_and_amounts(texts: list[str], limits: Limits) -> None:
    assert parse_limits(texts) == limits


@pytest.mark.parametrize("text", ["nodes", "nodes=", "=5", "speed=5", "nodes=-5", "memory=5TB", "memory=1e9", "n=5"])
def test_refuses_another_form_of_limit_and_names_all_limits(text: str) -> None:
    with pytest.raises(UserError, match="is not name=value") as caught:
        parse_limits([text])
    assert "memory, seconds, json, nodes, members, depth" in caught.value.hint


@pytest.mark.parametrize("text", ["seconds=5KB", "nodes=1MB", "depth=1.5", "members=2GiB"])
def test_bytes_are_for_limits_in_bytes(text: str) -> None:
    with pytest.raises(UserError, match="counts"):
        parse_limits([text])


def test_shapes_are_names_and_sizes() -> None:
    assert parse_shapes(["x=1x3", "ids=1x16:int64[0..8]"]) == {"x": "1x3", "ids": "1x16:int64[0..8]"}


@pytest.mark.parametrize(
    ("texts", "complaint"),
    [
        (["1x3"], "does not start with an input's name and ="),
        (["=1x3"], "does not start with an input's name and ="),
        (["x y=1x3"], "does not start with an input's name and ="),
        (["x="], "is not understood"),
        (["x=3:int"], "unknown dtype"),
        (["x=1", "x=2"], "--shape names x twice"),
    ],
)
def test_refuses_another_form_of_shape(texts: list[str], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        parse_shapes(texts)


@pytest.mark.parametrize("text", ["my_model", "my_model:", ":build", "my-model:build", "m:a b", "m.py:build:x", ""])
def test_refuses_another_form_of_factory(text: str) -> None:
    with pytest.raises(UserError, match="is not package.module:function"):
        load_options("data", False, None, text, None, None, None)


def test_options_come_back_as_the_words_that_were_typed() -> None:
    options = load_options("weights", True, ["b=x:0"], "m:f", ["x=1x3"], Path("in.npz"), ["nodes=5"])
    assert options.words == (
        *("--eval", "--factory", "m:f", "--dynamic", "b=x:0", "--shape", "x=1x3", "--inputs", "in.npz"),
        *("--trust", "weights", "--limit", "nodes=5"),
    )
    assert LoadOptions().words == ()


@pytest.mark.parametrize("words", [["--limit", "nodes"], ["--shape", "x"], ["--factory", "f"], ["--dynamic", "x"]])
@pytest.mark.parametrize("command", [["optimize"], ["explain"], ["verify", "absent.pt"]])
def test_a_wrong_option_is_exit_2_before_the_model_is_looked_for(command: list[str], words: list[str]) -> None:
    ran = flowopt(*command, "absent.pt", *words)
    assert (ran.code, ran.out) == (2, "")
    assert words[0] in ran.err and "\n  try   " in ran.err


def test_a_limit_reaches_the_reader_of_archives(tmp_path: Path) -> None:
    linear = nn.Linear(3, 3).eval()
    torch.export.save(torch.export.export(linear, (torch.ones(2, 3),)), tmp_path / "model.pt2")
    ran = flowopt("explain", "model.pt2", "--limit", "members=1")
    assert ran.code == 65
    assert "--limit members=" in ran.err


def test_a_dimension_is_shared_by_two_inputs_of_a_pickled_module(tmp_path: Path) -> None:
    torch.save(TwoInputs().eval(), tmp_path / "model.pt")
    shapes = ("--shape", "ids=2x16:int64[0..8]", "--shape", "mask=2x16")
    dynamic = ("--dynamic", "batch=ids:0,mask:0:1..64")
    ran = flowopt("optimize", "model.pt", "--trust", "code", *shapes, *dynamic, "--dry-run", "--json", "-")
    assert ran.code == 0, ran.err
    inputs = {one["name"]: one["shape"] for one in json.loads(ran.out)["interface"]["inputs"]}
    assert inputs == {"ids": ["batch", 16], "mask": ["batch", 16]}


def test_inputs_come_from_a_file(tmp_path: Path) -> None:
    np.savez(tmp_path / "in.npz", signal=np.zeros((2, 3, 9), dtype=np.float32))
    ran = flowopt("optimize", model("folding"), "--inputs", "in.npz", "--dry-run", "--json", "-")
    assert ran.code == 0, ran.err
    assert '"batch"' in ran.out
