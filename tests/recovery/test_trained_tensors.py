"""Weights are told from constants by what reads them."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import flowopt
from flowopt.recovery.trained_tensors import trained_tensors
from tests.recovery.tiny_transformer import program_of, tiny_transformer
from tests.zoo.text_models import bert, gpt2, llama, t5
from tests.zoo.zoo_model import ZooModel


def test_every_parameter_is_trained_and_no_table_or_mask() -> None:
    module = tiny_transformer()
    assert trained_tensors(program_of(module)) == dict(module.named_parameters()).keys()


@pytest.mark.slow
@pytest.mark.parametrize("made", [gpt2, bert, llama, t5], ids=lambda made: made.__name__)
def test_of_known_models_exactly_the_parameters_are_trained(made: Callable[[], ZooModel]) -> None:
    model = made()
    program = flowopt.capture(model.module, (), model.kwargs, dynamic=model.dynamic, dims=model.dims)
    parameters = {name for name, _ in model.module.named_parameters(remove_duplicate=False)}
    assert trained_tensors(program) == parameters & program.tensors.keys()


class Normalised(nn.Module):
    """A convolution and a batch norm, whose statistics are not trained; a gain written as 1 + w."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.gain = nn.Parameter(torch.zeros(4, 1, 1))
        self.token = nn.Parameter(torch.zeros(1, 4, 1, 7))
        self.register_buffer("temperature", torch.tensor(2.0))
        self.temperature: Tensor

    def forward(self, x: Tensor) -> Tensor:
        value = self.norm(self.convolution(x)) * (1 + self.gain) / self.temperature
        return torch.cat([self.token.expand(x.shape[0], -1, -1, -1), value], dim=2) * self.temperature


def test_running_statistics_and_bare_numbers_stay_while_written_gains_and_tokens_are_trained() -> None:
    module = Normalised().eval()
    assert trained_tensors(flowopt.capture(module, (torch.ones(2, 3, 6, 9),))) == dict(module.named_parameters()).keys()
