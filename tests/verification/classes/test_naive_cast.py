import pytest
import torch
from torch import Tensor, nn

from flowopt.program.capture import capture
from flowopt.program.program import Program
from flowopt.verification.classes.naive_cast import run_naive_cast
from flowopt.verification.evidence import collect_evidence
from tests.verification.substitute import captured


class Sine(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(x)


@pytest.fixture(scope="module")
def sine() -> Program:
    return capture(Sine().eval(), (torch.randn(4, 6),), dynamic={"x": {0: "batch"}})


class TestNaiveCast:
    def test_is_what_half_and_bfloat16_compute(self) -> None:
        body = nn.Sequential(nn.Linear(8, 6), nn.GELU(), nn.LayerNorm(6))
        torch.manual_seed(0)
        program = capture(body.eval(), (torch.randn(4, 8),))
        case = collect_evidence(program).cases[0].case
        given = case.inputs["input"]
        for dtype in (torch.float16, torch.bfloat16):
            found = run_naive_cast(program, case, dtype)
            (value,) = found.values()
            wanted = nn.Sequential(nn.Linear(8, 6), nn.GELU(), nn.LayerNorm(6)).eval()
            wanted.load_state_dict(body.state_dict())
            assert torch.equal(value, wanted.to(dtype)(given.to(dtype)))

    def test_casts_dtypes_inside_the_graph_and_those_that_follow_the_default(self) -> None:
        program = captured(lambda x: x.double().sin().float() + torch.arange(x.shape[1])[:, None] / 7)
        case = collect_evidence(program).cases[0].case
        (value,) = run_naive_cast(program, case, torch.bfloat16).values()
        assert value.dtype is torch.bfloat16
        assert torch.get_default_dtype() is torch.float32

    def test_leaves_the_program_as_it_was(self, sine: Program) -> None:
        case = collect_evidence(sine).cases[0].case
        before = str(sine.graph)
        run_naive_cast(sine, case, torch.float16)
        assert str(sine.graph) == before
        assert next(iter(sine.run_named(case.inputs).values())).dtype is torch.float32
