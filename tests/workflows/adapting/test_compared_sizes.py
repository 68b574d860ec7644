"""Linear attention is timed beside softmax at the length that the user asked for, where the model takes it."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

import flowopt
from flowopt.analysis.attention_sites import attention_sites
from flowopt.program.program import Program
from flowopt.workflows.adapting.compared_sizes import compared_sizes


class Attended(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        split = x.unflatten(-1, (2, -1)).transpose(1, 2)
        return scaled_dot_product_attention(split, split, split)


def program_of(free: dict[int, str]) -> Program:
    ranges = {"samples": (2, 64), "words": (2, 1024)}
    dims = {name: ranges[name] for name in free.values()}
    return flowopt.capture(Attended().eval(), (), {"x": torch.ones(3, 5, 8)}, dynamic={"x": free}, dims=dims)


@pytest.mark.parametrize(
    ("free", "length", "wanted"),
    [
        ({0: "samples", 1: "words"}, 512, {"samples": 2, "words": 512}),
        ({1: "words"}, 512, {"words": 512}),
        ({0: "samples", 1: "words"}, None, {}),
        ({0: "samples", 1: "words"}, 4096, {}),
        ({0: "samples"}, 512, {}),
    ],
)
def test_as_few_samples_as_can_be_of_that_length(
    free: dict[int, str], length: int | None, wanted: dict[str, int]
) -> None:
    program = program_of(free)
    assert compared_sizes(program, attention_sites(program), length) == wanted
